"""Products of many rows: some blocks of a panel are widened once to 8-bit numbers and floats, in a
room that stays in a core's first cache, and then multiplied with all rows.

The floats are the results of the same operations in the same order as in few.py. Whole numbers
are summed differently, but exactly.

A wide block: OUTPUTS * BLOCK signed numbers, in the order of a panel's; 128 times their sums, to be
subtracted, since activations are unsigned here, 128 more than their value; scales; minimums.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir

from model.cpu.blocks.layout import (
    AT_ONCE,
    BLOCK,
    FORMATS,
    OUTPUTS,
    QUAD,
    QUADS,
    SUPER,
    WIDE_BLOCK,
    WIDE_FACTORS,
    WIDE_MINIMUMS,
    WIDE_SUMS,
    Format,
)
from model.cpu.blocks.tiles.code import F32, I1, I32, I64, Code, Panel, function, loop, switch
from model.cpu.blocks.tiles.cpus import AVX2, Instructions

X_STRIDE = AT_ONCE * BLOCK  # bytes from row to row of the activations
S_STRIDE = 4 * AT_ONCE  # of their scales


class Kind(NamedTuple):
    """What a tile has to know of wide blocks."""

    scales: int
    minimum: bool
    room: int  # AVX2: as many sums of two products fit into 16 bits; 0: not even one


def kind_of(cpu: Instructions, format_: Format) -> Kind:
    if cpu is not AVX2:
        return Kind(format_.scales, format_.minimum, 0)
    largest = format_.offset or 2**format_.bits - 1
    return Kind(format_.scales, format_.minimum, min(8, 32767 // (2 * 255 * largest)))


def kinds_of(cpu: Instructions) -> list[Kind]:
    return sorted({kind_of(cpu, format_) for format_ in FORMATS})


def define(module: ir.Module, cpu: Instructions) -> None:
    """widen(code, panel, first, blocks, into): some blocks of a panel of FORMATS[code] to wide
    ones. first: of them, a multiple of AT_ONCE. blocks: at most AT_ONCE.

    multiply_wide(kind, rows, wide, blocks, x, steps, least, out): adds the products of rows, 1 to
    cpu.wide_rows, with wide blocks of kinds_of(cpu)[kind] to out. x: unsigned, X_STRIDE bytes from
    row to row. steps: float32, the scale of each block of x, S_STRIDE bytes from row to row. least:
    of each block 8 bytes, of which the first four are a float32: its scale times the negative sum
    of its numbers; twice S_STRIDE bytes from row to row. out: float32 (rows, OUTPUTS).

    All are whole numbers, most of them addresses.
    """

    def write_widening(inner: ir.IRBuilder, format_: Format, *args: Any) -> None:
        _Widening(inner, cpu, format_).generate(*args)

    def write_tile(inner: ir.IRBuilder, kind: tuple[Kind, int], *args: Any) -> None:
        _WideTile(inner, cpu, *kind, *args).generate()

    with function(module, "widen", 5) as (b, args):
        switch(b, args[0], FORMATS, write_widening, args[1:])
    with function(module, "multiply_wide", 8) as (b, args):
        kinds = [(kind, rows) for kind in kinds_of(cpu) for rows in range(1, cpu.wide_rows + 1)]
        number = b.mul(args[0], ir.Constant(I64, cpu.wide_rows))
        number = b.add(number, b.sub(args[1], ir.Constant(I64, 1)))
        switch(b, number, kinds, write_tile, args[2:])


class _Widening(Panel):
    def generate(self, panel: Any, first: Any, blocks: Any, into: Any) -> None:
        b = self.builder
        format_ = self.format
        vectors = range(OUTPUTS // self.lanes)
        scale: dict[int, Any] = {}
        least: dict[int, Any] = {}
        start = b.add(panel, b.mul(first, self.index(format_.block_bytes)))
        if format_.two_level:
            supers = b.udiv(first, self.index(SUPER))
            start = b.add(start, b.mul(supers, self.index(format_.header_bytes)))
            scale, least = self.heads(start, vectors)
            start = b.add(start, self.index(format_.header_bytes))
        with loop(b, blocks) as number:
            block = b.add(start, b.mul(number, self.index(format_.block_bytes)))
            wide = b.add(into, b.mul(number, self.index(WIDE_BLOCK)))
            for v in vectors:
                at = 4 * self.lanes * v
                self._numbers(block, wide, v)
                for part in range(format_.scales):
                    factor = self.factor(block, part, v, scale)
                    self.store(factor, wide, WIDE_FACTORS + 4 * OUTPUTS * part + at)
                if format_.minimum:
                    self.store(self.minimum(block, v, least), wide, WIDE_MINIMUMS + at)

    def _numbers(self, block: Any, wide: Any, v: int) -> None:
        b = self.builder
        loaded: dict[int, Any] = {}
        ones = ir.Constant(self.bytes, [1] * self.bytes.count)
        offset = ir.Constant(self.bytes, [self.format.offset] * self.bytes.count)
        each = QUADS // self.format.scales
        for quad in range(QUADS):
            if quad % each == 0:
                total = ir.Constant(self.ints, [0] * self.lanes)
            numbers = b.bitcast(self.numbers(block, quad, v, loaded), self.bytes)
            numbers = b.sub(numbers, offset)
            self.store(numbers, wide, QUAD * OUTPUTS * quad + 4 * self.lanes * v)
            total = self.add_products(total, ones, numbers)
            if quad % each == each - 1:
                total = b.neg(b.shl(total, ir.Constant(self.ints, [7] * self.lanes)))
                self.store(
                    total, wide, WIDE_SUMS + 4 * OUTPUTS * (quad // each) + 4 * self.lanes * v
                )


class _WideTile(Code):
    def __init__(
        self, builder: ir.IRBuilder, cpu: Instructions, kind: Kind, rows: int, wide: Any,
        blocks: Any, x: Any, steps: Any, least: Any, out: Any,
    ) -> None:  # fmt: skip
        super().__init__(builder, cpu)
        self.kind = kind
        self.rows = range(rows)
        self.wide = wide
        self.blocks = blocks
        self.x = x
        self.steps = steps
        self.least = least
        self.out = out

    def generate(self) -> None:
        """In passes over the blocks, each over as many outputs as there are registers for."""
        vectors = OUTPUTS // self.lanes
        at_once = (
            2 if self.cpu is not AVX2 or self.kind.room in (0, 8) or len(self.rows) <= 2 else 1
        )
        for first in range(0, vectors, at_once):
            self._pass(range(first, first + at_once))

    def _pass(self, vectors: range) -> None:
        b = self.builder
        totals = {}
        for r in self.rows:
            for v in vectors:
                totals[r, v] = self.variable(self.floats)
                at = 4 * (OUTPUTS * r + self.lanes * v)
                b.store(self.load(self.out, at, self.floats), totals[r, v])
        with loop(b, self.blocks) as number:
            block = b.add(self.wide, b.mul(number, self.index(WIDE_BLOCK)))
            x = b.add(self.x, b.mul(number, self.index(BLOCK)))
            steps = b.add(self.steps, b.mul(number, self.index(4)))
            for part in range(self.kind.scales):
                counted = self._counted(block, x, part, vectors)
                self._add(block, steps, part, counted, totals)
            if self.kind.minimum:
                least = b.add(self.least, b.mul(number, self.index(8)))
                for (r, v), total in totals.items():
                    minimum = self.load(block, WIDE_MINIMUMS + 4 * self.lanes * v, self.floats)
                    by = self.spread(self.load(least, 2 * S_STRIDE * r, F32), self.floats)
                    b.store(self.fma(minimum, by, b.load(total)), total)
        for (r, v), total in totals.items():
            self.store(b.load(total), self.out, 4 * (OUTPUTS * r + self.lanes * v))

    def _add(self, block: Any, steps: Any, part: int, counted: Any, totals: Any) -> None:
        b = self.builder
        for (r, v), total in totals.items():
            factor = self.load(
                block, WIDE_FACTORS + 4 * (OUTPUTS * part + self.lanes * v), self.floats
            )
            step = self.spread(self.load(steps, S_STRIDE * r, F32), self.floats)
            whole = b.sitofp(counted[r, v], self.floats)
            b.store(self.fma(whole, b.fmul(factor, step), b.load(total)), total)

    def _counted(self, block: Any, x: Any, part: int, vectors: range) -> dict[tuple[int, int], Any]:
        """The exact sums of products over a part of a block's columns."""
        kind = self.kind
        counted = {}
        sixteens: dict[tuple[int, int], Any] = {}
        signed = self.cpu.signed or (self.cpu is AVX2 and kind.room == 0)
        for v in vectors:
            start = self.load(block, WIDE_SUMS + 4 * (OUTPUTS * part + self.lanes * v), self.ints)
            if signed:
                start = ir.Constant(self.ints, [0] * self.lanes)
            for r in self.rows:
                counted[r, v] = start
        each = QUADS // kind.scales
        for quad in range(each * part, each * (part + 1)):
            last = quad % each == each - 1
            for v in vectors:
                at = QUAD * OUTPUTS * quad + 4 * self.lanes * v
                weights = self.load(block, at, self.bytes)
                for r in self.rows:
                    four = self.load(x, X_STRIDE * r + QUAD * quad, I32)
                    four = self.builder.bitcast(self.spread(four, self.ints), self.bytes)
                    if signed:
                        four = self.flip(four)
                    key = r, v
                    if self.cpu is not AVX2:
                        counted[key] = self.add_products(counted[key], four, weights)
                    elif signed:
                        counted[key] = self._add_signed(counted[key], four, weights)
                    else:
                        pairs = self.pairs(four, weights)
                        if key in sixteens:
                            pairs = self.builder.add(sixteens.pop(key), pairs)
                        if last or quad % kind.room == kind.room - 1:
                            counted[key] = self.add_pairs(counted[key], pairs)
                        else:
                            sixteens[key] = pairs
        return counted

    def _add_signed(self, total: Any, x: Any, weights: Any) -> Any:
        """AVX2: the sum of two products of 255 would not fit into 16 bits."""
        x = self.call("llvm.x86.avx2.psign.b", self.bytes, x, weights)
        size = self.call("llvm.abs.v32i8", self.bytes, weights, ir.Constant(I1, 0))
        return self.add_pairs(total, self.pairs(size, x))
