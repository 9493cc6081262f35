"""A decoder's pass over few rows as one function of machine code that several threads share.

The pass is a row of phases, each of them a number of pieces: so many panels of a product, or some
heads of attention. Every thread goes through all phases, takes pieces that nobody has taken, and
waits at the end of a phase until all of its pieces are done. A thread that comes late, because the
machine is busy, finds the pieces taken, and nobody has waited for it. What is small, norms and
rounding, every thread does for itself, which is faster than to wait for another one.

A piece is claimed by exchanging the phase's word, the pass's number and how many pieces are taken,
for the next one. A thread that slept while a pass ended cannot claim anything in the next.

A pass may be of some layers alone, and the next one goes on with the residual stream: so a caller
can ask in between whether the result is still wanted. The head counts as the layer after the last.

Shapes: L layers, R rows, H heads, K key/value heads, D head dimension, T threads, P panels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from model.cpu.blocks.layout import BLOCK, OUTPUTS
from model.cpu.blocks.panels import call_panel, round_block, round_row
from model.cpu.interleaved.intrinsics import (
    add_to,
    call,
    exchange,
    load_now,
    pause,
    to_floats,
    to_longs,
)
from model.cpu.numba_step import ACTIVATIONS as ACTIVATIONS
from model.cpu.numba_step import activate, attend, gain, norm, rotate

Floats = NDArray[np.float32]
Longs = NDArray[np.int64]

njit = numba.njit(cache=True, nogil=True, error_model="numpy")
# Its code is in its caller alone. What is compiled by itself, too, and again in the callers of its
# callers, takes several times as long.
inlined = numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")
f32 = np.float32

ROWS = 16  # of a pass, at most
SPINS = 2000  # before a thread lets others run
SLEEP_SPINS = 20000  # before a thread without a pass sleeps
LINE = 8  # int64 in a cache line

# The words of the threads' control block, each in a cache line of its own.
PASS, ASLEEP, STOP = 0, LINE, 2 * LINE
# What a pass works on.
NROWS, KEPT, START, KEYS, VALUES, CAPACITY, LOGITS, PART, END = range(3 * LINE, 3 * LINE + 9)
WORDS = 5 * LINE
# Then, for each phase, the number of its last pass with how many pieces are taken, and with how
# many are done.
PHASE = 2 * LINE
PHASES = 5  # of a layer

# What tells a panel.
ADDRESS, CODE, FIRST, COUNT = range(4)


class Matrix(NamedTuple):
    """One matrix of each layer, in panels."""

    panels: Longs  # (L, P, 4): address, number of the format, first output and how many
    bias: Floats  # (L, out); (L, 0) without
    factor: float  # of the product
    width: int  # in whole blocks
    piece: int  # panels
    multiply: int  # the address of panels.multiply_panel


class Weights(NamedTuple):
    qkv: Matrix
    out: Matrix
    up: Matrix  # gated: as many panels of the gate, then those of the other
    down: Matrix
    head: Matrix
    attention_norm: Floats  # (L, 2, hidden): weight and bias
    mlp_norm: Floats  # (L, 2, hidden)
    last_norm: Floats  # (2, hidden)
    gains: Floats  # (L, H + K, D); (L, 0, D) without norms on queries and keys
    rotations: Floats  # (positions, dim / 2, 2)


class Shape(NamedTuple):
    layers: int
    heads: int
    kv_heads: int
    dim: int
    window: int  # 0 without one
    score_scale: float
    activation: int
    gated: bool
    parallel: bool
    rms: bool
    eps: float
    splits: int  # pieces of a key/value head's attention


class Scratch(NamedTuple):
    """Shared by all threads, or one for each."""

    x: Floats  # (R, hidden): the residual stream
    qkv: Floats  # (R, H + 2K, D)
    attended: Floats  # (R, H * D in whole blocks)
    inner: NDArray[np.int8]  # (R * width of down,)
    inner_steps: Floats  # (R * blocks,)
    inner_sums: NDArray[np.int32]  # (R * blocks, 2)
    normed: Floats  # (T, 1, hidden in whole blocks)
    rounded: NDArray[np.int8]  # (T, R * the widest of hidden and H * D)
    steps: Floats  # (T, R * blocks)
    sums: NDArray[np.int32]  # (T, R * blocks, 2)
    tile: Floats  # (T, 2, R, OUTPUTS)
    key: Floats  # (T, D)
    scores: Floats  # (T, H / K, positions)


@njit
def take(control: int, phase: int, number: int, pieces: int) -> Any:
    """The next piece of a phase that nobody has taken; -1 if there is none, or the pass is over."""
    address = control + 8 * (WORDS + PHASE * phase)
    while True:
        word = load_now(address)
        if word >> 32 != number:
            return -1
        piece = word & 0xFFFFFFFF
        if piece >= pieces:
            return -1
        if exchange(address, word, word + 1):
            return piece


@njit
def finish(control: int, phase: int, number: int, pieces: int, yield_now: int) -> None:
    """Waits until all pieces of a phase are done, or the pass is over."""
    address = control + 8 * (WORDS + PHASE * phase + LINE)
    done = (number << 32) + pieces
    spins = 0
    while load_now(address) < done:
        pause()
        spins += 1
        if spins > SPINS:
            call(yield_now, 0)


@njit
def count_done(control: int, phase: int) -> None:
    add_to(control + 8 * (WORDS + PHASE * phase + LINE), 1)


@njit
def product(
    matrix: Matrix, layer: int, piece: int, t: int, rows: int, scratch: Scratch, out: Any, add: bool
) -> None:
    """One piece of the product with what the thread has rounded, into out (R, outputs)."""
    panels = matrix.panels[layer]
    bias = matrix.bias[layer]
    tile = scratch.tile[t, 0]
    blocks = matrix.width // BLOCK
    factor = f32(matrix.factor)
    x = scratch.rounded[t].ctypes.data
    steps = scratch.steps[t].ctypes.data
    sums = scratch.sums[t].ctypes.data
    for p in range(piece * matrix.piece, min(len(panels), (piece + 1) * matrix.piece)):
        at = panels[p]
        call_panel(
            matrix.multiply, at[CODE], at[ADDRESS], blocks, rows, x, steps, sums, 4 * blocks,
            tile.ctypes.data,
        )  # fmt: skip
        store(tile, at[FIRST], at[COUNT], rows, factor, bias, out, add)


@njit
def store(
    tile: Any, first: int, count: int, rows: int, factor: Any, bias: Any, out: Any, add: bool
) -> None:
    for r in range(rows):
        if len(bias):
            for j in range(count):
                tile[r, j] += bias[first + j]
        if add:
            for j in range(count):
                out[r, first + j] += tile[r, j] * factor
        else:
            for j in range(count):
                out[r, first + j] = tile[r, j] * factor


@njit
def pieces_of(matrix: Matrix) -> Any:
    return -(-matrix.panels.shape[1] // matrix.piece)


@njit
def prepare_norm(
    matrix: Matrix,
    rows: int,
    first: int,
    t: int,
    scratch: Scratch,
    weights: Any,
    rms: bool,
    eps: Any,
) -> None:
    """Norms and rounds rows of the residual stream for a thread's products."""
    hidden = scratch.x.shape[1]
    normed = scratch.normed[t]
    width = matrix.width
    blocks = width // BLOCK
    for r in range(rows):
        norm(scratch.x[first + r : first + r + 1], weights, rms, eps, normed[:, :hidden])
        round_row(
            normed[0, :width],
            scratch.rounded[t, r * width : (r + 1) * width],
            scratch.steps[t, r * blocks : (r + 1) * blocks],
            scratch.sums[t, r * blocks : (r + 1) * blocks],
        )


