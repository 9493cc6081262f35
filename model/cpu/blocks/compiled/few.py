"""The products of a pass over few rows, which take panels as they are. Norms and rounding every
thread does for itself, which is faster than to wait for another one."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from model.cpu.blocks.compiled.common import add_bias, read_row
from model.cpu.blocks.compiled.floats import activate
from model.cpu.blocks.compiled.intrinsics import (
    call_with,
    floats_at,
    longs_at,
    number_at,
)
from model.cpu.blocks.compiled.words import (
    ACTIVATION,
    ADDRESS,
    ATTENTION,
    CODE,
    COUNT,
    DIM,
    DOWN,
    FACTOR,
    FIRST,
    HEAD,
    HEADS,
    HIDDEN,
    INNER,
    INNER_STEPS,
    INNER_SUMS,
    KEPT,
    KIND,
    KV_HEADS,
    LOGITS,
    MULTIPLY,
    NROWS,
    OTHER,
    OUTS,
    PANEL,
    PANELS,
    PIECE,
    QKV,
    ROUND,
    ROUNDED,
    STEPS,
    SUMS,
    TILE,
    TO_QKV,
    UP_GATED,
    WIDTH,
    X,
)
from model.cpu.blocks.layout import BLOCK, OUTPUTS

# What only compiled code calls.
njit = numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
f32 = np.float32


@njit
def prepare(control: Any, phase: Any, own: Any) -> None:
    """Norms and rounds rows for a thread's products."""
    kind = phase[KIND]
    if kind in (ATTENTION, DOWN):
        return
    rows = control[NROWS]
    first = 0
    if kind == HEAD:
        rows = control[KEPT]
        first = control[NROWS] - rows
    width = phase[WIDTH]
    blocks = width // BLOCK
    for r in range(rows):
        row = read_row(control, phase, own, first + r)
        places = (own[ROUNDED] + width * r, own[STEPS] + 4 * blocks * r, own[SUMS] + 8 * blocks * r)
        call_with(control[ROUND], (row, blocks, places[0], places[1], places[2], 0))


@njit
def product_piece(control: Any, phase: Any, own: Any, piece: int) -> None:
    """Some panels of a product, into what its kind says."""
    kind = phase[KIND]
    rows = control[NROWS]
    x = (own[ROUNDED], own[STEPS], own[SUMS])
    if kind == DOWN:
        x = (control[INNER], control[INNER_STEPS], control[INNER_SUMS])
    out = control[X]
    stride = control[HIDDEN]
    if kind == TO_QKV:
        out = control[QKV]
        stride = (control[HEADS] + 2 * control[KV_HEADS]) * control[DIM]
    elif kind == HEAD:
        rows = control[KEPT]
        out = control[LOGITS]
        last = longs_at(phase[PANELS] + 8 * PANEL * (phase[COUNT] - 1), PANEL)
        stride = last[FIRST] + last[OUTS]
    factor = number_at(phase, FACTOR)
    tile = own[TILE]
    for p in range(piece * phase[PIECE], min(phase[COUNT], (piece + 1) * phase[PIECE])):
        panel = longs_at(phase[PANELS] + 8 * PANEL * p, PANEL)
        count = panel[OUTS]
        multiply(control, phase, panel, rows, x, tile)
        for r in range(rows):
            numbers = floats_at(tile + 4 * OUTPUTS * r, count)
            into = floats_at(out + 4 * (stride * r + panel[FIRST]), count)
            if kind in (TO_QKV, HEAD):
                for j in range(count):
                    into[j] = numbers[j] * factor
            else:
                for j in range(count):
                    into[j] += numbers[j] * factor


@njit
def multiply(control: Any, phase: Any, panel: Any, rows: int, x: Any, tile: int) -> None:
    """Rows times a panel, and a bias, into a tile (R, OUTPUTS)."""
    code, weights, blocks = panel[CODE], panel[ADDRESS], phase[WIDTH] // BLOCK
    call_with(control[MULTIPLY], (code, weights, blocks, rows, x[0], x[1], x[2], tile))
    add_bias(phase, panel, rows, tile)


@njit
def up_piece(control: Any, phase: Any, own: Any, piece: int) -> None:
    """Some panels of the upper product with its activation, rounded: a panel gives one block."""
    gated = phase[KIND] == UP_GATED
    rows = control[NROWS]
    x = (own[ROUNDED], own[STEPS], own[SUMS])
    count = phase[COUNT]
    if gated:
        count //= 2
    for p in range(piece * phase[PIECE], min(count, (piece + 1) * phase[PIECE])):
        panel = longs_at(phase[PANELS] + 8 * PANEL * p, PANEL)
        multiply(control, phase, panel, rows, x, own[TILE])
        if gated:
            other = longs_at(phase[PANELS] + 8 * PANEL * (count + p), PANEL)
            multiply(control, phase, other, rows, x, own[OTHER])
        for r in range(rows):
            row = floats_at(own[TILE] + 4 * OUTPUTS * r, OUTPUTS)
            activate(row, control[ACTIVATION])
            if gated:
                by = floats_at(own[OTHER] + 4 * OUTPUTS * r, OUTPUTS)
                for j in range(OUTPUTS):
                    row[j] *= by[j]
            for j in range(panel[OUTS], OUTPUTS):
                row[j] = f32(0)
            at = r * count + p
            inner, steps, sums = control[INNER], control[INNER_STEPS], control[INNER_SUMS]
            places = (inner + BLOCK * at, steps + 4 * at, sums + 8 * at)
            call_with(control[ROUND], (row.ctypes.data, 1, places[0], places[1], places[2], 0))
