"""Products of many rows: rows are rounded once, and some blocks of a panel are widened once, for
all of them (tiles/wide.py)."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from model.cpu.blocks.compiled.intrinsics import call_with, float_rows_at, floats_at, int_rows_at
from model.cpu.blocks.layout import AT_ONCE, BLOCK, OUTPUTS
from model.cpu.blocks.tiles.wide import S_STRIDE, X_STRIDE

# What only compiled code calls.
njit = numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
f32 = np.float32
FLIPPED = 128  # of an activation's bits, which makes it unsigned


@njit
def round_wide(function: int, x: int, blocks: int, place: int, to: Any) -> None:
    """Rounds blocks of a row, which lie together in the wide order: (AT_ONCE blocks, row, block).

    function: address of round_blocks. x: address. place: number of the first block in that order.
    to: addresses of the numbers, the scales, and 8 bytes for each block.
    """
    steps = to[1] + 4 * place
    sums = to[2] + 8 * place
    call_with(function, (x, blocks, to[0] + BLOCK * place, steps, sums, FLIPPED))
    step = floats_at(steps, blocks)
    counted = int_rows_at(sums, blocks, 2)
    least = float_rows_at(sums, blocks, 2)
    for block in range(blocks):
        total = counted[block, 0] + counted[block, 1]
        least[block, 0] = f32(-total) * step[block]


@njit
def add_panel(tiles: Any, panel: Any, blocks: int, rows: Any, x: Any, wide: int, sums: int) -> None:
    """Adds the products of rows with a panel to sums, float32 (count, OUTPUTS).

    tiles: addresses of widen and multiply_wide, and how many rows the latter takes. panel: address,
    number of its format and of its kind of wide blocks. rows: how many there are, the first of
    these, how many these are. x: addresses, as of round_wide's `to`. wide: room for AT_ONCE wide
    blocks.
    """
    widen, multiply, most = tiles
    address, code, kind = panel
    all_rows, first, count = rows
    groups = -(-count // most)  # as large as each other, but for one row
    least = count // groups
    more = count % groups
    for start in range(0, blocks, AT_ONCE):
        at_once = min(AT_ONCE, blocks - start)
        call_with(widen, (code, address, start, at_once, wide))
        chunk = start // AT_ONCE * all_rows + first
        r = 0
        for group in range(groups):
            n = least + 1 if group < more else least
            places = (
                x[0] + X_STRIDE * (chunk + r), x[1] + S_STRIDE * (chunk + r),
                x[2] + 2 * S_STRIDE * (chunk + r), sums + 4 * OUTPUTS * r,
            )  # fmt: skip
            call_with(
                multiply, (kind, n, wide, at_once, places[0], places[1], places[2], places[3])
            )
            r += n
