"""The product with weights in blocks for any number of rows, and rows of a matrix as floats,
compiled by numba, on one thread: what needs speed is a pass (step.py).

A few rows take a panel as it is (tiles/few.py). For many rows each chunk of a panel is widened
first (tiles/wide.py).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types

from model.cpu.blocks.compiled.intrinsics import (
    byte_quads_at,
    call_with,
    floats_at,
    long_rows_at,
    longs_at,
)
from model.cpu.blocks.compiled.rows import add_panel, round_wide
from model.cpu.blocks.layout import (
    AT_ONCE,
    BLOCK,
    FORMATS,
    OUTPUTS,
    QUAD,
    WIDE_BLOCK,
    WIDE_FACTORS,
    WIDE_MINIMUMS,
)
from model.cpu.blocks.panels import Panels

njit = numba.njit(cache=True, nogil=True, error_model="numpy")
# What only compiled code calls.
inner = numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
f32 = np.float32
int64 = np.int64
ZERO = int64(0)  # Functions are not compiled for its type and again for that of a constant.

FEW = 12  # rows, at most, for which nothing is widened
TOGETHER = 512  # rows whose sums stay in a core's second cache

# What tells a product: addresses and sizes.
(
    X, ROWS, WIDTH, PARTS, COUNT, OUT, Y, BIAS, ROUNDED, STEPS, SUMS, PANEL, WIDEN, WIDE, ROUND,
    WIDE_ROWS,
) = range(16)  # fmt: skip

# What tells a part of a matrix: the address of its panels, the bytes of one, numbers of its format
# and of its kind of wide blocks, first row and how many.
ADDRESS, BYTES, CODE, KIND, FIRST, HEIGHT = range(6)

# Of each format: scales of a block of a row, and whether it has minimums.
SCALES = tuple(format_.scales for format_ in FORMATS)
MINIMUM = tuple(format_.minimum for format_ in FORMATS)


@njit
def multiply(
    x: int, rows: int, width: int, parts: int, count: int, out: int, y: int, bias: int,
    rounded: int, steps: int, sums: int, functions: Any,
) -> None:  # fmt: skip
    """x (rows, width) float32 times a matrix (out, width) in `count` parts, and a bias (out,), into
    y (rows, out).

    bias: 0 without one. rounded, steps, sums: room for BLOCK, 4 and 8 bytes of each of a row's
    blocks, in whole AT_ONCE. functions: as `load` gives them.
    """
    job = np.array(
        (
            x, rows, width, parts, count, out, y, bias, rounded, steps, sums, functions[0],
            functions[1], functions[2], functions[3], functions[4],
        ),
        np.int64,
    )  # fmt: skip
    round_rows(job)
    each = long_rows_at(parts, count, HEIGHT + 1)
    for part in range(count):
        for panel in range(-(-each[part, HEIGHT] // OUTPUTS)):
            if rows <= FEW:
                multiply_few(job, each[part], panel)
            else:
                multiply_many(job, each[part], panel)


@inner
def round_rows(job: Any) -> None:
    """A few rows as few.py takes them, (rows, blocks), many as wide.py does, (chunks, rows,
    AT_ONCE) blocks."""
    rows = job[ROWS]
    width = job[WIDTH]
    blocks = -(-width // BLOCK)
    whole = width // BLOCK
    last = np.zeros(BLOCK, f32)  # of a row, where that is not whole
    many = rows > FEW
    for r in range(rows):
        x = job[X] + 4 * width * r
        for start in range(0, blocks, AT_ONCE):
            place = r * blocks + start
            if many:
                place = (start // AT_ONCE * rows + r) * AT_ONCE
            full = min(AT_ONCE, whole - start)
            round_blocks(job, x + 4 * BLOCK * start, full, place, many)
            if full < min(AT_ONCE, blocks - start):
                rest = floats_at(x + 4 * BLOCK * whole, width - BLOCK * whole)
                for j in range(len(rest)):
                    last[j] = rest[j]
                round_blocks(job, int64(last.ctypes.data), ZERO + 1, place + full, many)
    last[0] = 0  # its memory has to be there until now


@inner
def round_blocks(job: Any, x: int, blocks: int, place: int, many: bool) -> None:
    """Blocks of a row into the room for blocks from a place on."""
    to = (job[ROUNDED], job[STEPS], job[SUMS])
    if many:
        round_wide(job[ROUND], x, blocks, place, to)
        return
    places = (to[0] + BLOCK * place, to[1] + 4 * place, to[2] + 8 * place)
    call_with(job[ROUND], (x, blocks, places[0], places[1], places[2], 0))


@inner
def multiply_few(job: Any, part: Any, panel: int) -> None:
    rows = job[ROWS]
    room = np.empty((FEW, OUTPUTS), f32)
    sums = int64(room.ctypes.data)
    address = part[ADDRESS] + panel * part[BYTES]
    blocks = -(-job[WIDTH] // BLOCK)
    x, steps, counted = job[ROUNDED], job[STEPS], job[SUMS]
    call_with(job[PANEL], (part[CODE], address, blocks, rows, x, steps, counted, sums))
    store(job, part, panel, ZERO, rows, sums)
    room[0, 0] = 0  # its memory has to be there until now


@inner
def multiply_many(job: Any, part: Any, panel: int) -> None:
    rows = job[ROWS]
    size = min(rows, TOGETHER)
    room = np.empty(AT_ONCE * WIDE_BLOCK + 4 * OUTPUTS * size + 64, np.uint8)
    wide = room.ctypes.data
    wide += -wide % 64
    sums = wide + AT_ONCE * WIDE_BLOCK
    numbers_of = (part[ADDRESS] + panel * part[BYTES], part[CODE], part[KIND])
    x = (job[ROUNDED], job[STEPS], job[SUMS])
    tiles = (job[WIDEN], job[WIDE], job[WIDE_ROWS])
    for first in range(0, rows, size):
        count = min(size, rows - first)
        numbers = floats_at(sums, count * OUTPUTS)
        for j in range(count * OUTPUTS):
            numbers[j] = f32(0)
        blocks = -(-job[WIDTH] // BLOCK)
        add_panel(tiles, numbers_of, blocks, (rows, first, count), x, wide, sums)
        store(job, part, panel, first, count, sums)
    room[0] = 0  # its memory has to be there until now


@inner
def store(job: Any, part: Any, panel: int, first: int, rows: int, sums: int) -> None:
    """Puts a panel's outputs for rows from the first on, and the bias, into y."""
    out = job[OUT]
    at = part[FIRST] + panel * OUTPUTS
    count = min(OUTPUTS, part[HEIGHT] - panel * OUTPUTS)
    for r in range(rows):
        row = floats_at(sums + 4 * OUTPUTS * r, count)
        y = floats_at(job[Y] + 4 * (out * (first + r) + at), count)
        if job[BIAS]:
            bias = floats_at(job[BIAS] + 4 * at, count)
            for j in range(count):
                y[j] = row[j] + bias[j]
        else:
            for j in range(count):
                y[j] = row[j]


