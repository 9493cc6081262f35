"""The tile of a product: a few rows of activations times one panel of weights, as vector
instructions.

Every float is the result of the same operations in the same order, whatever the CPU and however
many rows: whole numbers are summed exactly within a block, and blocks are added one by one.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from model.cpu.blocks.layout import BLOCK, OUTPUTS, PLANE, QUAD, QUADS, SUPER, Format
from model.cpu.interleaved.intrinsics import AVX2, AVX512_VNNI, CHOSEN, F32, I8, I16, I32, I64

F16 = ir.HalfType()
I1 = ir.IntType(1)
MAX_ROWS = 6 if CHOSEN is AVX512_VNNI else 4


def make_tile(format_: Format) -> Any:
    """The tile of a format, for `numba.njit` functions:

        tile(rows, weights, blocks, x, x_stride, steps, sums, s_stride, out, out_stride)

    All are whole numbers, most of them addresses; strides are in bytes. rows: 1 to MAX_ROWS.
    weights: a panel. x: int8, a row of blocks * BLOCK each. steps: float32, the scale of each block
    of x. sums: int32, of each half of a block of x; both with s_stride bytes from row to row times
    one and two. out: float32, OUTPUTS of each row.
    """

    @intrinsic
    def tile(
        typing: Any, rows: Any, weights: Any, blocks: Any, x: Any, x_stride: Any, steps: Any,
        sums: Any, s_stride: Any, out: Any, out_stride: Any,
    ) -> Any:  # fmt: skip
        signature = types.void(*[types.int64] * 10)

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _Tiles(builder, format_, *args).generate()
            return context.get_dummy_value()

        return signature, generate

    return tile


class _Tiles:
    """Writes the code of a format's tile for each number of rows."""

    def __init__(
        self, builder: ir.IRBuilder, format_: Format, rows: Any, weights: Any, blocks: Any, x: Any,
        x_stride: Any, steps: Any, sums: Any, s_stride: Any, out: Any, out_stride: Any,
    ) -> None:  # fmt: skip
        assert CHOSEN is not None
        self.builder = builder
        self.format = format_
        self.cpu = CHOSEN
        self.rows = rows
        self.weights = weights
        self.blocks = blocks
        self.x = x
        self.x_stride = x_stride
        self.steps = steps
        self.sums = sums
        self.s_stride = s_stride
        self.out = out
        self.out_stride = out_stride
        lanes = self.cpu.lanes
        self.lanes = lanes
        self.ints = ir.VectorType(I32, lanes)
        self.floats = ir.VectorType(F32, lanes)
        self.halves = ir.VectorType(F16, lanes)
        self.bytes = ir.VectorType(I8, 4 * lanes)
        self.shorts = ir.VectorType(I16, 2 * lanes)

    def generate(self) -> None:
        b = self.builder
        after = b.append_basic_block("tile.after")
        switch = b.switch(self.rows, after)
        for rows in range(1, MAX_ROWS + 1):
            block = b.append_basic_block(f"tile.{rows}")
            switch.add_case(ir.Constant(I64, rows), block)
            b.position_at_end(block)
            self._tile(rows)
            b.branch(after)
        b.position_at_end(after)

    def _tile(self, rows: int) -> None:
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
        x = [self._row(self.x, self.x_stride, r) for r in range(rows)]
        steps = [self._row(self.steps, self.s_stride, r) for r in range(rows)]
        sums = [self._row(self.sums, b.mul(self.s_stride, self._int(2)), r) for r in range(rows)]
        format_ = self.format
        if format_.two_level:
            supers = b.udiv(self.blocks, self._int(SUPER))
            size = format_.header_bytes + SUPER * format_.block_bytes
            with cgutils.for_range(b, supers) as outer:
                head = b.add(self.weights, b.mul(outer.index, self._int(size)))
                scale = {v: self._half(head, 2 * v * self.lanes) for v in vectors}
                least = {}
                if format_.minimum:
                    least = {v: self._half(head, 2 * (OUTPUTS + v * self.lanes)) for v in vectors}
                first = b.add(head, self._int(format_.header_bytes))
                with cgutils.for_range(b, self._int(SUPER)) as loop:
                    number = b.add(b.mul(outer.index, self._int(SUPER)), loop.index)
                    block = b.add(first, b.mul(loop.index, self._int(format_.block_bytes)))
                    self._block(block, number, x, steps, sums, totals, vectors, scale, least)
        else:
            with cgutils.for_range(b, self.blocks) as loop:
                block = b.add(self.weights, b.mul(loop.index, self._int(format_.block_bytes)))
                self._block(block, loop.index, x, steps, sums, totals, vectors, {}, {})
        for (r, v), total in totals.items():
            row = self._row(self.out, self.out_stride, r)
            b.store(b.load(total), self._pointer(row, 4 * v * self.lanes, self.floats), align=4)

    def _block(
        self, block: Any, number: Any, x: Any, steps: Any, sums: Any, totals: Any, vectors: range,
        scale: Any, least: Any,
    ) -> None:  # fmt: skip
        """Adds one block's products to the totals."""
        b = self.builder
        format_ = self.format
        rows = range(len(x))
        x = [b.add(each, b.mul(number, self._int(BLOCK))) for each in x]
        steps = [self._load(b.add(each, b.mul(number, self._int(4))), 0, F32) for each in steps]
        sums = [b.add(each, b.mul(number, self._int(8))) for each in sums]
        sums = [[self._load(each, 4 * half, I32) for half in range(2)] for each in sums]
        at_scales = format_.number_bytes
        for part in range(format_.scales):
            quads = range(QUADS * part // format_.scales, QUADS * (part + 1) // format_.scales)
            counted = self._counted(block, x, sums, part, quads, vectors)
            for v in vectors:
                if format_.two_level:
                    inner = self._byte(
                        block, at_scales + OUTPUTS * part + v * self.lanes, signed=True
                    )
                    factor = b.fmul(inner, scale[v])
                else:
                    factor = self._half(block, at_scales + 2 * v * self.lanes)
                for r in rows:
                    whole = b.sitofp(counted[r, v], self.floats)
                    by = b.fmul(factor, self._spread(steps[r], self.floats))
                    b.store(self._fma(whole, by, b.load(totals[r, v])), totals[r, v])
        if not format_.minimum:
            return
        at_minimums = at_scales + format_.scale_bytes
        for v in vectors:
            if format_.two_level:
                inner = self._byte(block, at_minimums + v * self.lanes, signed=False)
                minimum = b.fmul(inner, least[v])
            else:
                minimum = self._half(block, at_minimums + 2 * v * self.lanes)
            for r in rows:
                total = b.sitofp(b.neg(b.add(*sums[r])), F32)
                total = self._spread(b.fmul(total, steps[r]), self.floats)
                b.store(self._fma(minimum, total, b.load(totals[r, v])), totals[r, v])

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
                counted[r, v] = self._spread(start, self.ints)
        # Sums of so many quads' pairs of products fit into 16 bits.
        room = 32767 // (2 * 127 * (2**format_.bits - 1)) if not signed else 1
        loaded: dict[int, Any] = {}
        for place, quad in enumerate(quads):
            fours = [self._spread(self._load(x[r], QUAD * quad, I32), self.ints) for r in rows]
            for v in vectors:
                weights = self._weights(block, quad, v, loaded)
                for r in rows:
                    key = (r, v)
                    if self.cpu is not AVX2:
                        lanes = "512" if self.lanes == 16 else "256"
                        name = f"llvm.x86.avx512.vpdpbusd.{lanes}"
                        counted[key] = self._call(name, self.ints, counted[key], weights, fours[r])
                        continue
                    pairs = self._pairs(weights, fours[r], signed)
                    if key in sixteens:
                        pairs = b.add(sixteens.pop(key), pairs)
                    if place % room == room - 1 or quad == quads[-1]:
                        ones = ir.Constant(self.shorts, [1] * self.shorts.count)
                        widened = self._call("llvm.x86.avx2.pmadd.wd", self.ints, pairs, ones)
                        counted[key] = b.add(counted[key], widened)
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
            x = self._call("llvm.x86.avx2.psign.b", self.bytes, x, u)
            u = self._call("llvm.abs.v32i8", self.bytes, u, ir.Constant(I1, 0))
        return self._call("llvm.x86.avx2.pmadd.ub.sw", self.shorts, u, x)

    def _weights(self, block: Any, quad: int, v: int, loaded: dict[int, Any]) -> Any:
        """One quad of columns of the rows of a vector, as unsigned bytes in a vector of ints.

        loaded: keeps what was read for the quad before, by v.
        """
        b = self.builder
        size = QUAD * OUTPUTS
        if self.format.bits == 8:
            return self._load(block, size * quad + 4 * self.lanes * v, self.ints)
        if quad % 2 == 0:
            loaded[v] = self._load(block, size * (quad // 2) + 4 * self.lanes * v, self.ints)
        whole = loaded[v]
        if quad % 2:
            whole = b.lshr(whole, ir.Constant(self.ints, [4] * self.lanes))
        whole = b.and_(whole, ir.Constant(self.ints, [0x0F0F0F0F] * self.lanes))
        for bit in range(4, self.format.bits):
            at = 4 * PLANE + (bit - 4) * PLANE + size // 8 * quad + self.lanes // 2 * v
            plane = self._load(block, at, ir.IntType(4 * self.lanes))
            mask = b.bitcast(plane, ir.VectorType(I1, 4 * self.lanes))
            ones = ir.Constant(self.bytes, [1 << bit] * self.bytes.count)
            none = ir.Constant(self.bytes, [0] * self.bytes.count)
            whole = b.or_(whole, b.bitcast(b.select(mask, ones, none), self.ints))
        return whole

    def _half(self, address: Any, offset: int) -> Any:
        return self.builder.fpext(self._load(address, offset, self.halves), self.floats)

    def _byte(self, address: Any, offset: int, *, signed: bool) -> Any:
        b = self.builder
        part = self._load(address, offset, ir.VectorType(I8, self.lanes))
        whole = b.sext(part, self.ints) if signed else b.zext(part, self.ints)
        return b.sitofp(whole, self.floats)

    def _fma(self, a: Any, by: Any, more: Any) -> Any:
        return self._call(f"llvm.fma.v{self.lanes}f32", self.floats, a, by, more)

    def _row(self, address: Any, stride: Any, row: int) -> Any:
        b = self.builder
        return b.add(address, b.mul(stride, self._int(row)))

    def _int(self, value: int) -> Any:
        return ir.Constant(I64, value)

    def _call(self, name: str, kind: ir.Type, *args: Any) -> Any:
        function = ir.FunctionType(kind, [arg.type for arg in args])
        return self.builder.call(
            cgutils.get_or_insert_function(self.builder.module, function, name), args
        )

    def _pointer(self, address: Any, offset: int, kind: ir.Type) -> Any:
        b = self.builder
        return b.inttoptr(b.add(address, ir.Constant(I64, offset)), kind.as_pointer())

    def _load(self, address: Any, offset: int, kind: ir.Type) -> Any:
        return self.builder.load(self._pointer(address, offset, kind), align=1)

    def _spread(self, value: Any, kind: ir.VectorType) -> Any:
        b = self.builder
        one = b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count)
        return b.shuffle_vector(one, one, zeros)


@intrinsic
def exchange(typing: Any, address: Any, old: Any, new: Any) -> Any:
    """Puts a new int64 at an address if the old one is still there, as one with all threads;
    whether it was."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        pair = builder.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate
