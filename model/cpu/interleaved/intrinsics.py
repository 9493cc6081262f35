"""Vector instructions that numba has no functions for, as LLVM IR: the tile of a product of 8-bit
numbers, and what threads need to share work.

What the CPU has decides on the instructions, once, when this module is loaded: FEATURES.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from model.cpu.interleaved.layout import OUTPUTS, QUAD

I8 = ir.IntType(8)
I16 = ir.IntType(16)
I32 = ir.IntType(32)
I64 = ir.IntType(64)
F32 = ir.FloatType()


class Instructions(NamedTuple):
    """How a CPU multiplies 8-bit numbers."""

    name: str
    lanes: int  # 32-bit sums in a vector
    registers: int  # vectors of sums that a tile may hold
    unsigned: bool  # activations are unsigned, 128 more than their value
    max_rows: int  # of a tile


AVX512_VNNI = Instructions("avx512vnni", 16, 24, True, 12)
AVX_VNNI = Instructions("avxvnni", 8, 12, True, 6)
AVX2 = Instructions("avx2", 8, 8, False, 4)


def instructions_of(features: str) -> Instructions | None:
    """The fastest instructions among a CPU's features, "+avx2,-amx-int8,..."; None without any."""
    found = set(features.split(","))
    if {"+avx512vnni", "+avx512bw", "+avx512vl"} <= found:
        return AVX512_VNNI
    if "+avxvnni" in found:
        return AVX_VNNI
    if "+avx2" in found:
        return AVX2
    return None


def _features() -> str:
    """Of the CPU that numba compiles for."""
    if config.CPU_FEATURES is not None:
        return str(config.CPU_FEATURES)
    if config.CPU_NAME not in (None, "host"):
        return ""
    return str(binding.get_host_cpu_features().flatten())


CHOSEN = instructions_of(_features())


@intrinsic
def tile(
    typing: Any, rows: Any, weights: Any, x: Any, quads: Any, sums: Any, scale: Any, steps: Any,
    out: Any, stride: Any,
) -> Any:  # fmt: skip
    """rows (1 to max_rows) rows of activations times one panel of weights.

    All are whole numbers, most of them addresses. weights: (quads, OUTPUTS, QUAD) int8. x: (quads,
    rows, QUAD) of 8 bits. sums (OUTPUTS,) int32 and scale (OUTPUTS,) float32, of the weights. steps
    (rows,) float32, of the activations. out: float32, each row `stride` bytes after the one before.
    """
    signature = types.void(*[types.int64] * 9)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        assert CHOSEN is not None
        _Tiles(builder, CHOSEN, *args).generate()
        return context.get_dummy_value()

    return signature, generate


class _Tiles:
    """Writes the code of a tile of each number of rows."""

    def __init__(
        self, builder: ir.IRBuilder, cpu: Instructions, rows: Any, weights: Any, x: Any,
        quads: Any, sums: Any, scale: Any, steps: Any, out: Any, stride: Any,
    ) -> None:  # fmt: skip
        self.builder = builder
        self.cpu = cpu
        self.rows = rows
        self.weights = weights
        self.x = x
        self.quads = quads
        self.sums = sums
        self.scale = scale
        self.steps = steps
        self.out = out
        self.stride = stride
        self.ints = ir.VectorType(I32, cpu.lanes)
        self.floats = ir.VectorType(F32, cpu.lanes)
        self.bytes = ir.VectorType(I8, 4 * cpu.lanes)
        self.halves = ir.VectorType(I16, 2 * cpu.lanes)

    def generate(self) -> None:
        b = self.builder
        after = b.append_basic_block("tile.after")
        switch = b.switch(self.rows, after)
        for rows in range(1, self.cpu.max_rows + 1):
            block = b.append_basic_block(f"tile.{rows}")
            switch.add_case(ir.Constant(I64, rows), block)
            b.position_at_end(block)
            self._tile(rows)
            b.branch(after)
        b.position_at_end(after)

    def _tile(self, rows: int) -> None:
        """In passes over the panel, each over as many of its outputs as there are registers for."""
        vectors = OUTPUTS // self.cpu.lanes
        at_once = vectors
        while at_once > 1 and at_once * rows > self.cpu.registers:
            at_once //= 2
        for first in range(0, vectors, at_once):
            self._pass(rows, range(first, first + at_once))

    def _pass(self, rows: int, vectors: range) -> None:
        b = self.builder
        zero = ir.Constant(self.ints, [0] * self.cpu.lanes)
        totals = {(r, v): cgutils.alloca_once_value(b, zero) for r in range(rows) for v in vectors}
        for total in totals.values():  # the first value is stored where the function begins
            b.store(zero, total)
        size = 4 * self.cpu.lanes
        with cgutils.for_range(b, self.quads) as loop:
            panel = b.add(self.weights, b.mul(loop.index, ir.Constant(I64, QUAD * OUTPUTS)))
            activations = b.add(self.x, b.mul(loop.index, ir.Constant(I64, QUAD * rows)))
            weights = {v: self._load(panel, v * size, self.ints) for v in vectors}
            for r in range(rows):
                four = self._spread(self._load(activations, QUAD * r, I32), self.ints)
                for v in vectors:
                    total = b.load(totals[r, v])
                    b.store(self._add_products(total, four, weights[v]), totals[r, v])
        for r in range(rows):
            step = self._spread(self._load(self.steps, 4 * r, F32), self.floats)
            row = b.add(self.out, b.mul(self.stride, ir.Constant(I64, r)))
            for v in vectors:
                self._finish(b.load(totals[r, v]), v * size, step, row)

    def _add_products(self, total: Any, x: Any, weights: Any) -> Any:
        b = self.builder
        if self.cpu.name == "avx512vnni":
            return self._call("llvm.x86.avx512.vpdpbusd.512", self.ints, total, x, weights)
        if self.cpu.name == "avxvnni":
            return self._call("llvm.x86.avx512.vpdpbusd.256", self.ints, total, x, weights)
        # The sum of two products fits into 16 bits, because no number is -128.
        signed = b.bitcast(weights, self.bytes)
        x = b.bitcast(x, self.bytes)
        size = self._call("llvm.abs.v32i8", self.bytes, signed, ir.Constant(ir.IntType(1), 0))
        x = self._call("llvm.x86.avx2.psign.b", self.bytes, x, signed)
        pairs = self._call("llvm.x86.avx2.pmadd.ub.sw", self.halves, size, x)
        ones = ir.Constant(self.halves, [1] * self.halves.count)
        return b.add(total, self._call("llvm.x86.avx2.pmadd.wd", self.ints, pairs, ones))

    def _finish(self, total: Any, offset: int, step: Any, row: Any) -> None:
        """Writes what the whole numbers stand for."""
        b = self.builder
        if self.cpu.unsigned:
            total = b.sub(total, self._load(self.sums, offset, self.ints))
        factor = b.fmul(self._load(self.scale, offset, self.floats), step)
        y = b.fmul(b.sitofp(total, self.floats), factor)
        b.store(y, self._pointer(row, offset, self.floats), align=4)

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
def add_to(typing: Any, address: Any, number: Any) -> Any:
    """Adds to the int64 at an address, as one with all threads, and returns what it was before."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def exchange(typing: Any, address: Any, old: Any, new: Any) -> Any:
    """Puts a new int64 at an address if the old one is still there, as one with all threads;
    whether it was."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        pair = builder.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), generate


