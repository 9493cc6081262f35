"""The product with interleaved int8 weights, compiled by numba.

Threads share a job by counting: each takes the next piece that nobody has taken. A thread that
comes late, because the machine is busy, holds nobody up.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types

from model.cpu.interleaved.intrinsics import CHOSEN, add_to, fork, pause, tile, to_floats, to_ints
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

# A job: addresses and sizes, int64 each, and three counters, each in a cache line of its own.
X, ROWS, WIDTH, WEIGHTS, SCALE, SUMS, OUT, Y, ROUNDED, STEPS, GROUPS, PIECE = range(12)
TAKEN, ROUNDED_GROUPS, DONE = 16, 24, 32
JOB = 40


@njit
def multiply(
    x: int, rows: int, width: int, weights: int, scale: int, sums: int, out: int, y: int,
    rounded: int, steps: int, threads: int, parallel: int, share: int,
) -> None:  # fmt: skip
    """x (rows, width) float32 times interleaved weights (out, width), into y (rows, out).

    rounded, steps: room for the rounded activations, rows * QUAD * ceil(width / QUAD) bytes, and
    their scales, rows float32. parallel, share: addresses, see `fork`; 0 if one thread works.
    """
    job = np.zeros(JOB, np.int64)
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
    panels = -(-out // OUTPUTS)
    job[PIECE] = max(1, min(16, panels // (4 * threads)))
    if job[GROUPS] == 1:  # not worth sharing
        round_group(job, 0)
        job[TAKEN] = 1
        job[ROUNDED_GROUPS] = 1
    if threads > 1:
        fork(parallel, share, job.ctypes.data, threads)
    else:
        work(job)


def share(address: Any) -> None:
    """Does a share of the job at an address."""
    work(numba.carray(address, JOB))


@njit
def work(job: Any) -> None:
    groups = job[GROUPS]
    counters = job.ctypes.data
    group = add_to(counters + 8 * TAKEN, 1)
    while group < groups:
        round_group(job, group)
        add_to(counters + 8 * ROUNDED_GROUPS, 1)
        group = add_to(counters + 8 * TAKEN, 1)
    while add_to(counters + 8 * ROUNDED_GROUPS, 0) < groups:
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


def load() -> int:
    """Compiles `multiply`, or loads it, and returns the address of `share`; 0 where the CPU has no
    instructions for it."""
    if CHOSEN is None:
        return 0
    x = np.ones((1, QUAD), f32)
    panel = np.ones((1, OUTPUTS, QUAD), np.int8)
    scale = np.ones(OUTPUTS, f32)
    sums = np.zeros(OUTPUTS, i32)
    y = np.empty((1, OUTPUTS), f32)
    rounded = np.empty(QUAD, u8)
    steps = np.empty(1, f32)
    data = [array.ctypes.data for array in (x, panel, scale, sums, y, rounded, steps)]
    multiply(data[0], 1, QUAD, *data[1:4], OUTPUTS, *data[4:], 1, 0, 0)
    code = numba.cfunc(types.void(types.CPointer(types.int64)), nopython=True, cache=True)(share)
    _kept.append(code)
    return int(code.address)


_kept: list[Any] = []  # the code at an address lives as long as this
