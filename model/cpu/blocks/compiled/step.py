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

Everything lies in int64 words, most of them addresses: arrays as arguments would take numba several
times as long to compile, and each call some of a small model's time.

Shapes: R rows, H heads, K key/value heads, D head dimension, T threads, P panels.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types

from model.cpu.blocks.compiled.floats import ACTIVATIONS as ACTIVATIONS
from model.cpu.blocks.compiled.floats import AT_ONCE as AT_ONCE
from model.cpu.blocks.compiled.floats import activate, attend, gain, norm, rotate
from model.cpu.blocks.compiled.intrinsics import (
    add_to,
    call,
    call_with,
    exchange,
    float_rows_at,
    floats_at,
    half_rows_at,
    load_now,
    longs_at,
    pause,
    to_half,
)
from model.cpu.blocks.layout import BLOCK, OUTPUTS

# What only compiled code calls.
njit = numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
f32 = np.float32
LARGEST_HALF = f32(np.finfo(np.float16).max)

ROWS = 16  # of a pass, at most
SPINS = 2000  # before a thread that waits for others sleeps
SLEEP_SPINS = 20000  # before a thread without a pass sleeps
LINE = 8  # int64 in a cache line

# The words of the threads' control block. Those that change are in cache lines of their own:
# the number of the last pass, how many threads without one sleep, whether they shall end, and how
# many sleep until a phase is done.
PASS, ASLEEP, STOP, WAITING = 0, LINE, 2 * LINE, 3 * LINE
# What a pass works on: layers from PART until END.
NROWS, KEPT, START, KEYS, VALUES, CAPACITY, LOGITS, PART, END = range(4 * LINE, 4 * LINE + 9)
# The model. Floats are in the first half of their word.
LAYERS, HIDDEN, HEADS, KV_HEADS, DIM, PAIRS, WINDOW, SPLITS, ACTIVATION, RMS, EPS, SCORE_SCALE = (
    range(6 * LINE, 6 * LINE + 12)
)
# Addresses: of the phases; of cos and sin, float32 (positions, PAIRS, 2); of what all threads share
# (the residual stream, float32 (R, HIDDEN); queries, keys and values (R, H + 2K, D); what attention
# gives (R, H * D in whole blocks); the MLP's inner activations, rounded); of each thread's words.
TABLE, ROTATIONS, X, QKV, ATTENDED, INNER, INNER_STEPS, INNER_SUMS, OWN = range(
    8 * LINE, 8 * LINE + 9
)
# Addresses of functions: of the tiles, and of the C library with its semaphores; of these there is
# one for the threads without a pass, and one for those that wait for a phase's end.
MULTIPLY, ROUND, THREADS, WAIT, POST, IDLE, DONE = range(10 * LINE, 10 * LINE + 7)
WORDS = 11 * LINE
# Then, for each phase, two words in a cache line each: the number of its last pass with how many
# pieces are taken, and with how many are done.
PHASE = 2 * LINE

# The words of a phase. PANELS: address of int64 (COUNT, 4). BIAS: address of float32 (outputs,), or
# 0. NORM: address of float32 (2, HIDDEN), weight and bias, or 0. GAINS: address of float32 (H + K,
# D), of the norms on queries and keys, or 0. FACTOR: float32, of a product. WIDTH: in whole blocks.
KIND, LAYER, PIECES, PIECE, PANELS, COUNT, WIDTH, BIAS, NORM, GAINS, FACTOR = range(11)
FIELDS = 12
PHASES = 5  # of a layer
# Kinds. UP_GATED: as many panels of the gate, then those of the other half.
TO_QKV, ATTENTION, TO_X, UP, UP_GATED, DOWN, HEAD = range(7)

# What tells a panel.
ADDRESS, CODE, FIRST, OUTS = range(4)

# A thread's own words: addresses of float32 (HIDDEN in whole blocks,); of rounded rows; of two
# tiles, float32 (R, OUTPUTS); of float32 (D,), (H / K, positions) and (4, D).
NORMED, ROUNDED, STEPS, SUMS, TILE, OTHER, KEY, SCORES, WIDE = range(9)
OWN_WORDS = 9


@njit
def number_at(words: Any, word: int) -> Any:
    """The float32 in the first half of a word."""
    return floats_at(words.ctypes.data + 8 * word, 1)[0]


