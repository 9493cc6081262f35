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

from model.cpu.blocks import panels
from model.cpu.blocks.layout import BLOCK, FORMATS, OUTPUTS, QUAD, Format
from model.cpu.blocks.panels import call_panel, call_wide, call_widen
from model.cpu.blocks.tiles.rounding import round_numbers
from model.cpu.blocks.tiles.wide import (
    AT_ONCE,
    FACTORS,
    KINDS,
    MINIMUMS,
    S_STRIDE,
    WIDE_BLOCK,
    WIDE_ROWS,
    X_STRIDE,
    kind_of,
)
from model.cpu.interleaved import sharing
from model.cpu.interleaved.intrinsics import (
    CHOSEN,
    add_to,
    load_now,
    pause,
    to_bytes,
    to_floats,
    to_ints,
    to_longs,
)

njit = numba.njit(cache=True, nogil=True, error_model="numpy")
f32 = np.float32

FEW = 12  # rows, at most, for which nothing is widened
TOGETHER = 512  # rows whose sums stay in a core's second cache
AT_A_TIME = 8  # rows that a thread rounds

# A job's addresses and sizes, and its counters, each in a cache line of its own.
X, ROWS, WIDTH, PARTS, COUNT, OUT, Y, BIAS, ROUNDED, STEPS, SUMS, PIECE, PANEL, WIDEN, WIDE = range(
    sharing.BEGIN, sharing.BEGIN + 15
)
TAKEN, DONE, PIECES = 56, 64, 72

# What tells a part of a matrix: the address of its panels, the bytes of one, numbers of its format
# and of its kind of wide blocks, first row and how many.
ADDRESS, BYTES, CODE, KIND, FIRST, HEIGHT = range(6)


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
    job = numba.carray(to_longs(address), (sharing.JOB,))
    job[sharing.WORK] = functions[0]
    job[PANEL] = functions[1]
    job[WIDEN] = functions[2]
    job[WIDE] = functions[3]
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
        round_group(job, 0)
        job[TAKEN] = 1
        job[DONE] = 1
    sharing.run(job, shared, threads, semaphore, post)
    alone[0] = 0  # its memory has to be there until now