@njit
def prepare(matrix: Matrix, rows: int, t: int, scratch: Scratch) -> None:
    """Rounds what attention gave for a thread's products."""
    width = matrix.width
    blocks = width // BLOCK
    for r in range(rows):
        round_row(
            scratch.attended[r, :width],
            scratch.rounded[t, r * width : (r + 1) * width],
            scratch.steps[t, r * blocks : (r + 1) * blocks],
            scratch.sums[t, r * blocks : (r + 1) * blocks],
        )


@inlined
def run_pass(
    control_at: int, number: int, t: int, shape: Shape, weights: Weights, scratch: Scratch,
    yield_now: int,
) -> None:  # fmt: skip
    """A thread's share of the pass of that number."""
    control = numba.carray(to_longs(control_at), (WORDS,))
    rows = control[NROWS]
    kept = control[KEPT]
    start = control[START]
    capacity = control[CAPACITY]
    cache_shape = (shape.layers, shape.kv_heads, capacity, shape.dim)
    keys = numba.carray(to_floats(control[KEYS]), cache_shape)
    values = numba.carray(to_floats(control[VALUES]), cache_shape)
    eps = f32(shape.eps)
    end = control[END]
    phase = PHASES * control[PART]
    for layer in range(control[PART], min(end, shape.layers)):
        run_qkv(control_at, phase, number, t, rows, layer, shape, weights, scratch, yield_now)
        pieces = shape.kv_heads * shape.splits
        piece = take(control_at, phase + 1, number, pieces)
        while piece >= 0:
            attend_piece(piece, rows, start, t, layer, shape, weights, scratch, keys, values)
            count_done(control_at, phase + 1)
            piece = take(control_at, phase + 1, number, pieces)
        finish(control_at, phase + 1, number, pieces, yield_now)
        # A parallel layer's MLP reads what the layer began with.
        if shape.parallel:
            run_up(
                control_at, phase + 2, number, t, rows, layer, shape, weights, scratch, yield_now
            )
            run_out(control_at, phase + 3, number, t, rows, layer, weights, scratch, yield_now)
        else:
            run_out(control_at, phase + 2, number, t, rows, layer, weights, scratch, yield_now)
            run_up(
                control_at, phase + 3, number, t, rows, layer, shape, weights, scratch, yield_now
            )
        run_down(control_at, phase + 4, number, t, rows, layer, weights, scratch, yield_now)
        phase += PHASES
    if end <= shape.layers:
        return
    pieces = pieces_of(weights.head)
    piece = take(control_at, phase, number, pieces)
    if piece >= 0:
        first = rows - kept
        prepare_norm(weights.head, kept, first, t, scratch, weights.last_norm, shape.rms, eps)
    logits = numba.carray(to_floats(control[LOGITS]), (kept, vocabulary(weights.head)))
    while piece >= 0:
        product(weights.head, 0, piece, t, kept, scratch, logits, False)
        count_done(control_at, phase)
        piece = take(control_at, phase, number, pieces)
    finish(control_at, phase, number, pieces, yield_now)


