"""The tile of a product: a few rows of activations times one panel of weights, as vector
instructions.

Every float is the result of the same operations in the same order, whatever the CPU and however
many rows: whole numbers are summed exactly within a block, and blocks are added one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from model.cpu.blocks.layout import (
    BLOCK,
    FORMATS,
    LARGEST,
    OUTPUTS,
    PLANE,
    QUAD,
    QUADS,
    SMALLEST,
    SUPER,
    Format,
)
from model.cpu.interleaved.intrinsics import AVX2, AVX512_VNNI, CHOSEN, F32, I8, I16, I32, I64

F16 = ir.HalfType()
I1 = ir.IntType(1)
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


def switch(
    builder: ir.IRBuilder, number: Any, kinds: Sequence[Any], write: Any, args: Sequence[Any]
) -> None:
    """Calls the one of some functions of whole numbers that has the number; write(builder, kind,
    *args) writes one. Each is a function of its own, for the time that the compiler takes grows
    faster than a function."""
    b = builder
    after = b.append_basic_block("after")
    choice = b.switch(number, after)
    for n, kind in enumerate(kinds):
        name = b.module.get_unique_name(f"{b.function.name[:20]}.{n}")
        function = ir.Function(b.module, ir.FunctionType(ir.VoidType(), [I64] * len(args)), name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        inner = ir.IRBuilder(function.append_basic_block("entry"))
        write(inner, kind, *function.args)
        inner.ret_void()
        block = b.append_basic_block(f"case.{n}")
        choice.add_case(ir.Constant(I64, n), block)
        b.position_at_end(block)
        b.call(function, args)
        b.branch(after)
    b.position_at_end(after)


class Code:
    """Writes vector instructions."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        assert CHOSEN is not None
        self.builder = builder
        self.cpu = CHOSEN
        lanes = self.cpu.lanes
        self.lanes = lanes
        self.ints = ir.VectorType(I32, lanes)
        self.floats = ir.VectorType(F32, lanes)
        self.halves = ir.VectorType(F16, lanes)
        self.bytes = ir.VectorType(I8, 4 * lanes)
        self.shorts = ir.VectorType(I16, 2 * lanes)

    def fma(self, a: Any, by: Any, more: Any) -> Any:
        return self.call(f"llvm.fma.v{self.lanes}f32", self.floats, a, by, more)

    def add_products(self, total: Any, unsigned: Any, signed: Any) -> Any:
        """Adds four products of 8-bit numbers to each 32-bit sum. Each two of the products need a
        sum of 16 bits on AVX2."""
        if self.cpu is AVX2:
            return self.add_pairs(total, self.pairs(unsigned, signed))
        b = self.builder
        name = f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
        unsigned, signed = (b.bitcast(each, self.ints) for each in (unsigned, signed))
        return self.call(name, self.ints, total, unsigned, signed)

    def pairs(self, unsigned: Any, signed: Any) -> Any:
        """AVX2: sums of two products each, 16 bits."""
        return self.call("llvm.x86.avx2.pmadd.ub.sw", self.shorts, unsigned, signed)

    def add_pairs(self, total: Any, pairs: Any) -> Any:
        ones = ir.Constant(self.shorts, [1] * self.shorts.count)
        widened = self.call("llvm.x86.avx2.pmadd.wd", self.ints, pairs, ones)
        return self.builder.add(total, widened)

    def row(self, address: Any, stride: Any, row: int) -> Any:
        b = self.builder
        return b.add(address, b.mul(stride, self.index(row)))

    def index(self, value: int) -> Any:
        return ir.Constant(I64, value)

    def call(self, name: str, kind: ir.Type, *args: Any) -> Any:
        function = ir.FunctionType(kind, [arg.type for arg in args])
        return self.builder.call(
            cgutils.get_or_insert_function(self.builder.module, function, name), args
        )

    def pointer(self, address: Any, offset: int, kind: ir.Type) -> Any:
        b = self.builder
        return b.inttoptr(b.add(address, ir.Constant(I64, offset)), kind.as_pointer())

    def load(self, address: Any, offset: int, kind: ir.Type) -> Any:
        return self.builder.load(self.pointer(address, offset, kind), align=1)

    def store(self, value: Any, address: Any, offset: int) -> None:
        self.builder.store(value, self.pointer(address, offset, value.type), align=1)

    def spread(self, value: Any, kind: ir.VectorType) -> Any:
        b = self.builder
        one = b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, kind.count), [0] * kind.count)
        return b.shuffle_vector(one, one, zeros)


