"""The product with interleaved int8 weights, compiled by numba."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types

from model.cpu.interleaved import sharing
from model.cpu.interleaved.intrinsics import (
    CHOSEN,
    add_to,
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

# A job's addresses and sizes, and its counters, each in a cache line of its own.
X, ROWS, WIDTH, WEIGHTS, SCALE, SUMS, OUT, Y, ROUNDED, STEPS, GROUPS, PIECE = range(
    sharing.BEGIN, sharing.BEGIN + 12
)
TAKEN, ROUNDED_GROUPS, DONE = 56, 64, 72


@njit
def multiply(
    x: int, rows: int, width: int, weights: int, scale: int, sums: int, out: int, y: int,
    rounded: int, steps: int, work: int, threads: int, pool: int, semaphore: int, post: int,
) -> None:  # fmt: skip
    """x (rows, width) float32 times interleaved weights (out, width), into y (rows, out).

    rounded, steps: room for the rounded activations, rows * QUAD * ceil(width / QUAD) bytes, and
    their scales, rows float32. work: address of `work`. pool: of the job that the helpers wait for,
    sharing.JOB int64. semaphore, post: addresses, of a semaphore and of the C library's sem_post.
    """
    alone = np.zeros(sharing.JOB, np.int64)
    address = alone.ctypes.data
    shared = sharing.own(pool, threads)
    if shared:
        address = pool
    job = numba.carray(to_longs(address), (sharing.JOB,))
    job[sharing.WORK] = work
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
    sharing.run(job, shared, threads, semaphore, post)
    alone[0] = 0  # its memory has to be there until now


def work(counters: int) -> int:
    """A thread's share of the job at an address."""
    job = numba.carray(to_longs(counters), (sharing.JOB,))
    groups = job[GROUPS]
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
    return 0


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


def load() -> int:
    """Compiles `multiply`, or loads it. The address of `work`, for it; 0 where the CPU has no
    instructions for them."""
    if CHOSEN is None:
        return 0
    multiply.compile((types.int64,) * 15)
    return sharing.address_of(work)