@inlined
def run_qkv(
    control_at: int, phase: int, number: int, t: int, rows: int, layer: int, shape: Shape,
    weights: Weights, scratch: Scratch, yield_now: int,
) -> None:  # fmt: skip
    """A thread's share of queries, keys and values."""
    matrix = weights.qkv
    # (a reshape of numba's takes seconds to compile)
    parts, dim = scratch.qkv.shape[1:]
    out = numba.carray(to_floats(scratch.qkv.ctypes.data), (rows, parts * dim))
    pieces = pieces_of(matrix)
    piece = take(control_at, phase, number, pieces)
    if piece >= 0:
        norms = weights.attention_norm[layer]
        prepare_norm(matrix, rows, 0, t, scratch, norms, shape.rms, f32(shape.eps))
    while piece >= 0:
        product(matrix, layer, piece, t, rows, scratch, out, False)
        count_done(control_at, phase)
        piece = take(control_at, phase, number, pieces)
    finish(control_at, phase, number, pieces, yield_now)


@inlined
def run_out(
    control_at: int, phase: int, number: int, t: int, rows: int, layer: int, weights: Weights,
    scratch: Scratch, yield_now: int,
) -> None:  # fmt: skip
    """A thread's share of attention's output projection, added to the residual stream."""
    matrix = weights.out
    pieces = pieces_of(matrix)
    piece = take(control_at, phase, number, pieces)
    if piece >= 0:
        prepare(matrix, rows, t, scratch)
    while piece >= 0:
        product(matrix, layer, piece, t, rows, scratch, scratch.x, True)
        count_done(control_at, phase)
        piece = take(control_at, phase, number, pieces)
    finish(control_at, phase, number, pieces, yield_now)


