"""What passes over few rows and over many have in common."""

from __future__ import annotations

from typing import Any

import numba

from model.cpu.blocks.compiled.floats import norm
from model.cpu.blocks.compiled.intrinsics import float_rows_at, floats_at, number_at
from model.cpu.blocks.compiled.words import (
    ATTENDED,
    BIAS,
    EPS,
    FIRST,
    HIDDEN,
    NORM,
    NORMED,
    OUTS,
    RMS,
    WIDTH,
    X,
)
from model.cpu.blocks.layout import OUTPUTS

# What only compiled code calls.
njit = numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


@njit
def read_row(control: Any, phase: Any, own: Any, r: int) -> Any:
    """The address of a row that a product reads: of the residual stream, normed, or of what
    attention gave."""
    if not phase[NORM]:
        return control[ATTENDED] + 4 * phase[WIDTH] * r
    hidden = control[HIDDEN]
    norm(
        float_rows_at(control[X] + 4 * hidden * r, 1, hidden),
        float_rows_at(phase[NORM], 2, hidden), control[RMS] != 0, number_at(control, EPS),
        float_rows_at(own[NORMED], 1, hidden),
    )  # fmt: skip
    return own[NORMED]


@njit
def add_bias(phase: Any, panel: Any, rows: int, tile: int) -> None:
    """Adds a panel's bias, if there is one, to a tile (rows, OUTPUTS)."""
    if phase[BIAS]:
        count = panel[OUTS]
        bias = floats_at(phase[BIAS] + 4 * panel[FIRST], count)
        for r in range(rows):
            row = floats_at(tile + 4 * OUTPUTS * r, count)
            for j in range(count):
                row[j] += bias[j]