@njit
def look_up(
    ids: int, count: int, width: int, parts: int, number: int, y: int, functions: Any
) -> None:
    """Rows of a matrix, ids (count,) int64, into y (count, width) float32."""
    table = long_rows_at(parts, number, HEIGHT + 1)
    rows = longs_at(ids, count)
    blocks = -(-width // BLOCK)
    room = np.empty(AT_ONCE * WIDE_BLOCK + 64, np.uint8)
    wide = room.ctypes.data
    wide += -wide % 64
    for n in range(count):
        part = 0
        while rows[n] >= table[part, FIRST] + table[part, HEIGHT]:
            part += 1
        row = rows[n] - table[part, FIRST]
        address = table[part, ADDRESS] + row // OUTPUTS * table[part, BYTES]
        for start in range(0, blocks, AT_ONCE):
            at_once = min(AT_ONCE, blocks - start)
            code = table[part, CODE]
            call_with(functions[1], (code, address, start, at_once, wide))
            for block in range(at_once):
                done = BLOCK * (start + block)
                into = floats_at(y + 4 * (width * n + done), min(BLOCK, width - done))
                to_row(wide + WIDE_BLOCK * block, code, row % OUTPUTS, into)
    room[0] = 0  # its memory has to be there until now


@inner
def to_row(wide: int, code: int, output: int, row: Any) -> None:
    """One output of a wide block as floats, as many as the row has."""
    numbers = byte_quads_at(wide, BLOCK // QUAD, OUTPUTS, QUAD)
    factors = floats_at(wide + WIDE_FACTORS, 2 * OUTPUTS)
    minimums = floats_at(wide + WIDE_MINIMUMS, OUTPUTS)
    columns = BLOCK // SCALES[code]  # of each scale
    for j in range(len(row)):
        factor = factors[j // columns * OUTPUTS + output]
        row[j] = f32(numbers[j // QUAD, output, j % QUAD]) * factor
        if MINIMUM[code]:
            row[j] -= minimums[output]


def load(panels: Panels) -> Any:
    """Compiles the functions, or loads them. What `multiply` and `look_up` take as functions."""
    addresses = types.Array(types.int64, 1, "C")
    multiply.compile((*[types.int64] * 11, addresses))
    look_up.compile((*[types.int64] * 6, addresses))
    functions = (panels.multiply_panel, panels.widen, panels.multiply_wide, panels.round_blocks)
    return np.array([*functions, panels.cpu.wide_rows], np.int64)
