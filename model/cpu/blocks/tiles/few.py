"""The tile of few rows of activations and one panel as it is."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from model.cpu.blocks.layout import BLOCK, FORMATS, OUTPUTS, QUAD, QUADS, SUPER, Format
from model.cpu.blocks.tiles.code import F32, I1, I32, I64, Panel, function, loop, switch
from model.cpu.blocks.tiles.cpus import AVX2, Instructions


def define(module: ir.Module, cpu: Instructions) -> None:
    """multiply_panel(code, weights, blocks, rows, x, steps, sums, out): rows of x times a panel of
    FORMATS[code].

    All are whole numbers, most of them addresses. weights: a panel. x: int8 (rows, blocks * BLOCK).
    steps: float32 (rows, blocks), the scale of each block of x. sums: int32 (rows, blocks, 2), of
    each half of a block of x. out: float32 (rows, OUTPUTS).
    """
    most = ir.Constant(I64, cpu.few_rows)
    kinds = [(format_, rows) for format_ in FORMATS for rows in range(1, cpu.few_rows + 1)]

    def write(inner: ir.IRBuilder, kind: tuple[Format, int], *args: Any) -> None:
        _Tile(inner, cpu, kind[0], *args).generate(kind[1])

    with function(module, "multiply_panel", 8) as (b, args):
        code, weights, blocks, rows, x, steps, sums, out = args

        def skip(address: Any, row_bytes: Any) -> Any:
            return b.add(address, b.mul(first, row_bytes))

        groups = b.sdiv(b.add(rows, ir.Constant(I64, cpu.few_rows - 1)), most)
        with loop(b, groups) as group:
            first = b.mul(group, most)
            left = b.sub(rows, first)
            n = b.select(b.icmp_signed("<", left, most), left, most)
            number = b.add(b.mul(code, most), b.sub(n, ir.Constant(I64, 1)))
            each = b.mul(blocks, ir.Constant(I64, 4))
            here = (
                weights,
                blocks,
                skip(x, b.mul(blocks, ir.Constant(I64, BLOCK))),
                skip(steps, each),
                skip(sums, b.add(each, each)),
                skip(out, ir.Constant(I64, 4 * OUTPUTS)),
            )
            switch(b, number, kinds, write, here)


class _Tile(Panel):
    """Writes a format's tile of a number of rows."""

    def __init__(
        self, builder: ir.IRBuilder, cpu: Instructions, format_: Format, weights: Any, blocks: Any,
        x: Any, steps: Any, sums: Any, out: Any,
    ) -> None:  # fmt: skip
        super().__init__(builder, cpu, format_)
        self.panel = weights
        self.blocks = blocks
        self.x = x
        self.steps = steps
        self.sums = sums
        self.out = out

    def generate(self, rows: int) -> None:
        """In passes over the panel, each over as many of its outputs as there are registers for."""
        vectors = OUTPUTS // self.lanes
        at_once = 2 if self.lanes != 8 or rows <= 2 else 1
        for first in range(0, vectors, at_once):
            self._pass(rows, range(first, first + at_once))

    def _pass(self, rows: int, vectors: range) -> None:
        b = self.builder
        zero = ir.Constant(self.floats, [0.0] * self.lanes)
        totals = {(r, v): self.variable(self.floats) for r in range(rows) for v in vectors}
        for total in totals.values():
            b.store(zero, total)
        sizes = [b.mul(self.blocks, self.index(size)) for size in (BLOCK, 4, 8)]
        x = [self.row(self.x, sizes[0], r) for r in range(rows)]
        steps = [self.row(self.steps, sizes[1], r) for r in range(rows)]
        sums = [self.row(self.sums, sizes[2], r) for r in range(rows)]
        format_ = self.format
        if format_.two_level:
            supers = b.udiv(self.blocks, self.index(SUPER))
            size = format_.header_bytes + SUPER * format_.block_bytes
            with loop(b, supers) as outer:
                head = b.add(self.panel, b.mul(outer, self.index(size)))
                scale, least = self.heads(head, vectors)
                first = b.add(head, self.index(format_.header_bytes))
                with loop(b, self.index(SUPER)) as within:
                    number = b.add(b.mul(outer, self.index(SUPER)), within)
                    block = b.add(first, b.mul(within, self.index(format_.block_bytes)))
                    self._block(block, number, x, steps, sums, totals, vectors, scale, least)
        else:
            with loop(b, self.blocks) as number:
                block = b.add(self.panel, b.mul(number, self.index(format_.block_bytes)))
                self._block(block, number, x, steps, sums, totals, vectors, {}, {})
        for (r, v), total in totals.items():
            self.store(b.load(total), self.out, 4 * (OUTPUTS * r + self.lanes * v))

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
        signed = format_.bits == 8 and (self.cpu is AVX2 or self.cpu.signed)
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
                if signed:
                    weights = self.flip(weights)
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
            x = self.call("llvm.x86.avx2.psign.b", self.bytes, x, u)
            u = self.call("llvm.abs.v32i8", self.bytes, u, ir.Constant(I1, 0))
        return self.pairs(u, x)