@njit
def take(counters: int, number: int, pieces: int) -> Any:
    """The next piece of a phase that nobody has taken; -1 if there is none, or the pass is over."""
    while True:
        word = load_now(counters)
        piece = word & 0xFFFFFFFF
        if word >> 32 != number or piece >= pieces:
            return -1
        if exchange(counters, word, word + 1):
            return piece


@njit
def count_done(control: Any, counters: int, done: int) -> None:
    """Counts a piece; the last one wakes who waits for it."""
    if add_to(counters + 8 * LINE, 1) + 1 == done:
        for _ in range(load_now(control.ctypes.data + 8 * WAITING)):
            call(control[POST], control[DONE])


@njit
def finish(control: Any, counters: int, number: int, done: int) -> None:
    """Waits until all pieces of a phase are done, or the pass is over. Who sleeps is woken at once;
    who only lets others run would wait for the end of their time."""
    waiting = control.ctypes.data + 8 * WAITING
    last = control.ctypes.data + 8 * PASS
    spins = 0
    while load_now(counters + 8 * LINE) < done and load_now(last) == number:
        if spins < SPINS or not control[WAIT]:
            pause()
            spins += 1
        else:
            add_to(waiting, 1)
            if load_now(counters + 8 * LINE) < done:  # it was not when WAITING was counted
                call(control[WAIT], control[DONE])
            add_to(waiting, -1)


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
    hidden = control[HIDDEN]
    width = phase[WIDTH]
    blocks = width // BLOCK
    for r in range(rows):
        row = control[ATTENDED] + 4 * width * r
        if phase[NORM]:
            row = own[NORMED]
            norm(
                float_rows_at(control[X] + 4 * hidden * (first + r), 1, hidden),
                float_rows_at(phase[NORM], 2, hidden), control[RMS] != 0, number_at(control, EPS),
                float_rows_at(row, 1, hidden),
            )  # fmt: skip
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
        last = longs_at(phase[PANELS] + 32 * (phase[COUNT] - 1), 4)
        stride = last[FIRST] + last[OUTS]
    factor = number_at(phase, FACTOR)
    tile = own[TILE]
    for p in range(piece * phase[PIECE], min(phase[COUNT], (piece + 1) * phase[PIECE])):
        panel = longs_at(phase[PANELS] + 32 * p, 4)
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
    if phase[BIAS]:
        count = panel[OUTS]
        bias = floats_at(phase[BIAS] + 4 * panel[FIRST], count)
        for r in range(rows):
            row = floats_at(tile + 4 * OUTPUTS * r, count)
            for j in range(count):
                row[j] += bias[j]


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
        panel = longs_at(phase[PANELS] + 32 * p, 4)
        multiply(control, phase, panel, rows, x, own[TILE])
        if gated:
            other = longs_at(phase[PANELS] + 32 * (count + p), 4)
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


