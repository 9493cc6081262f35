"""What numba has no functions for, as LLVM IR: what threads need to share work, calls of functions
by their addresses, and arrays at addresses."""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

I32 = ir.IntType(32)
I64 = ir.IntType(64)


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
        name, numbers = "llvm.x86.sse2.pause", []
        if builder.module.triple.startswith(("aarch64", "arm64")):
            name, numbers = "llvm.aarch64.hint", [ir.Constant(I32, 1)]  # yield
        kind = ir.FunctionType(ir.VoidType(), [number.type for number in numbers])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), numbers)
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
def call_with(typing: Any, function: Any, arguments: Any) -> Any:
    """Calls a function at an address, which takes a tuple's whole numbers and returns nothing."""
    count = len(arguments)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64] * count)
        function = builder.inttoptr(args[0], kind.as_pointer())
        builder.call(function, cgutils.unpack_tuple(builder, args[1], count))
        return context.get_dummy_value()

    return types.void(types.int64, types.UniTuple(types.int64, count)), generate


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
def half_rows_at(typing: Any, address: Any, rows: Any, columns: Any) -> Any:
    """The half-precision numbers (rows, columns) at an address, as uint16: see to_half."""
    return _array_at(types.uint16, 2)


@intrinsic
def byte_quads_at(typing: Any, address: Any, quads: Any, rows: Any, columns: Any) -> Any:
    """The int8 numbers (quads, rows, columns) at an address."""
    return _array_at(types.int8, 3)


@intrinsic
def int_rows_at(typing: Any, address: Any, rows: Any, columns: Any) -> Any:
    """The int32 numbers (rows, columns) at an address."""
    return _array_at(types.int32, 2)


@intrinsic
def longs_at(typing: Any, address: Any, count: Any) -> Any:
    """The int64 numbers (count,) at an address."""
    return _array_at(types.int64, 1)


@intrinsic
def long_rows_at(typing: Any, address: Any, rows: Any, columns: Any) -> Any:
    """The int64 numbers (rows, columns) at an address."""
    return _array_at(types.int64, 2)


@intrinsic
def to_half(typing: Any, number: Any) -> Any:
    """The bits of the half-precision number that is nearest to a float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
def number_at(words: Any, word: int) -> Any:
    """The float32 in the first half of a word."""
    return floats_at(words.ctypes.data + 8 * word, 1)[0]
