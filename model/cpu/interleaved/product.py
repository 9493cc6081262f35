"""The product with interleaved int8 weights, compiled by numba, and the threads that share it.

A job is shared by counting: each thread takes the next piece that nobody has taken. Its owner
opens it, works, and closes it. A helper that comes late, because the machine is busy, finds it
closed, and nobody has waited for it. A helper without a job spins for some microseconds, then
sleeps.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types

from model.cpu.interleaved.intrinsics import (
    CHOSEN,
    add_to,
    call,
    load_now,
    pause,
    tile,
    to_floats,
    to_ints,
    to_longs,
)
from model.cpu.interleaved.layout import LARGEST, OFFSET, OUTPUTS, QUAD

njit = numba.njit(cache=True, nogil=True, error_model="numpy")
# Floats may be summed in any order. numba lets the instructions of intrinsics, too, be reordered.
reordering = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "nsz"})
f32 = np.float32
i32 = np.int32
u8 = np.uint8

MAX_ROWS = 1 if CHOSEN is None else CHOSEN.max_rows
MORE = f32(OFFSET if CHOSEN is not None and CHOSEN.unsigned else 0)
BLOCK_BYTES = 256 * 1024  # activations beside a panel of weights, in a core's second cache

SPINS = 1000  # some tens of microseconds, as OpenMP's threads spin (GOMP_SPINCOUNT in process.py)

# A job: addresses and sizes, int64 each, and counters, each in a cache line of its own.
X, ROWS, WIDTH, WEIGHTS, SCALE, SUMS, OUT, Y, ROUNDED, STEPS, GROUPS, PIECE = range(12)
TAKEN, ROUNDED_GROUPS, DONE = 16, 24, 32
# The threads' own: whether somebody owns the job, its number while it is open, how many helpers are
# inside, and how many sleep.
OWNED, OPEN, INSIDE, ASLEEP = 40, 48, 56, 64
JOB = 72
NUMBER = 12  # of the job that was opened last


@njit
def multiply(
    x: int, rows: int, width: int, weights: int, scale: int, sums: int, out: int, y: int,
    rounded: int, steps: int, threads: int, pool: int, semaphore: int, post: int,
) -> None:  # fmt: skip
    """x (rows, width) float32 times interleaved weights (out, width), into y (rows, out).

    rounded, steps: room for the rounded activations, rows * QUAD * ceil(width / QUAD) bytes, and
    their scales, rows float32. pool: address of the job that `help_with` waits for, JOB int64.
    semaphore, post: addresses, of a semaphore and of the C library's sem_post.
    """
    own = np.zeros(JOB, np.int64)
    address = own.ctypes.data
    shared = threads > 1
    if shared:  # not if another thread of this process multiplies, too
        shared = add_to(pool + 8 * OWNED, 1) == 0
        if shared:
            address = pool
        else:
            add_to(pool + 8 * OWNED, -1)
    job = numba.carray(to_longs(address), (JOB,))
    job[X] = x
    job[ROWS] = rows
    job[WIDTH] = width
    job[WEIGHTS] = weights
    job[SCALE] = scale
    job[SUMS] = sums
    job[OUT] = out
    job[Y] = y
    job[ROUNDED] = rounded
    job[STEPS] = steps
    job[GROUPS] = -(-rows // MAX_ROWS)
    job[PIECE] = max(1, min(16, -(-out // OUTPUTS) // (4 * threads)))
    job[TAKEN] = 0
    job[ROUNDED_GROUPS] = 0
    job[DONE] = 0
    if job[GROUPS] == 1:  # not worth sharing
        round_group(job, 0)
        job[TAKEN] = 1
        job[ROUNDED_GROUPS] = 1
    if shared:
        open_job(job, pool, threads, semaphore, post)
        work(job)
        close_job(job, pool)
    else:
        work(job)
    own[0] = 0  # its memory has to be there until now


@njit
def open_job(job: Any, pool: int, threads: int, semaphore: int, post: int) -> None:
    """Lets helpers in, and wakes as many as are asleep and wanted."""
    job[NUMBER] += 1
    add_to(pool + 8 * OPEN, job[NUMBER])
    for _ in range(min(threads - 1, load_now(pool + 8 * ASLEEP))):
        call(post, semaphore)


@njit
def close_job(job: Any, pool: int) -> None:
    """Lets no more helpers in, and waits for those who are."""
    add_to(pool + 8 * OPEN, -job[NUMBER])
    while load_now(pool + 8 * INSIDE) > 0:
        pause()
    add_to(pool + 8 * OWNED, -1)


@njit
def help_with(pool: int, semaphore: int, wait: int) -> None:
    """What a helper does, without an end."""
    job = numba.carray(to_longs(pool), (JOB,))
    last = 0
    spins = 0
    while True:
        number = load_now(pool + 8 * OPEN)
        if number != 0 and number != last:
            last = number
            spins = 0
            add_to(pool + 8 * INSIDE, 1)
            if load_now(pool + 8 * OPEN) != 0:  # it has not been closed meanwhile
                work(job)
            add_to(pool + 8 * INSIDE, -1)
        elif spins < SPINS:
            pause()
            spins += 1
        else:
            add_to(pool + 8 * ASLEEP, 1)
            number = load_now(pool + 8 * OPEN)
            if number == 0 or number == last:  # none was opened before ASLEEP was counted
                call(wait, semaphore)
            add_to(pool + 8 * ASLEEP, -1)
            spins = 0


@njit
def work(job: Any) -> None:
    groups = job[GROUPS]
    counters = job.ctypes.data
    group = add_to(counters + 8 * TAKEN, 1)
    while group < groups:
        round_group(job, group)
        add_to(counters + 8 * ROUNDED_GROUPS, 1)
        group = add_to(counters + 8 * TAKEN, 1)
    while load_now(counters + 8 * ROUNDED_GROUPS) < groups:
        pause()
    quads = -(-job[WIDTH] // QUAD)
    block = max(1, BLOCK_BYTES // (QUAD * quads * MAX_ROWS))  # groups
    blocks = -(-groups // block)
    panels = -(-job[OUT] // OUTPUTS)
    piece = job[PIECE]
    pieces = -(-panels // piece)
    edge = np.zeros((MAX_ROWS + 1, OUTPUTS), f32)  # a tile that is partly beyond the matrix
    done = add_to(counters + 8 * DONE, 1)
    while done < blocks * pieces:
        first = done // pieces * block
        groups_of = range(first, min(groups, first + block))
        start = done % pieces * piece
        for panel in range(start, min(panels, start + piece)):
            for group in groups_of:
                multiply_tile(job, quads, group, panel, edge)
        done = add_to(counters + 8 * DONE, 1)


@njit
def first_row(rows: int, groups: int, group: int) -> int:
    """Groups are as large as each other, but for one row."""
    return group * (rows // groups) + min(group, rows % groups)


@njit
def multiply_tile(job: Any, quads: int, group: int, panel: int, edge: Any) -> None:
    first = first_row(job[ROWS], job[GROUPS], group)
    rows = first_row(job[ROWS], job[GROUPS], group + 1) - first
    out = job[OUT]
    left = out - panel * OUTPUTS
    y = job[Y] + 4 * (first * out + panel * OUTPUTS)
    weights = job[WEIGHTS] + panel * quads * QUAD * OUTPUTS
    x = job[ROUNDED] + first * quads * QUAD
    sums = job[SUMS] + 4 * panel * OUTPUTS
    scale = job[SCALE] + 4 * panel * OUTPUTS
    steps = job[STEPS] + 4 * first
    if left >= OUTPUTS:
        tile(rows, weights, x, quads, sums, scale, steps, y, 4 * out)
        return
    whole = edge[-1]  # a panel's scale
    of_all = numba.carray(to_floats(job[SCALE]), (out,))
    for j in range(left):
        whole[j] = of_all[panel * OUTPUTS + j]
    scale = whole.ctypes.data
    tile(rows, weights, x, quads, sums, scale, steps, edge.ctypes.data, 4 * OUTPUTS)
    result = numba.carray(to_floats(job[Y]), (job[ROWS], out))
    for r in range(rows):
        for j in range(left):
            result[first + r, panel * OUTPUTS + j] = edge[r, j]


@reordering
def largest(row: Any) -> Any:
    """The largest size of a number, and 0; or NaN, if one is infinite or NaN, which whole numbers
    cannot be."""
    most = f32(1e-20)
    doubt = f32(0)
    for j in range(len(row)):
        most = max(most, abs(row[j]))
        doubt += row[j] * f32(0)
    return most, doubt


@njit
def round_group(job: Any, group: int) -> None:
    """Rounds the rows of a group to 8 bits, and interleaves them: (quads, rows, QUAD)."""
    first = first_row(job[ROWS], job[GROUPS], group)
    rows = first_row(job[ROWS], job[GROUPS], group + 1) - first
    width = job[WIDTH]
    quads = -(-width // QUAD)
    inputs = numba.carray(to_floats(job[X]), (job[ROWS], width))
    steps = numba.carray(to_floats(job[STEPS]), (job[ROWS],))
    rounded = numba.carray(to_ints(job[ROUNDED] + first * quads * QUAD), (quads, rows))
    whole = np.zeros(QUAD * quads, u8)
    for r in range(rows):
        row = inputs[first + r]
        most, doubt = largest(row)
        steps[first + r] = most * f32(1 / LARGEST) + doubt
        inverse = f32(LARGEST) / most
        for j in range(width):
            whole[j] = u8(i32(np.rint(row[j] * inverse) + MORE))
        fours = whole.view(i32)
        for k in range(quads):
            rounded[k, r] = fours[k]


def load() -> bool:
    """Compiles `multiply` and `help_with`, or loads them; False where the CPU has no instructions
    for them."""
    if CHOSEN is None:
        return False
    multiply.compile((types.int64,) * 14)
    help_with.compile((types.int64,) * 3)
    return True
