"""The tile of few rows of activations and one panel as it is."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from model.cpu.blocks.layout import BLOCK, FORMATS, OUTPUTS, QUAD, QUADS, SUPER, Format
from model.cpu.blocks.tiles.code import I1, Panel, switch
from model.cpu.interleaved.intrinsics import AVX2, AVX512_VNNI, CHOSEN, F32, I32, I64

MAX_ROWS = 6 if CHOSEN is AVX512_VNNI else 4


@intrinsic
def tile(
    typing: Any, code: Any, rows: Any, weights: Any, blocks: Any, x: Any, x_stride: Any,
    steps: Any, sums: Any, s_stride: Any, out: Any, out_stride: Any,
) -> Any:  # fmt: skip
    """The tile of FORMATS[code].

    All are whole numbers, most of them addresses; strides are in bytes. rows: 1 to MAX_ROWS.
    weights: a panel. x: int8, a row of blocks * BLOCK each. steps: float32, the scale of each block
    of x. sums: int32, of each half of a block of x; both with s_stride bytes from row to row times
    one and two. out: float32, OUTPUTS of each row.
    """
    signature = types.void(*[types.int64] * 11)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = [(format_, rows) for format_ in FORMATS for rows in range(1, MAX_ROWS + 1)]
        number = builder.mul(args[0], ir.Constant(I64, MAX_ROWS))
        number = builder.add(number, builder.sub(args[1], ir.Constant(I64, 1)))

        def write(inner: ir.IRBuilder, kind: tuple[Format, int], *args: Any) -> None:
            _Tile(inner, kind[0], *args).generate(kind[1])

        switch(builder, number, kinds, write, args[2:])
        return context.get_dummy_value()

    return signature, generate


class _Tile(Panel):
    """Writes a format's tile of a number of rows."""

    def __init__(
        self, builder: ir.IRBuilder, format_: Format, weights: Any, blocks: Any, x: Any,
        x_stride: Any, steps: Any, sums: Any, s_stride: Any, out: Any, out_stride: Any,
    ) -> None:  # fmt: skip
        super().__init__(builder, format_)
        self.panel = weights
        self.blocks = blocks
        self.x = x
        self.x_stride = x_stride
        self.steps = steps
        self.sums = sums
        self.s_stride = s_stride
        self.out = out
        self.out_stride = out_stride

    def generate(self, rows: int) -> None:
        """In passes over the panel, each over as many of its outputs as there are registers for."""
        vectors = OUTPUTS // self.lanes
        at_once = 2 if self.lanes == 16 or rows <= 2 else 1
        for first in range(0, vectors, at_once):
            self._pass(rows, range(first, first + at_once))

    def _pass(self, rows: int, vectors: range) -> None:
        b = self.builder
        zero = ir.Constant(self.floats, [0.0] * self.lanes)
        totals = {(r, v): cgutils.alloca_once_value(b, zero) for r in range(rows) for v in vectors}
        for total in totals.values():  # the first value is stored where the function begins
            b.store(zero, total)
        x = [self.row(self.x, self.x_stride, r) for r in range(rows)]
        steps = [self.row(self.steps, self.s_stride, r) for r in range(rows)]
        sums = [self.row(self.sums, b.mul(self.s_stride, self.index(2)), r) for r in range(rows)]
        format_ = self.format
        if format_.two_level:
            supers = b.udiv(self.blocks, self.index(SUPER))
            size = format_.header_bytes + SUPER * format_.block_bytes
            with cgutils.for_range(b, supers) as outer:
                head = b.add(self.panel, b.mul(outer.index, self.index(size)))
                scale, least = self.heads(head, vectors)
                first = b.add(head, self.index(format_.header_bytes))
                with cgutils.for_range(b, self.index(SUPER)) as loop:
                    number = b.add(b.mul(outer.index, self.index(SUPER)), loop.index)
                    block = b.add(first, b.mul(loop.index, self.index(format_.block_bytes)))
                    self._block(block, number, x, steps, sums, totals, vectors, scale, least)
        else:
            with cgutils.for_range(b, self.blocks) as loop:
                block = b.add(self.panel, b.mul(loop.index, self.index(format_.block_bytes)))
                self._block(block, loop.index, x, steps, sums, totals, vectors, {}, {})
        for (r, v), total in totals.items():
            row = self.row(self.out, self.out_stride, r)
            b.store(b.load(total), self.pointer(row, 4 * v * self.lanes, self.floats), align=4)

    def _block(
        self, block: Any, number: Any, x: Any, steps: Any, sums: Any, totals: Any, vectors: range,
        scale: Any, least: Any,
    ) -> None:  # fmt: skip
        """Adds one block's products to the totals."""
        b = self.builder
        format_ = self.format
        rows = range(len(x))
        x = [b.add(each, b.mul(number, self.index(BLOCK))) for each in x]
        steps = [self.load(b.add(each, b.mul(number, self.index(4))), 0, F32) for each in steps]
        sums = [b.add(each, b.mul(number, self.index(8))) for each in sums]
        sums = [[self.load(each, 4 * half, I32) for half in range(2)] for each in sums]
        for part in range(format_.scales):
            quads = range(QUADS * part // format_.scales, QUADS * (part + 1) // format_.scales)
            counted = self._counted(block, x, sums, part, quads, vectors)
            for v in vectors:
                factor = self.factor(block, part, v, scale)
                for r in rows:
                    whole = b.sitofp(counted[r, v], self.floats)
                    by = b.fmul(factor, self.spread(steps[r], self.floats))
                    b.store(self.fma(whole, by, b.load(totals[r, v])), totals[r, v])
        if not format_.minimum:
            return
        for v in vectors:
            minimum = self.minimum(block, v, least)
            for r in rows:
                total = b.sitofp(b.neg(b.add(*sums[r])), F32)
                total = self.spread(b.fmul(total, steps[r]), self.floats)
                b.store(self.fma(minimum, total, b.load(totals[r, v])), totals[r, v])

    def _counted(
        self, block: Any, x: Any, sums: Any, part: int, quads: range, vectors: range
    ) -> dict[tuple[int, int], Any]:
        """The exact sums of products over some quads of columns, less the offset's share."""
        b = self.builder
        format_ = self.format
        rows = range(len(x))
        counted: dict[tuple[int, int], Any] = {}
        sixteens: dict[tuple[int, int], Any] = {}
        signed = format_.bits == 8 and self.cpu is AVX2
        for r in rows:
            start = ir.Constant(I32, 0)
            if format_.offset and not signed:
                total = sums[r][part] if format_.scales == 2 else b.add(*sums[r])
                start = b.mul(total, ir.Constant(I32, -format_.offset))
            for v in vectors:
                counted[r, v] = self.spread(start, self.ints)
        # Sums of so many quads' pairs of products fit into 16 bits.
        room = 32767 // (2 * 127 * (2**format_.bits - 1)) if not signed else 1
        loaded: dict[int, Any] = {}
        for place, quad in enumerate(quads):
            fours = [self.spread(self.load(x[r], QUAD * quad, I32), self.ints) for r in rows]
            for v in vectors:
                weights = self.numbers(block, quad, v, loaded)
                for r in rows:
                    key = (r, v)
                    if self.cpu is not AVX2:
                        counted[key] = self.add_products(counted[key], weights, fours[r])
                        continue
                    pairs = self._pairs(weights, fours[r], signed)
                    if key in sixteens:
                        pairs = b.add(sixteens.pop(key), pairs)
                    if place % room == room - 1 or quad == quads[-1]:
                        counted[key] = self.add_pairs(counted[key], pairs)
                    else:
                        sixteens[key] = pairs
        return counted

    def _pairs(self, weights: Any, x: Any, signed: bool) -> Any:
        """AVX2: sums of two products each, 16 bits."""
        b = self.builder
        u = b.bitcast(weights, self.bytes)
        x = b.bitcast(x, self.bytes)
        if signed:  # the sum of two products of 255 would not fit
            u = b.xor(u, ir.Constant(self.bytes, [128] * self.bytes.count))
            x = self.call("llvm.x86.avx2.psign.b", self.bytes, x, u)
            u = self.call("llvm.abs.v32i8", self.bytes, u, ir.Constant(I1, 0))
        return self.pairs(u, x)
