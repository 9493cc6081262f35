"""The phases of a pass over many rows, but for attention. What a product reads is rounded once, in
a phase of its own, and each piece is a panel for up to TOGETHER rows."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from model.cpu.blocks.compiled.attention import keep
from model.cpu.blocks.compiled.common import add_bias, read_row
from model.cpu.blocks.compiled.floats import activate
from model.cpu.blocks.compiled.intrinsics import (
    float_rows_at,
    floats_at,
    longs_at,
    number_at,
)
from model.cpu.blocks.compiled.rows import add_panel, round_wide
from model.cpu.blocks.compiled.words import (
    ACTIVATION,
    ADDRESS,
    AT_A_TIME,
    ATTENTION,
    CODE,
    DIM,
    DOWN,
    FACTOR,
    FIRST,
    HEADS,
    HIDDEN,
    INNER,
    INNER_STEPS,
    INNER_SUMS,
    KEEPING,
    KIND,
    KV_HEADS,
    MULTIPLY_WIDE,
    NROWS,
    OTHER,
    OUTS,
    PANEL,
    PANELS,
    PIECES,
    QKV,
    READ,
    READ_STEPS,
    READ_SUMS,
    READING,
    ROUND,
    TILE,
    TO_QKV,
    TOGETHER,
    UP_GATED,
    WIDE,
    WIDE_KIND,
    WIDE_ROWS,
    WIDEN,
    WIDTH,
    X,
)
from model.cpu.blocks.layout import AT_ONCE, BLOCK, OUTPUTS, WIDTHS

# What only compiled code calls.
njit = numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
f32 = np.float32


@njit
def pieces_of(control: Any, phase: Any) -> Any:
    kind = phase[KIND]
    rows = control[NROWS]
    if kind in (READING, KEEPING):
        return -(-rows // AT_A_TIME)
    if kind == ATTENTION:
        group = control[HEADS] // control[KV_HEADS]
        return control[KV_HEADS] * -(-rows * group // WIDTHS[-1])
    return phase[PIECES] * -(-rows // TOGETHER)


@njit
def read_piece(control: Any, phase: Any, own: Any, piece: int) -> None:
    """Norms and rounds some rows of the residual stream, or rounds what attention gave."""
    rows = control[NROWS]
    width = phase[WIDTH]
    blocks = width // BLOCK
    to = (control[READ], control[READ_STEPS], control[READ_SUMS])
    for r in range(piece * AT_A_TIME, min(rows, (piece + 1) * AT_A_TIME)):
        row = read_row(control, phase, own, r)
        for start in range(0, blocks, AT_ONCE):
            place = (start // AT_ONCE * rows + r) * AT_ONCE
            some = min(AT_ONCE, blocks - start)
            round_wide(control[ROUND], row + 4 * BLOCK * start, some, place, to)


@njit
def keep_piece(control: Any, phase: Any, own: Any, piece: int) -> None:
    """Puts the keys and values of some rows into the cache."""
    for r in range(piece * AT_A_TIME, min(control[NROWS], (piece + 1) * AT_A_TIME)):
        for head in range(control[KV_HEADS]):
            keep(control, phase, own, head, r)


@njit
def rows_of(control: Any, phase: Any, piece: int) -> Any:
    """The number of a piece's panel, its first row and how many it has."""
    panels = phase[PIECES]
    first = piece // panels * TOGETHER
    return piece % panels, first, min(TOGETHER, control[NROWS] - first)


@njit
def multiply(
    control: Any, phase: Any, own: Any, panel: Any, first: int, count: int, tile: int
) -> None:
    """Some rows times a panel, and a bias, into a tile (count, OUTPUTS)."""
    x = (control[READ], control[READ_STEPS], control[READ_SUMS])
    if phase[KIND] == DOWN:
        x = (control[INNER], control[INNER_STEPS], control[INNER_SUMS])
    numbers = float_rows_at(tile, count, OUTPUTS)
    for r in range(count):
        for j in range(OUTPUTS):
            numbers[r, j] = f32(0)
    tiles = (control[WIDEN], control[MULTIPLY_WIDE], control[WIDE_ROWS])
    address = (panel[ADDRESS], panel[CODE], panel[WIDE_KIND])
    rows = (control[NROWS], first, count)
    add_panel(tiles, address, phase[WIDTH] // BLOCK, rows, x, own[WIDE], tile)
    add_bias(phase, panel, count, tile)


@njit
def product_piece(control: Any, phase: Any, own: Any, piece: int) -> None:
    """A panel of a product for some rows, into what its kind says."""
    number, first, count = rows_of(control, phase, piece)
    panel = longs_at(phase[PANELS] + 8 * PANEL * number, PANEL)
    multiply(control, phase, own, panel, first, count, own[TILE])
    out = control[X]
    stride = control[HIDDEN]
    if phase[KIND] == TO_QKV:
        out = control[QKV]
        stride = (control[HEADS] + 2 * control[KV_HEADS]) * control[DIM]
    factor = number_at(phase, FACTOR)
    outs = panel[OUTS]
    for r in range(count):
        numbers = floats_at(own[TILE] + 4 * OUTPUTS * r, outs)
        into = floats_at(out + 4 * (stride * (first + r) + panel[FIRST]), outs)
        if phase[KIND] == TO_QKV:
            for j in range(outs):
                into[j] = numbers[j] * factor
        else:
            for j in range(outs):
                into[j] += numbers[j] * factor


@njit
def up_piece(control: Any, phase: Any, own: Any, piece: int) -> None:
    """A panel of the upper product with its activation for some rows, rounded to a block each."""
    number, first, count = rows_of(control, phase, piece)
    panel = longs_at(phase[PANELS] + 8 * PANEL * number, PANEL)
    multiply(control, phase, own, panel, first, count, own[TILE])
    inner = floats_at(own[TILE], count * OUTPUTS)
    activate(inner, control[ACTIVATION])
    if phase[KIND] == UP_GATED:
        other = longs_at(phase[PANELS] + 8 * PANEL * (phase[PIECES] + number), PANEL)
        multiply(control, phase, own, other, first, count, own[OTHER])
        by = floats_at(own[OTHER], count * OUTPUTS)
        for j in range(count * OUTPUTS):
            inner[j] *= by[j]
    to = (control[INNER], control[INNER_STEPS], control[INNER_SUMS])
    chunk = number // AT_ONCE * control[NROWS]
    for r in range(count):
        for j in range(panel[OUTS], OUTPUTS):
            inner[r * OUTPUTS + j] = f32(0)
        place = (chunk + first + r) * AT_ONCE + number % AT_ONCE
        round_wide(control[ROUND], own[TILE] + 4 * OUTPUTS * r, 1, place, to)