def work(address: int) -> int:
    """A thread's share of the job at an address."""
    job = numba.carray(to_longs(address), (sharing.JOB,))
    groups = -(-job[ROWS] // AT_A_TIME)
    group = add_to(address + 8 * TAKEN, 1)
    while group < groups:
        round_group(job, group)
        add_to(address + 8 * DONE, 1)
        group = add_to(address + 8 * TAKEN, 1)
    while load_now(address + 8 * DONE) < groups:
        pause()
    parts = numba.carray(to_longs(job[PARTS]), (job[COUNT], HEIGHT + 1))
    panels = 0
    for part in range(job[COUNT]):
        panels += -(-parts[part, HEIGHT] // OUTPUTS)
    if job[ROWS] <= FEW:
        multiply_few(job, parts, panels)
    else:
        multiply_many(job, parts, panels)
    return 0


@njit
def round_group(job: Any, group: int) -> None:
    """Rounds some rows: a few rows as few.py takes them, (rows, blocks), many as wide.py does,
    (chunks, rows, AT_ONCE) blocks."""
    rows = job[ROWS]
    width = job[WIDTH]
    blocks = -(-width // BLOCK)
    places = places_of(rows, width)
    inputs = numba.carray(to_floats(job[X]), (rows, width))
    steps = numba.carray(to_floats(job[STEPS]), (places,))
    sums = numba.carray(to_ints(job[SUMS]), (places, 2))
    least = numba.carray(to_floats(job[SUMS]), (places, 2))
    whole = width // BLOCK
    flipped = 128 if rows > FEW else 0
    last = np.zeros(BLOCK, f32)  # of a row, where that is not whole
    for r in range(group * AT_A_TIME, min(rows, (group + 1) * AT_A_TIME)):
        row = inputs[r]
        for j in range(BLOCK * whole, width):
            last[j - BLOCK * whole] = row[j]
        for block in range(blocks):
            place = r * blocks + block
            if rows > FEW:
                place = (block // AT_ONCE * rows + r) * AT_ONCE + block % AT_ONCE
            x = row.ctypes.data + 4 * BLOCK * block if block < whole else last.ctypes.data
            round_numbers(
                x, job[ROUNDED] + BLOCK * place, job[STEPS] + 4 * place, job[SUMS] + 8 * place,
                flipped,
            )  # fmt: skip
            if rows > FEW:
                total = sums[place, 0] + sums[place, 1]
                least[place, 0] = f32(-total) * steps[place]


@njit
def places_of(rows: int, width: int) -> int:
    """Blocks of activations that there is room for."""
    return rows * AT_ONCE * -(-width // (BLOCK * AT_ONCE))


@njit
def find_panel(parts: Any, number: int) -> tuple[int, int]:
    """Which part has a matrix's panel, and as which of its own."""
    part = 0
    while number >= -(-parts[part, HEIGHT] // OUTPUTS):
        number -= -(-parts[part, HEIGHT] // OUTPUTS)
        part += 1
    return part, number


@njit
def multiply_few(job: Any, parts: Any, panels: int) -> None:
    rows = job[ROWS]
    blocks = -(-job[WIDTH] // BLOCK)
    sums = np.empty((FEW, OUTPUTS), f32)
    piece = job[PIECE]
    taken = job.ctypes.data + 8 * PIECES
    start = piece * add_to(taken, 1)
    while start < panels:
        for number in range(start, min(panels, start + piece)):
            part, panel = find_panel(parts, number)
            address = parts[part, ADDRESS] + panel * parts[part, BYTES]
            call_panel(
                job[PANEL], parts[part, CODE], address, blocks, rows, job[ROUNDED], job[STEPS],
                job[SUMS], 4 * blocks, sums.ctypes.data,
            )  # fmt: skip
            store(job, parts[part], panel, 0, sums[:rows])
        start = piece * add_to(taken, 1)


@njit
def multiply_many(job: Any, parts: Any, panels: int) -> None:
    rows = job[ROWS]
    together = -(-rows // TOGETHER)  # how many times
    size = -(-rows // together)
    room = np.empty(AT_ONCE * WIDE_BLOCK + 4 * OUTPUTS * size + 64, np.uint8)
    wide = room.ctypes.data
    wide += -wide % 64
    sums = numba.carray(to_floats(wide + AT_ONCE * WIDE_BLOCK), (size, OUTPUTS))
    taken = job.ctypes.data + 8 * PIECES
    piece = add_to(taken, 1)
    while piece < together * panels:
        first = piece // panels * size
        count = min(size, rows - first)
        part, panel = find_panel(parts, piece % panels)
        sums[:count] = f32(0)
        add_panel(job, parts[part], panel, first, count, wide, sums.ctypes.data)
        store(job, parts[part], panel, first, sums[:count])
        piece = add_to(taken, 1)
    room[0] = 0  # its memory has to be there until now


@njit
def add_panel(
    job: Any, part: Any, panel: int, first: int, count: int, wide: int, sums: int
) -> None:
    """Adds the products of rows with a panel."""
    blocks = -(-job[WIDTH] // BLOCK)
    address = part[ADDRESS] + panel * part[BYTES]
    groups = -(-count // WIDE_ROWS)  # as large as each other, but for one row
    least = count // groups
    more = count % groups
    for start in range(0, blocks, AT_ONCE):
        at_once = min(AT_ONCE, blocks - start)
        call_widen(job[WIDEN], part[CODE], address, start, at_once, wide)
        chunk = start // AT_ONCE * job[ROWS] + first
        r = 0
        for group in range(groups):
            n = least + 1 if group < more else least
            call_wide(
                job[WIDE], part[KIND], n, wide, at_once, job[ROUNDED] + X_STRIDE * (chunk + r),
                job[STEPS] + S_STRIDE * (chunk + r), job[SUMS] + 2 * S_STRIDE * (chunk + r),
                sums + 4 * OUTPUTS * r,
            )  # fmt: skip
            r += n


@njit
def store(job: Any, part: Any, panel: int, first: int, sums: Any) -> None:
    """Puts a panel's outputs for rows from the first on into y."""
    out = job[OUT]
    y = numba.carray(to_floats(job[Y]), (job[ROWS], out))
    at = part[FIRST] + panel * OUTPUTS
    count = min(OUTPUTS, part[HEIGHT] - panel * OUTPUTS)
    for r in range(len(sums)):
        add_bias(sums[r], job[BIAS], at, count)
        copy(sums[r], y[first + r, at : at + count])


@njit
def add_bias(row: Any, bias: int, at: int, count: int) -> None:
    if bias:
        wanted = numba.carray(to_floats(bias + 4 * at), (count,))
        for j in range(count):
            row[j] += wanted[j]


@njit
def copy(row: Any, into: Any) -> None:
    """As many numbers of a row as there is room for. (A slice's index needs no check for being
    negative, so this becomes vector instructions.)"""
    for j in range(len(into)):
        into[j] = row[j]


@njit
def look_up(
    ids: int, count: int, width: int, parts: int, number: int, y: int, functions: Any
) -> None:
    """Rows of a matrix, ids (count,) int64, into y (count, width) float32."""
    table = numba.carray(to_longs(parts), (number, HEIGHT + 1))
    rows = numba.carray(to_longs(ids), (count,))
    floats = numba.carray(to_floats(y), (count, width))
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
            call_widen(functions[2], table[part, CODE], address, start, at_once, wide)
            for block in range(at_once):
                to_row(
                    wide + WIDE_BLOCK * block, KINDS[table[part, KIND]], row % OUTPUTS,
                    floats[n, BLOCK * (start + block) :],
                )  # fmt: skip
    room[0] = 0  # its memory has to be there until now


@njit
def to_row(wide: int, kind: Any, output: int, row: Any) -> None:
    """One output of a wide block as floats, as many as the row has."""
    numbers = numba.carray(to_bytes(wide), (BLOCK // QUAD, OUTPUTS, QUAD))
    factors = numba.carray(to_floats(wide + FACTORS), (2, OUTPUTS))
    minimums = numba.carray(to_floats(wide + MINIMUMS), (OUTPUTS,))
    scales, minimum, _ = kind
    for j in range(min(BLOCK, len(row))):
        factor = factors[j // (BLOCK // scales), output]
        row[j] = f32(numbers[j // QUAD, output, j % QUAD]) * factor
        if minimum:
            row[j] -= minimums[output]


def numbers_of(format_: Format) -> tuple[int, int]:
    """CODE and KIND."""
    return FORMATS.index(format_), KINDS.index(kind_of(format_))


def load() -> Any:
    """Compiles the functions, or loads them. Their addresses, for `multiply` and `look_up`; None
    where the CPU has no instructions for them."""
    if CHOSEN is None:
        return None
    addresses = types.Array(types.int64, 1, "C")
    multiply.compile((*[types.int64] * 11, addresses, *[types.int64] * 4))
    look_up.compile((*[types.int64] * 6, addresses))
    compiled = (panels.multiply_panel, panels.widen, panels.multiply_wide)
    found = [sharing.address_of(work), *(each.address for each in compiled)]
    return np.array(found, np.int64)