@njit
def attention_piece(control: Any, phase: Any, own: Any, piece: int) -> None:
    """Some of the heads that share a key/value head: rotates, caches and attends. The pieces of a
    key/value head write the same keys and values."""
    dim = control[DIM]
    kv_heads = control[KV_HEADS]
    group = control[HEADS] // kv_heads
    head = piece // control[SPLITS]
    part = piece % control[SPLITS]
    first = head * group + group * part // control[SPLITS]
    count = head * group + group * (part + 1) // control[SPLITS] - first
    cached = 2 * dim * control[CAPACITY] * (phase[LAYER] * kv_heads + head)
    keys = half_rows_at(control[KEYS] + cached, control[CAPACITY], dim)
    values = half_rows_at(control[VALUES] + cached, control[CAPACITY], dim)
    line = 4 * dim * (control[HEADS] + 2 * kv_heads)
    for r in range(control[NROWS]):
        place = control[START] + r
        row = control[QKV] + line * r
        for h in range(first, first + count):
            query = floats_at(row + 4 * dim * h, dim)
            turn(control, phase, query, h, place)
            for j in range(dim):
                query[j] *= number_at(control, SCORE_SCALE)
        key = floats_at(own[KEY], dim)
        own_key = floats_at(row + 4 * dim * (control[HEADS] + head), dim)
        value = floats_at(row + 4 * dim * (control[HEADS] + kv_heads + head), dim)
        for j in range(dim):
            key[j] = own_key[j]
        turn(control, phase, key, control[HEADS] + head, place)
        for j in range(dim):
            keys[place, j] = to_half(min(max(key[j], -LARGEST_HALF), LARGEST_HALF))
            values[place, j] = to_half(min(max(value[j], -LARGEST_HALF), LARGEST_HALF))
    width = -(-control[HEADS] * dim // BLOCK) * BLOCK
    for r in range(control[NROWS]):
        stop = control[START] + r + 1
        start = max(0, stop - control[WINDOW]) if control[WINDOW] else 0
        attend(
            float_rows_at(control[QKV] + line * r + 4 * dim * first, count, dim),
            half_rows_at(control[KEYS] + cached + 2 * dim * start, stop - start, dim),
            half_rows_at(control[VALUES] + cached + 2 * dim * start, stop - start, dim),
            float_rows_at(own[SCORES], count, stop - start),
            float_rows_at(own[WIDE], AT_ONCE, dim),
            float_rows_at(control[ATTENDED] + 4 * (width * r + dim * first), count, dim),
        )


@njit
def turn(control: Any, phase: Any, vector: Any, head: int, place: int) -> None:
    """Norms a query or a key, if the model does, and rotates it to its position."""
    if phase[GAINS]:
        gains = floats_at(phase[GAINS] + 4 * len(vector) * head, len(vector))
        gain(vector, gains, control[RMS] != 0, number_at(control, EPS))
    pairs = control[PAIRS]
    rotate(vector, float_rows_at(control[ROTATIONS] + 8 * pairs * place, pairs, 2))


@njit
def last_phase(control: Any) -> Any:
    """The one after the last of a pass."""
    return min(PHASES * control[LAYERS] + 1, PHASES * control[END])


@njit
def begin(control: Any) -> None:
    """Opens the next pass, whose words are filled in, and wakes who sleeps. Phases that are not the
    pass's keep an older number, so that nobody claims anything of them."""
    address = control.ctypes.data
    number = load_now(address + 8 * PASS) + 1
    for index in range(PHASES * control[PART], last_phase(control)):
        counters = longs_at(address + 8 * (WORDS + PHASE * index), PHASE)
        counters[LINE] = number << 32
        counters[0] = number << 32
    add_to(address + 8 * PASS, 1)
    for _ in range(min(control[THREADS] - 1, load_now(address + 8 * ASLEEP))):
        call(control[POST], control[IDLE])


@njit
def wait_for_pass(control: Any, last: int) -> Any:
    """The number of the pass after the last one; -1 if there is an end. Sleeps after a while."""
    address = control.ctypes.data
    spins = 0
    while load_now(address + 8 * STOP) == 0:
        number = load_now(address + 8 * PASS)
        if number != last:
            return number
        if spins < SLEEP_SPINS:
            pause()
            spins += 1
        else:
            add_to(address + 8 * ASLEEP, 1)
            # no pass was begun, and no end announced, before ASLEEP was counted
            if load_now(address + 8 * PASS) == last and load_now(address + 8 * STOP) == 0:
                call(control[WAIT], control[IDLE])
            add_to(address + 8 * ASLEEP, -1)
            spins = 0
    return -1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def share(address: int, t: int) -> None:
    """Thread 0 runs a pass. Helper t takes part in every pass until STOP is set. (One function for
    both, and for the pass: each one above it would take as long to compile again.)

    address: of the control block.
    """
    control = longs_at(address, WORDS)
    own = longs_at(control[OWN] + 8 * OWN_WORDS * t, OWN_WORDS)
    last = load_now(address + 8 * PASS)
    if t == 0:
        begin(control)
    while True:
        number = load_now(address + 8 * PASS)
        if number == last:
            number = wait_for_pass(control, last)
        if number < 0:
            return
        last = number
        for index in range(PHASES * control[PART], last_phase(control)):
            phase = longs_at(control[TABLE] + 8 * FIELDS * index, FIELDS)
            counters = address + 8 * (WORDS + PHASE * index)
            done = (number << 32) + phase[PIECES]
            piece = take(counters, number, phase[PIECES])
            if piece >= 0:
                prepare(control, phase, own)
            while piece >= 0:
                if phase[KIND] == ATTENTION:
                    attention_piece(control, phase, own, piece)
                elif phase[KIND] in (UP, UP_GATED):
                    up_piece(control, phase, own, piece)
                else:
                    product_piece(control, phase, own, piece)
                count_done(control, counters, done)
                piece = take(counters, number, phase[PIECES])
            finish(control, counters, number, done)
        if t == 0:
            return


def load() -> None:
    """Compiles `share`, or loads it."""
    share.compile((types.int64, types.int64))