@inlined
def run_up(
    control_at: int, phase: int, number: int, t: int, rows: int, layer: int, shape: Shape,
    weights: Weights, scratch: Scratch, yield_now: int,
) -> None:  # fmt: skip
    """A thread's share of the MLP's upper product and its activation."""
    matrix = weights.up
    pieces = inner_pieces(matrix, shape.gated)
    piece = take(control_at, phase, number, pieces)
    if piece >= 0:
        norms = weights.mlp_norm[layer]
        prepare_norm(matrix, rows, 0, t, scratch, norms, shape.rms, f32(shape.eps))
    while piece >= 0:
        inner_piece(matrix, layer, piece, t, rows, shape, scratch)
        count_done(control_at, phase)
        piece = take(control_at, phase, number, pieces)
    finish(control_at, phase, number, pieces, yield_now)


@inlined
def run_down(
    control_at: int, phase: int, number: int, t: int, rows: int, layer: int, weights: Weights,
    scratch: Scratch, yield_now: int,
) -> None:  # fmt: skip
    """A thread's share of the MLP's lower product, added to the residual stream."""
    matrix = weights.down
    pieces = pieces_of(matrix)
    piece = take(control_at, phase, number, pieces)
    while piece >= 0:
        down_piece(matrix, layer, piece, t, rows, scratch)
        count_done(control_at, phase)
        piece = take(control_at, phase, number, pieces)
    finish(control_at, phase, number, pieces, yield_now)


@njit
def vocabulary(head: Matrix) -> Any:
    last = head.panels[0, head.panels.shape[1] - 1]
    return last[FIRST] + last[COUNT]


