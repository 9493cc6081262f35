"""The rounding of activations to 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from model.cpu.blocks.layout import BLOCK, LARGEST, SMALLEST
from model.cpu.blocks.tiles.code import Code
from model.cpu.interleaved.intrinsics import F32, I8, I32


@intrinsic
def round_numbers(typing: Any, x: Any, rounded: Any, step: Any, sums: Any, flipped: Any) -> Any:
    """A block of activations, float32, to 8 bits, with its scale, float32, and the sums of its
    halves, int32. All are whole numbers, all but the last addresses. flipped: bits of each of the
    8-bit numbers.

    NaN and infinities, which whole numbers do not have, make the scale NaN. (These are vector
    instructions because LLVM makes another quotient of a product with 127 / most where it may
    reorder sums, and slow code where it may not.)
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _Rounding(builder).generate(*args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


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
