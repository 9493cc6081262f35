"""Attention of a pass: keys and values go into the cache, and queries that share a key/value head
attend to it, some at once (tiles/attention.py)."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from model.cpu.blocks.compiled.floats import gain, rotate
from model.cpu.blocks.compiled.intrinsics import (
    call_with,
    float_rows_at,
    floats_at,
    half_rows_at,
    int_rows_at,
    number_at,
    to_half,
)
from model.cpu.blocks.compiled.words import (
    ATTEND,
    ATTENDED,
    CAPACITY,
    DIM,
    EPS,
    GAINS,
    HEADS,
    KEY,
    KEYS,
    KV_HEADS,
    LAYER,
    MOST,
    NROWS,
    OUT,
    PAIRS,
    QKV,
    QUERIES,
    RMS,
    ROTATIONS,
    SCORE_SCALE,
    SCORES,
    SEEN,
    SEEN_KEYS,
    SEEN_VALUES,
    SPLITS,
    START,
    TOTAL,
    VALUES,
    WIDEN_ROWS,
    WINDOW,
)
from model.cpu.blocks.layout import BLOCK, POSITIONS, WIDTHS
from model.cpu.blocks.tiles.attention import MASKED

# What only compiled code calls.
njit = numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
f32 = np.float32
LARGEST_HALF = f32(np.finfo(np.float16).max)
WIDEST = WIDTHS[-1]


@njit
def attend_few(control: Any, phase: Any, own: Any, piece: int) -> None:
    """Some of the heads that share a key/value head, for all rows. The pieces of a key/value head
    write the same keys and values."""
    group = control[HEADS] // control[KV_HEADS]
    head = piece // control[SPLITS]
    part = piece % control[SPLITS]
    first = group * part // control[SPLITS]
    count = group * (part + 1) // control[SPLITS] - first
    for r in range(control[NROWS]):
        keep(control, phase, own, head, r)
    queries = control[NROWS] * count
    for begin in range(0, queries, WIDEST):
        some = min(WIDEST, queries - begin)
        attend(control, phase, own, (head, head * group + first, count), begin, some)


@njit
def attend_many(control: Any, phase: Any, own: Any, piece: int) -> None:
    """As many queries of the heads that share a key/value head as a tile takes. The last ones,
    which see most, come first."""
    group = control[HEADS] // control[KV_HEADS]
    queries = control[NROWS] * group
    head = piece % control[KV_HEADS]
    begin = WIDEST * (-(-queries // WIDEST) - 1 - piece // control[KV_HEADS])
    some = min(WIDEST, queries - begin)
    attend(control, phase, own, (head, head * group, group), begin, some)


@njit
def keep(control: Any, phase: Any, own: Any, head: int, r: int) -> None:
    """Puts a row's key and value into the cache. If a number of the value is none, the key has
    none: so later rows learn of it, and earlier ones do not, for they take no share of it."""
    dim = control[DIM]
    kv_heads = control[KV_HEADS]
    place = control[START] + r
    row = control[QKV] + 4 * dim * (control[HEADS] + 2 * kv_heads) * r
    key = floats_at(own[KEY], dim)
    own_key = floats_at(row + 4 * dim * (control[HEADS] + head), dim)
    value = floats_at(row + 4 * dim * (control[HEADS] + kv_heads + head), dim)
    doubt = f32(0)
    for j in range(dim):
        key[j] = own_key[j]
        doubt += value[j] * f32(0)
    turn(control, phase, key, control[HEADS] + head, place)
    cached = 2 * dim * (control[CAPACITY] * (phase[LAYER] * kv_heads + head) + place)
    keys = half_rows_at(control[KEYS] + cached, 1, dim)
    values = half_rows_at(control[VALUES] + cached, 1, dim)
    for j in range(dim):
        keys[0, j] = to_half(limited(key[j] + doubt))
        values[0, j] = to_half(limited(value[j]))


@njit
def limited(number: Any) -> Any:
    """As a half-precision number can be; NaN stays."""
    if number > LARGEST_HALF:
        return LARGEST_HALF
    if number < -LARGEST_HALF:
        return -LARGEST_HALF
    return number


@njit
def turn(control: Any, phase: Any, vector: Any, head: int, place: int) -> None:
    """Norms a query or a key, if the model does, and rotates it to its position."""
    if phase[GAINS]:
        gains = floats_at(phase[GAINS] + 4 * len(vector) * head, len(vector))
        gain(vector, gains, control[RMS] != 0, number_at(control, EPS))
    pairs = control[PAIRS]
    rotate(vector, float_rows_at(control[ROTATIONS] + 8 * pairs * place, pairs, 2))


@njit
def attend(control: Any, phase: Any, own: Any, heads: Any, begin: int, some: int) -> None:
    """Some queries, at most WIDEST, from number `begin` on: those of the first row, then those of
    the next. heads: of keys and values, the first of the queries', and how many these are."""
    kv_head, first, count = heads
    dim = control[DIM]
    kind = 0
    while WIDTHS[kind] < some:
        kind += 1
    width = WIDTHS[kind]
    seen = int_rows_at(own[SEEN], 2, width)
    from_ = gather(control, phase, own, heads, begin, some, width)
    end = seen[1, some - 1]
    kept = control[CAPACITY] * (phase[LAYER] * control[KV_HEADS] + kv_head)
    for position in range(from_ // POSITIONS * POSITIONS, end, POSITIONS):
        there = min(POSITIONS, end - position)
        cached = 2 * dim * (kept + position)
        call_with(control[WIDEN_ROWS], (control[KEYS] + cached, there, dim, own[SEEN_KEYS], 0))
        call_with(control[WIDEN_ROWS], (control[VALUES] + cached, there, dim, own[SEEN_VALUES], 1))
        call_with(
            control[ATTEND],
            (
                kind, position, there, dim, own[SEEN_KEYS], own[SEEN_VALUES], own[QUERIES],
                own[SEEN], own[SCORES], own[MOST], own[TOTAL], own[OUT],
            ),
        )  # fmt: skip
    out = float_rows_at(own[OUT], dim, width)
    total = floats_at(own[TOTAL], width)
    stride = -(-control[HEADS] * dim // BLOCK) * BLOCK
    for i in range(some):
        number = begin + i
        at = stride * (number // count) + dim * (first + number % count)
        row = floats_at(control[ATTENDED] + 4 * at, dim)
        for j in range(dim):
            row[j] = out[j, i] / total[i]


@njit
def gather(
    control: Any, phase: Any, own: Any, heads: Any, begin: int, some: int, width: int
) -> Any:
    """Prepares what a tile reads and writes. Returns the first position that a query sees."""
    _, first, count = heads
    dim = control[DIM]
    queries = float_rows_at(own[QUERIES], dim, width)
    seen = int_rows_at(own[SEEN], 2, width)
    most = floats_at(own[MOST], width)
    total = floats_at(own[TOTAL], width)
    out = floats_at(own[OUT], dim * width)
    for j in range(dim * width):
        out[j] = f32(0)
    line = control[HEADS] + 2 * control[KV_HEADS]
    scale = number_at(control, SCORE_SCALE)
    for i in range(width):
        most[i] = f32(MASKED)
        total[i] = f32(0)
        seen[0, i] = 0
        seen[1, i] = 0
        if i >= some:
            for j in range(dim):
                queries[j, i] = f32(0)
            continue
        number = begin + i
        r = number // count
        head = first + number % count
        stop = control[START] + r + 1
        seen[1, i] = stop
        if control[WINDOW]:
            seen[0, i] = max(0, stop - control[WINDOW])
        query = floats_at(control[QKV] + 4 * dim * (line * r + head), dim)
        turn(control, phase, query, head, stop - 1)
        for j in range(dim):
            queries[j, i] = query[j] * scale
    return seen[0, 0]