class Panel(Code):
    """Reads what a panel holds."""

    def __init__(self, builder: ir.IRBuilder, format_: Format) -> None:
        super().__init__(builder)
        self.format = format_

    def numbers(self, block: Any, quad: int, v: int, loaded: dict[int, Any]) -> Any:
        """One quad of columns of the rows of a vector, as unsigned bytes in a vector of ints.

        loaded: keeps what was read for the quad before, by v.
        """
        b = self.builder
        size = QUAD * OUTPUTS
        if self.format.bits == 8:
            return self.load(block, size * quad + 4 * self.lanes * v, self.ints)
        if quad % 2 == 0:
            loaded[v] = self.load(block, size * (quad // 2) + 4 * self.lanes * v, self.ints)
        whole = loaded[v]
        if quad % 2:
            whole = b.lshr(whole, ir.Constant(self.ints, [4] * self.lanes))
        whole = b.and_(whole, ir.Constant(self.ints, [0x0F0F0F0F] * self.lanes))
        for bit in range(4, self.format.bits):
            at = 4 * PLANE + (bit - 4) * PLANE + size // 8 * quad + self.lanes // 2 * v
            plane = self.load(block, at, ir.IntType(4 * self.lanes))
            mask = b.bitcast(plane, ir.VectorType(I1, 4 * self.lanes))
            ones = ir.Constant(self.bytes, [1 << bit] * self.bytes.count)
            none = ir.Constant(self.bytes, [0] * self.bytes.count)
            whole = b.or_(whole, b.bitcast(b.select(mask, ones, none), self.ints))
        return whole

    def heads(self, address: Any, vectors: range) -> tuple[dict[int, Any], dict[int, Any]]:
        """The scales, and the minimums, of a super-block that begins at an address."""
        scale = {v: self.half(address, 2 * v * self.lanes) for v in vectors}
        if not self.format.minimum:
            return scale, {}
        return scale, {v: self.half(address, 2 * (OUTPUTS + v * self.lanes)) for v in vectors}

    def factor(self, block: Any, part: int, v: int, scale: dict[int, Any]) -> Any:
        """The scales of a part of a block's columns."""
        at = self.format.number_bytes
        if not self.format.two_level:
            return self.half(block, at + 2 * v * self.lanes)
        inner = self.byte(block, at + OUTPUTS * part + v * self.lanes, signed=True)
        return self.builder.fmul(inner, scale[v])

    def minimum(self, block: Any, v: int, least: dict[int, Any]) -> Any:
        at = self.format.number_bytes + self.format.scale_bytes
        if not self.format.two_level:
            return self.half(block, at + 2 * v * self.lanes)
        inner = self.byte(block, at + v * self.lanes, signed=False)
        return self.builder.fmul(inner, least[v])

    def half(self, address: Any, offset: int) -> Any:
        return self.builder.fpext(self.load(address, offset, self.halves), self.floats)

    def byte(self, address: Any, offset: int, *, signed: bool) -> Any:
        b = self.builder
        part = self.load(address, offset, ir.VectorType(I8, self.lanes))
        whole = b.sext(part, self.ints) if signed else b.zext(part, self.ints)
        return b.sitofp(whole, self.floats)


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


@intrinsic
def exchange(typing: Any, address: Any, old: Any, new: Any) -> Any:
    """Puts a new int64 at an address if the old one is still there, as one with all threads;
    whether it was."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        pair = builder.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate
