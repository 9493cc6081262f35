"""The rounding of activations to 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from model.cpu.blocks.layout import BLOCK, LARGEST, SMALLEST
from model.cpu.blocks.tiles.code import F32, I8, I32, I64, Code, function, loop
from model.cpu.blocks.tiles.cpus import Instructions


def define(module: ir.Module, cpu: Instructions) -> None:
    """round_blocks(x, blocks, rounded, steps, sums, flipped): some blocks of activations, float32,
    to 8 bits, with their scales, float32, and the sums of their halves, int32.

    All are whole numbers, most of them addresses. flipped: bits of each of the 8-bit numbers. NaN
    and infinities, which whole numbers do not have, make the scale NaN. (These are vector
    instructions because LLVM makes another quotient of a product with 127 / most where it may
    reorder sums, and slow code where it may not.)
    """
    with function(module, "round_blocks", 6) as (b, args):
        x, blocks, rounded, steps, sums, flipped = args
        with loop(b, blocks) as block:

            def at(address: Any, size: int) -> Any:
                return b.add(address, b.mul(block, ir.Constant(I64, size)))

            places = (at(x, 4 * BLOCK), at(rounded, BLOCK), at(steps, 4), at(sums, 8))
            _Rounding(b, cpu).generate(*places, flipped)


class _Rounding(Code):
    def generate(self, x: Any, rounded: Any, step: Any, sums: Any, flipped: Any) -> None:
        b = self.builder
        starts = range(0, BLOCK, self.lanes)
        floats = [self.load(x, 4 * start, self.floats) for start in starts]
        zero = ir.Constant(self.floats, [0.0] * self.lanes)
        most = ir.Constant(self.floats, [SMALLEST] * self.lanes)
        doubt = zero
        for each in floats:
            size = self.call(f"llvm.fabs.v{self.lanes}f32", self.floats, each)
            most = self._larger(most, size)
            doubt = b.fadd(doubt, b.fmul(size, zero))
        most = self._fold(most, self._larger)
        doubt = self._fold(doubt, b.fadd)
        share = ir.Constant(F32, float(np.float32(1 / LARGEST)))
        self.store(b.fadd(b.fmul(most, share), doubt), step, 0)
        inverse = self.spread(b.fdiv(ir.Constant(F32, float(LARGEST)), most), self.floats)
        totals = []
        kind = ir.VectorType(I8, self.lanes)
        flipped = self.spread(b.trunc(flipped, I8), kind)
        for start, each in zip(starts, floats, strict=True):
            each = self.call(f"llvm.rint.v{self.lanes}f32", self.floats, b.fmul(each, inverse))
            whole = b.fptosi(each, self.ints)
            self.store(b.xor(b.trunc(whole, kind), flipped), rounded, start)
            totals.append(self._fold(whole, b.add))
        each = len(totals) // 2
        for half in range(2):
            total = totals[half * each]
            for other in totals[half * each + 1 : (half + 1) * each]:
                total = b.add(total, other)
            self.store(total, sums, 4 * half)

    def _larger(self, a: Any, other: Any) -> Any:
        """The first where the other one is NaN."""
        b = self.builder
        return b.select(b.fcmp_ordered(">", other, a), other, a)

    def _fold(self, vector: Any, join: Callable[[Any, Any], Any]) -> Any:
        """Joins a vector's numbers, always in the same order."""
        b = self.builder
        count = vector.type.count
        while count > 1:
            count //= 2
            halves = []
            for first in (0, count):
                lanes = ir.Constant(ir.VectorType(I32, count), list(range(first, first + count)))
                halves.append(b.shuffle_vector(vector, vector, lanes))
            vector = join(*halves)
        return b.extract_element(vector, ir.Constant(I32, 0))