@njit
def inner_pieces(up: Matrix, gated: bool) -> Any:
    panels = up.panels.shape[1]
    if gated:
        panels //= 2
    return -(-panels // up.piece)


@inlined
def inner_piece(
    up: Matrix, layer: int, piece: int, t: int, rows: int, shape: Shape, scratch: Scratch
) -> None:
    """One piece of the upper product with its activation, rounded: a panel gives one block."""
    panels = up.panels[layer]
    bias = up.bias[layer]
    count = len(panels) // 2 if shape.gated else len(panels)
    blocks = up.width // BLOCK
    gate = scratch.tile[t, 0]
    other = scratch.tile[t, 1]
    x = scratch.rounded[t].ctypes.data
    steps = scratch.steps[t].ctypes.data
    sums = scratch.sums[t].ctypes.data
    for p in range(piece * up.piece, min(count, (piece + 1) * up.piece)):
        at = panels[p]
        call_panel(
            up.multiply, at[CODE], at[ADDRESS], blocks, rows, x, steps, sums, 4 * blocks,
            gate.ctypes.data,
        )  # fmt: skip
        add_bias(gate, bias, at[FIRST], at[COUNT], rows)
        for r in range(rows):
            activate(gate[r], shape.activation)
        if shape.gated:
            at = panels[count + p]
            call_panel(
                up.multiply, at[CODE], at[ADDRESS], blocks, rows, x, steps, sums, 4 * blocks,
                other.ctypes.data,
            )  # fmt: skip
            add_bias(other, bias, at[FIRST], at[COUNT], rows)
            for r in range(rows):
                for j in range(OUTPUTS):
                    gate[r, j] *= other[r, j]
        for r in range(rows):
            for j in range(at[COUNT], OUTPUTS):
                gate[r, j] = f32(0)
            round_block(
                gate[r],
                0,
                scratch.inner[(r * count + p) * BLOCK : (r * count + p + 1) * BLOCK],
                scratch.inner_steps[r * count + p : r * count + p + 1],
                scratch.inner_sums[r * count + p : r * count + p + 1],
                0,
            )


@njit
def add_bias(tile: Any, bias: Any, first: int, count: int, rows: int) -> None:
    if len(bias):
        for r in range(rows):
            for j in range(count):
                tile[r, j] += bias[first + j]


@inlined
def down_piece(down: Matrix, layer: int, piece: int, t: int, rows: int, scratch: Scratch) -> None:
    panels = down.panels[layer]
    tile = scratch.tile[t, 0]
    blocks = down.width // BLOCK
    for p in range(piece * down.piece, min(len(panels), (piece + 1) * down.piece)):
        at = panels[p]
        call_panel(
            down.multiply, at[CODE], at[ADDRESS], blocks, rows, scratch.inner.ctypes.data,
            scratch.inner_steps.ctypes.data, scratch.inner_sums.ctypes.data, 4 * blocks,
            tile.ctypes.data,
        )  # fmt: skip
        store(tile, at[FIRST], at[COUNT], rows, f32(down.factor), down.bias[layer], scratch.x, True)


@inlined
def attend_piece(
    piece: int, rows: int, start: int, t: int, layer: int, shape: Shape, weights: Weights,
    scratch: Scratch, keys: Any, values: Any,
) -> None:  # fmt: skip
    """Some of the heads that share a key/value head: rotates, caches and attends. The pieces of a
    key/value head write the same keys and values."""
    head = piece // shape.splits
    part = piece % shape.splits
    group = shape.heads // shape.kv_heads
    first = head * group + group * part // shape.splits
    last = head * group + group * (part + 1) // shape.splits
    qkv = scratch.qkv
    eps = f32(shape.eps)
    own_key = scratch.key[t]  # the other pieces of the head write what is the same
    for r in range(rows):
        place = start + r
        for h in range(first, last):
            if weights.gains.shape[1]:
                gain(qkv[r, h], weights.gains[layer, h], shape.rms, eps)
            rotate(qkv[r, h], weights.rotations[place])
            for j in range(shape.dim):
                qkv[r, h, j] *= f32(shape.score_scale)
        own_key[:] = qkv[r, shape.heads + head]
        if weights.gains.shape[1]:
            gain(own_key, weights.gains[layer, shape.heads + head], shape.rms, eps)
        rotate(own_key, weights.rotations[place])
        keys[layer, head, place] = own_key
        values[layer, head, place] = qkv[r, shape.heads + shape.kv_heads + head]
    for r in range(rows):
        stop = start + r + 1
        begin = max(0, stop - shape.window) if shape.window else 0
        attended = scratch.attended[r, first * shape.dim : last * shape.dim]
        attend(
            qkv[r, first:last],
            keys[layer, head, begin:stop],
            values[layer, head, begin:stop],
            scratch.scores[t],
            numba.carray(to_floats(attended.ctypes.data), (last - first, shape.dim)),
        )


@inlined
def begin(control_at: int, phases: int, threads: int, semaphore: int, post: int) -> Any:
    """Opens the next pass, whose words are filled in, and wakes who sleeps; its number. Phases that
    are not the pass's keep an older number, so that nobody claims anything of them."""
    number = load_now(control_at + 8 * PASS) + 1
    control = numba.carray(to_longs(control_at), (WORDS + PHASE * phases,))
    for phase in range(PHASES * control[PART], min(phases, PHASES * control[END])):
        control[WORDS + PHASE * phase + LINE] = number << 32
        control[WORDS + PHASE * phase] = number << 32
    add_to(control_at + 8 * PASS, 1)
    for _ in range(min(threads - 1, load_now(control_at + 8 * ASLEEP))):
        call(post, semaphore)
    return number


@njit
def share(
    control_at: int, t: int, threads: int, semaphore: int, wait: int, post: int, yield_now: int,
    shape: Shape, weights: Weights, scratch: Scratch,
) -> None:  # fmt: skip
    """Thread 0 runs a pass. Helper t takes part in every pass until STOP is set. (One function for
    both, because each function that calls run_pass holds a copy of its code.)"""
    last = load_now(control_at + 8 * PASS)
    if t == 0:
        begin(control_at, PHASES * shape.layers + 1, threads, semaphore, post)
    spins = 0
    while load_now(control_at + 8 * STOP) == 0:
        number = load_now(control_at + 8 * PASS)
        if number != last:
            last = number
            spins = 0
            run_pass(control_at, number, t, shape, weights, scratch, yield_now)
            if t == 0:
                return
        elif spins < SLEEP_SPINS:
            pause()
            spins += 1
        else:
            add_to(control_at + 8 * ASLEEP, 1)
            # no pass was begun, and no end announced, before ASLEEP was counted
            if load_now(control_at + 8 * PASS) == last and load_now(control_at + 8 * STOP) == 0:
                call(wait, semaphore)
            add_to(control_at + 8 * ASLEEP, -1)
            spins = 0
