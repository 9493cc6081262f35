"""Vector instructions as LLVM IR, and what reads a panel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from llvmlite import ir

from model.cpu.blocks.layout import OUTPUTS, PLANE, QUAD, Format
from model.cpu.blocks.tiles.cpus import AVX2, NEON_DOT, NEON_I8MM, PORTABLE, Instructions

I1 = ir.IntType(1)
I8 = ir.IntType(8)
I16 = ir.IntType(16)
I32 = ir.IntType(32)
I64 = ir.IntType(64)
F16 = ir.HalfType()
F32 = ir.FloatType()


@contextlib.contextmanager
def function(module: ir.Module, name: str, count: int) -> Iterator[tuple[ir.IRBuilder, Any]]:
    """A function of so many whole numbers, which returns nothing: its builder and arguments."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * count)
    made = ir.Function(module, kind, name)
    builder = ir.IRBuilder(made.append_basic_block("entry"))
    yield builder, made.args
    builder.ret_void()


@contextlib.contextmanager
def loop(builder: ir.IRBuilder, count: Any) -> Iterator[Any]:
    """The body of a loop; its index, from 0 until the count."""
    b = builder
    before = b.block
    head, body, after = (b.append_basic_block(f"loop.{part}") for part in ("", "body", "after"))
    b.branch(head)
    b.position_at_end(head)
    index = b.phi(I64)
    index.add_incoming(ir.Constant(I64, 0), before)
    b.cbranch(b.icmp_signed("<", index, count), body, after)
    b.position_at_end(body)
    yield index
    index.add_incoming(b.add(index, ir.Constant(I64, 1), flags=["nsw"]), b.block)
    b.branch(head)
    b.position_at_end(after)


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
        with function(b.module, f"{b.function.name}.{n}", len(args)) as (inner, inner_args):
            inner.function.linkage = "internal"
            inner.function.attributes.add("noinline")
            write(inner, kind, *inner_args)
        block = b.append_basic_block(f"case.{n}")
        choice.add_case(ir.Constant(I64, n), block)
        b.position_at_end(block)
        b.call(inner.function, args)
        b.branch(after)
    b.position_at_end(after)


class Code:
    """Writes vector instructions."""

    def __init__(self, builder: ir.IRBuilder, cpu: Instructions, lanes: int = 0) -> None:
        """lanes: of a vector; 0 are as many as the CPU has."""
        self.builder = builder
        self.cpu = cpu
        lanes = lanes or cpu.lanes
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
        sum of 16 bits on AVX2; where the CPU takes signed numbers alone, both are."""
        if self.cpu is AVX2:
            return self.add_pairs(total, self.pairs(unsigned, signed))
        b = self.builder
        if self.cpu.name == PORTABLE.name:
            return b.add(total, self._sum_products(unsigned, signed))
        if self.cpu in (NEON_DOT, NEON_I8MM):
            unsigned, signed = (b.bitcast(each, self.bytes) for each in (unsigned, signed))
            name = f"llvm.aarch64.neon.{'sdot' if self.cpu.signed else 'usdot'}.v4i32.v16i8"
            return self.call(name, self.ints, total, unsigned, signed)
        name = f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
        unsigned, signed = (b.bitcast(each, self.ints) for each in (unsigned, signed))
        return self.call(name, self.ints, total, unsigned, signed)

    def _sum_products(self, unsigned: Any, signed: Any) -> Any:
        """Sums of four products each, without instructions for it: each product fits into 16 bits,
        for no activation is -128."""
        b = self.builder
        unsigned, signed = (b.bitcast(each, self.shorts) for each in (unsigned, signed))
        eight = ir.Constant(self.shorts, [8] * self.shorts.count)
        widened = b.ashr if self.cpu.signed else b.lshr
        even = b.mul(widened(b.shl(unsigned, eight), eight), b.ashr(b.shl(signed, eight), eight))
        odd = b.mul(widened(unsigned, eight), b.ashr(signed, eight))
        sixteen = ir.Constant(self.ints, [16] * self.lanes)
        sums = []
        for each in (even, odd):
            whole = b.bitcast(each, self.ints)
            low = b.ashr(b.shl(whole, sixteen), sixteen)
            sums.append(b.add(low, b.ashr(whole, sixteen)))
        return b.add(*sums)

    def flip(self, numbers: Any) -> Any:
        """8-bit numbers less 128: unsigned ones become signed, and signed ones unsigned."""
        whole = self.builder.bitcast(numbers, self.bytes)
        return self.builder.xor(whole, ir.Constant(self.bytes, [128] * self.bytes.count))

    def pairs(self, unsigned: Any, signed: Any) -> Any:
        """AVX2: sums of two products each, 16 bits."""
        return self.call("llvm.x86.avx2.pmadd.ub.sw", self.shorts, unsigned, signed)

    def add_pairs(self, total: Any, pairs: Any) -> Any:
        ones = ir.Constant(self.shorts, [1] * self.shorts.count)
        widened = self.call("llvm.x86.avx2.pmadd.wd", self.ints, pairs, ones)
        return self.builder.add(total, widened)

    def variable(self, kind: ir.Type) -> Any:
        """Where a value of a type is kept: in a register, after LLVM's first pass."""
        with self.builder.goto_entry_block():
            return self.builder.alloca(kind)

    def row(self, address: Any, stride: Any, row: int) -> Any:
        b = self.builder
        return b.add(address, b.mul(stride, self.index(row)))

    def index(self, value: int) -> Any:
        return ir.Constant(I64, value)

    def call(self, name: str, kind: ir.Type, *args: Any) -> Any:
        module = self.builder.module
        called = module.globals.get(name)
        if called is None:
            called = ir.Function(module, ir.FunctionType(kind, [arg.type for arg in args]), name)
        return self.builder.call(called, args)

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

    def __init__(self, builder: ir.IRBuilder, cpu: Instructions, format_: Format) -> None:
        super().__init__(builder, cpu)
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
