"""The product of rows with one panel of any format, compiled once, for all who call it by its
address: what is inlined instead is compiled again in every caller."""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from model.cpu.blocks.layout import BLOCK, FORMATS, OUTPUTS
from model.cpu.blocks.tiles import MAX_ROWS, make_tile
from model.cpu.interleaved.intrinsics import I64

njit = numba.njit(cache=True, nogil=True, error_model="numpy")


def _tile_of(code: int) -> Any:
    tile = make_tile(FORMATS[code])

    @njit
    def run(
        rows: int, weights: int, blocks: int, x: int, x_stride: int, steps: int, sums: int,
        s_stride: int, out: int, out_stride: int,
    ) -> None:  # fmt: skip
        tile(rows, weights, blocks, x, x_stride, steps, sums, s_stride, out, out_stride)

    return run


tile_0, tile_1, tile_2, tile_3, tile_4, tile_5, tile_6, tile_7 = map(_tile_of, range(len(FORMATS)))


@numba.cfunc(types.void(*[types.int64] * 9), cache=True, error_model="numpy")
def multiply_panel(
    code: int, weights: int, blocks: int, rows: int, x: int, steps: int, sums: int, s_stride: int,
    out: int,
) -> None:  # fmt: skip
    """rows of x times a panel of the format with that number into out (rows, OUTPUTS); see
    tiles.make_tile."""
    first = 0
    stride = blocks * BLOCK
    line = 4 * OUTPUTS
    while first < rows:
        n = min(MAX_ROWS, rows - first)
        x_at = x + first * stride
        steps_at = steps + first * s_stride
        sums_at = sums + 2 * first * s_stride
        out_at = out + first * line
        if code == 0:
            tile_0(n, weights, blocks, x_at, stride, steps_at, sums_at, s_stride, out_at, line)
        elif code == 1:
            tile_1(n, weights, blocks, x_at, stride, steps_at, sums_at, s_stride, out_at, line)
        elif code == 2:
            tile_2(n, weights, blocks, x_at, stride, steps_at, sums_at, s_stride, out_at, line)
        elif code == 3:
            tile_3(n, weights, blocks, x_at, stride, steps_at, sums_at, s_stride, out_at, line)
        elif code == 4:
            tile_4(n, weights, blocks, x_at, stride, steps_at, sums_at, s_stride, out_at, line)
        elif code == 5:
            tile_5(n, weights, blocks, x_at, stride, steps_at, sums_at, s_stride, out_at, line)
        elif code == 6:
            tile_6(n, weights, blocks, x_at, stride, steps_at, sums_at, s_stride, out_at, line)
        else:
            tile_7(n, weights, blocks, x_at, stride, steps_at, sums_at, s_stride, out_at, line)
        first += n


@intrinsic
def call_panel(
    typing: Any, address: Any, code: Any, weights: Any, blocks: Any, rows: Any, x: Any, steps: Any,
    sums: Any, s_stride: Any, out: Any,
) -> Any:  # fmt: skip
    """Calls multiply_panel by its address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64] * 9)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), generate
