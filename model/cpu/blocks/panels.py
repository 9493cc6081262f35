"""The tiles as functions, each compiled once, for all who call it by its address: what is inlined
instead is compiled again in every caller. And the rounding of activations for them.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from model.cpu.blocks.layout import BLOCK, OUTPUTS
from model.cpu.blocks.tiles.few import MAX_ROWS, tile
from model.cpu.blocks.tiles.rounding import round_numbers
from model.cpu.blocks.tiles.wide import wide_tile
from model.cpu.blocks.tiles.wide import widen as widen_blocks
from model.cpu.interleaved.intrinsics import CHOSEN, I64

njit = numba.njit(cache=True, nogil=True, error_model="numpy")


def _compiled(count: int) -> Any:
    """Compiles a function of so many whole numbers, where the CPU has instructions for it."""
    if CHOSEN is None:
        return lambda function: None
    signature = types.void(*[types.int64] * count)
    return numba.cfunc(signature, cache=True, error_model="numpy")


@_compiled(9)
def multiply_panel(
    code: int, weights: int, blocks: int, rows: int, x: int, steps: int, sums: int, s_stride: int,
    out: int,
) -> None:  # fmt: skip
    """rows of x times a panel of FORMATS[code] into out (rows, OUTPUTS); see few.tile."""
    first = 0
    stride = blocks * BLOCK
    line = 4 * OUTPUTS
    while first < rows:
        n = min(MAX_ROWS, rows - first)
        tile(
            code, n, weights, blocks, x + first * stride, stride, steps + first * s_stride,
            sums + 2 * first * s_stride, s_stride, out + first * line, line,
        )  # fmt: skip
        first += n


@_compiled(5)
def widen(code: int, panel: int, first: int, blocks: int, into: int) -> None:
    """See wide.widen."""
    widen_blocks(code, panel, first, blocks, into)


@_compiled(8)
def multiply_wide(
    kind: int, rows: int, wide: int, blocks: int, x: int, steps: int, least: int, out: int
) -> None:
    """See wide.wide_tile."""
    wide_tile(kind, rows, wide, blocks, x, steps, least, out)


def _by_address(count: int) -> Any:
    """What calls a function of so many whole numbers."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64] * count)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * (count + 1)), generate


@intrinsic
def call_panel(
    typing: Any, address: Any, code: Any, weights: Any, blocks: Any, rows: Any, x: Any, steps: Any,
    sums: Any, s_stride: Any, out: Any,
) -> Any:  # fmt: skip
    """Calls multiply_panel by its address."""
    return _by_address(9)


@intrinsic
def call_widen(
    typing: Any, address: Any, code: Any, panel: Any, first: Any, blocks: Any, into: Any
) -> Any:
    """Calls widen by its address."""
    return _by_address(5)


@intrinsic
def call_wide(
    typing: Any, address: Any, kind: Any, rows: Any, wide: Any, blocks: Any, x: Any, steps: Any,
    least: Any, out: Any,
) -> Any:  # fmt: skip
    """Calls multiply_wide by its address."""
    return _by_address(8)


@njit
def round_block(row: Any, start: int, rounded: Any, steps: Any, sums: Any, block: int) -> None:
    """row[start : start + BLOCK] to 8 bits, with its scale and the sums of its halves, into the
    arrays' block of that number."""
    round_numbers(
        row.ctypes.data + 4 * start, rounded.ctypes.data + BLOCK * block,
        steps.ctypes.data + 4 * block, sums.ctypes.data + 8 * block, 0,
    )  # fmt: skip


@njit
def round_row(row: Any, rounded: Any, steps: Any, sums: Any) -> None:
    """A row whose length is a multiple of BLOCK."""
    for block in range(len(row) // BLOCK):
        round_block(row, BLOCK * block, rounded, steps, sums, block)
