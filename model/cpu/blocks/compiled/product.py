"""The product with weights in blocks for any number of rows, and rows of a matrix as floats,
compiled by numba.

A job has two parts: threads round the rows of activations, and when all are rounded they multiply
panels. A few rows take a panel as it is (tiles/few.py). For many rows each chunk of a panel is
widened first (tiles/wide.py).
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types

from model.cpu.blocks.compiled import sharing
from model.cpu.blocks.compiled.intrinsics import (
    add_to,
    byte_quads_at,
    call_with,
    floats_at,
    load_now,
    long_rows_at,
    longs_at,
    pause,
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
AT_A_TIME = 8  # rows that a thread rounds

# A job's addresses and sizes, and its counters, each in a cache line of its own.
(
    X, ROWS, WIDTH, PARTS, COUNT, OUT, Y, BIAS, ROUNDED, STEPS, SUMS, PIECE, PANEL, WIDEN, WIDE,
    ROUND, WIDE_ROWS
) = range(sharing.BEGIN, sharing.BEGIN + 17)  # fmt: skip
TAKEN, DONE, PIECES = 64, 72, 80

# What tells a part of a matrix: the address of its panels, the bytes of one, numbers of its format
# and of its kind of wide blocks, first row and how many.
ADDRESS, BYTES, CODE, KIND, FIRST, HEIGHT = range(6)

# Of each format: scales of a block of a row, and whether it has minimums.
SCALES = tuple(format_.scales for format_ in FORMATS)
MINIMUM = tuple(format_.minimum for format_ in FORMATS)


@njit
def multiply(
    x: int, rows: int, width: int, parts: int, count: int, out: int, y: int, bias: int,
    rounded: int, steps: int, sums: int, functions: Any, threads: int, pool: int, semaphore: int,
    post: int,
) -> None:  # fmt: skip
    """x (rows, width) float32 times a matrix (out, width) in `count` parts, and a bias (out,), into
    y (rows, out).

    bias: 0 without one. rounded, steps, sums: room for BLOCK, 4 and 8 bytes of each of
    places_of(rows, width) blocks. functions: addresses, as `load` gives them. pool: address of the
    job that the helpers wait for, sharing.JOB int64. semaphore, post: addresses, of a semaphore and
    of the C library's sem_post.
    """
    alone = np.zeros(sharing.JOB, np.int64)
    address = alone.ctypes.data
    shared = sharing.own(pool, threads)
    if shared:
        address = pool
    job = longs_at(address, sharing.JOB)
    job[sharing.WORK] = functions[0]
    job[PANEL] = functions[1]
    job[WIDEN] = functions[2]
    job[WIDE] = functions[3]
    job[ROUND] = functions[4]
    job[WIDE_ROWS] = functions[5]
    job[X] = x
    job[ROWS] = rows
    job[WIDTH] = width
    job[PARTS] = parts
    job[COUNT] = count
    job[OUT] = out
    job[Y] = y
    job[BIAS] = bias
    job[ROUNDED] = rounded
    job[STEPS] = steps
    job[SUMS] = sums
    job[PIECE] = max(1, min(16, -(-out // OUTPUTS) // (4 * threads)))  # panels, of few rows
    job[TAKEN] = 0
    job[DONE] = 0
    job[PIECES] = 0
    if rows <= AT_A_TIME:  # not worth sharing
        round_group(job, ZERO)
        job[TAKEN] = 1
        job[DONE] = 1
    sharing.run(job, shared, threads, semaphore, post)
    alone[0] = 0  # its memory has to be there until now


def work(address: int) -> int:
    """A thread's share of the job at an address."""
    job = longs_at(address, sharing.JOB)
    groups = -(-job[ROWS] // AT_A_TIME)
    group = add_to(address + 8 * TAKEN, 1)
    while group < groups:
        round_group(job, group)
        add_to(address + 8 * DONE, 1)
        group = add_to(address + 8 * TAKEN, 1)
    while load_now(address + 8 * DONE) < groups:
        pause()
    parts = long_rows_at(job[PARTS], job[COUNT], HEIGHT + 1)
    panels = ZERO
    for part in range(job[COUNT]):
        panels += -(-parts[part, HEIGHT] // OUTPUTS)
    if job[ROWS] <= FEW:
        multiply_few(job, parts, panels)
    else:
        multiply_many(job, parts, panels)
    return 0


@inner
def round_group(job: Any, group: int) -> None:
    """Rounds some rows: a few rows as few.py takes them, (rows, blocks), many as wide.py does,
    (chunks, rows, AT_ONCE) blocks."""
    rows = job[ROWS]
    width = job[WIDTH]
    blocks = -(-width // BLOCK)
    whole = width // BLOCK
    last = np.zeros(BLOCK, f32)  # of a row, where that is not whole
    many = rows > FEW
    for r in range(group * AT_A_TIME, min(rows, (group + 1) * AT_A_TIME)):
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
def places_of(rows: int, width: int) -> int:
    """Blocks of activations that there is room for."""
    return rows * AT_ONCE * -(-width // (BLOCK * AT_ONCE))


@inner
def find_panel(parts: Any, number: int) -> tuple[int, int]:
    """Which part has a matrix's panel, and as which of its own."""
    part = 0
    while number >= -(-parts[part, HEIGHT] // OUTPUTS):
        number -= -(-parts[part, HEIGHT] // OUTPUTS)
        part += 1
    return part, number


@inner
def multiply_few(job: Any, parts: Any, panels: int) -> None:
    rows = job[ROWS]
    blocks = -(-job[WIDTH] // BLOCK)
    room = np.empty((FEW, OUTPUTS), f32)
    sums = int64(room.ctypes.data)
    piece = job[PIECE]
    taken = job.ctypes.data + 8 * PIECES
    start = piece * add_to(taken, 1)
    while start < panels:
        for number in range(start, min(panels, start + piece)):
            part, panel = find_panel(parts, number)
            address = parts[part, ADDRESS] + panel * parts[part, BYTES]
            code = parts[part, CODE]
            x, steps, counted = job[ROUNDED], job[STEPS], job[SUMS]
            call_with(job[PANEL], (code, address, blocks, rows, x, steps, counted, sums))
            store(job, parts[part], panel, ZERO, rows, sums)
        start = piece * add_to(taken, 1)
    room[0, 0] = 0  # its memory has to be there until now


@inner
def multiply_many(job: Any, parts: Any, panels: int) -> None:
    rows = job[ROWS]
    together = -(-rows // TOGETHER)  # how many times
    size = -(-rows // together)
    room = np.empty(AT_ONCE * WIDE_BLOCK + 4 * OUTPUTS * size + 64, np.uint8)
    wide = room.ctypes.data
    wide += -wide % 64
    sums = wide + AT_ONCE * WIDE_BLOCK
    taken = job.ctypes.data + 8 * PIECES
    piece = add_to(taken, 1)
    while piece < together * panels:
        first = piece // panels * size
        count = min(size, rows - first)
        part, panel = find_panel(parts, piece % panels)
        numbers = floats_at(sums, count * OUTPUTS)
        for j in range(count * OUTPUTS):
            numbers[j] = f32(0)
        address = parts[part, ADDRESS] + panel * parts[part, BYTES]
        numbers_of = (address, parts[part, CODE], parts[part, KIND])
        x = (job[ROUNDED], job[STEPS], job[SUMS])
        tiles = (job[WIDEN], job[WIDE], job[WIDE_ROWS])
        blocks = -(-job[WIDTH] // BLOCK)
        add_panel(tiles, numbers_of, blocks, (rows, first, count), x, wide, sums)
        store(job, parts[part], panel, first, count, sums)
        piece = add_to(taken, 1)
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
            call_with(functions[2], (code, address, start, at_once, wide))
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
    multiply.compile((*[types.int64] * 11, addresses, *[types.int64] * 4))
    look_up.compile((*[types.int64] * 6, addresses))
    functions = panels[1:5]
    return np.array([sharing.address_of(work), *functions, panels.cpu.wide_rows], np.int64)