@intrinsic
def pause(typing: Any) -> Any:
    """Tells the CPU that a loop waits for another thread."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [])
        name = "llvm.x86.sse2.pause"
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def load_now(typing: Any, address: Any) -> Any:
    """The int64 at an address, as other threads have left it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def call(typing: Any, function: Any, argument: Any) -> Any:
    """Calls a function of the C library at an address, which takes a pointer and returns an int."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(I32, [I64])
        result = builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1]])
        return builder.sext(result, I64)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def call_with(typing: Any, function: Any, arguments: Any) -> Any:
    """Calls a function at an address, which takes a tuple's whole numbers and returns nothing."""
    count = len(arguments)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64] * count)
        function = builder.inttoptr(args[0], kind.as_pointer())
        builder.call(function, cgutils.unpack_tuple(builder, args[1], count))
        return context.get_dummy_value()

    return types.void(types.int64, types.UniTuple(types.int64, count)), generate


@intrinsic
def to_floats(typing: Any, address: Any) -> Any:
    """A pointer to the float32 numbers at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], F32.as_pointer())

    return types.CPointer(types.float32)(types.int64), generate


@intrinsic
def to_bytes(typing: Any, address: Any) -> Any:
    """A pointer to the int8 numbers at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], I8.as_pointer())

    return types.CPointer(types.int8)(types.int64), generate


@intrinsic
def to_ints(typing: Any, address: Any) -> Any:
    """A pointer to the int32 numbers at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], I32.as_pointer())

    return types.CPointer(types.int32)(types.int64), generate


@intrinsic
def to_longs(typing: Any, address: Any) -> Any:
    """A pointer to the int64 numbers at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], I64.as_pointer())

    return types.CPointer(types.int64)(types.int64), generate


def _array_at(number: Any, dimensions: int) -> Any:
    """Makes a function of an address and lengths: an array of what lies there. (numba's own carray
    has a function compiled for each length that is a constant.)"""
    kind = types.Array(number, dimensions, "C")
    size = number.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array = context.make_array(kind)(context, builder)
        item = ir.Constant(I64, size)
        strides = [item]
        for length in args[:1:-1]:
            strides.insert(0, builder.mul(strides[0], length))
        data = builder.inttoptr(args[0], array.data.type)
        populate_array(
            array, data=data, shape=args[1:], strides=strides, itemsize=item, meminfo=None
        )
        return array._getvalue()

    return kind(types.int64, *[types.int64] * dimensions), generate


@intrinsic
def floats_at(typing: Any, address: Any, count: Any) -> Any:
    """The float32 numbers (count,) at an address."""
    return _array_at(types.float32, 1)


@intrinsic
def float_rows_at(typing: Any, address: Any, rows: Any, columns: Any) -> Any:
    """The float32 numbers (rows, columns) at an address."""
    return _array_at(types.float32, 2)


@intrinsic
def longs_at(typing: Any, address: Any, count: Any) -> Any:
    """The int64 numbers (count,) at an address."""
    return _array_at(types.int64, 1)


@intrinsic
def long_rows_at(typing: Any, address: Any, rows: Any, columns: Any) -> Any:
    """The int64 numbers (rows, columns) at an address."""
    return _array_at(types.int64, 2)
