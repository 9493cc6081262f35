"""A decoder's pass as one function of machine code that several threads share.

The pass is a row of phases, each of them a number of pieces: so many panels of a product, or some
heads of attention. Every thread goes through all phases, takes pieces that nobody has taken, and
waits at the end of a phase until all of its pieces are done. A thread that comes late, because the
machine is busy, finds the pieces taken, and nobody has waited for it. Few rows and many have phases
of their own (few.py, many.py).

A piece is claimed by exchanging the phase's word, the pass's number and how many pieces are taken,
for the next one. A thread that slept while a pass ended cannot claim anything in the next.

A pass may be of some layers alone, and the next one goes on with the residual stream: so a caller
can ask in between whether the result is still wanted. The head counts as the layer after the last.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types

from model.cpu.blocks import semaphore
from model.cpu.blocks.compiled import few, many
from model.cpu.blocks.compiled.attention import attend_few, attend_many
from model.cpu.blocks.compiled.intrinsics import (
    add_to,
    call_with,
    exchange,
    load_now,
    longs_at,
    pause,
)
from model.cpu.blocks.compiled.words import (
    ASLEEP,
    ATTENTION,
    COUNTERS,
    DONE,
    END,
    FIELDS,
    FIRST_PHASE,
    IDLE,
    KEEPING,
    KIND,
    LAYERS,
    LINE,
    MANY,
    OWN,
    OWN_WORDS,
    PART,
    PASS,
    PHASES,
    PIECES,
    POST,
    READING,
    STOP,
    TABLE,
    THREADS,
    UP,
    UP_GATED,
    WAIT,
    WAITING,
    WORDS,
)

# What only compiled code calls.
njit = numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
ZERO, ONE, FOREVER = np.int64(0), np.int64(semaphore.ONE), np.int64(semaphore.FOREVER)
SPINS = 2000  # before a thread that waits for others sleeps
SLEEP_SPINS = 20000  # before a thread without a pass sleeps


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
            call_with(control[POST], (control[DONE], ONE, ZERO))


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
                call_with(control[WAIT], (control[DONE], FOREVER, ZERO))
            add_to(waiting, -1)


@njit
def phases_of(control: Any) -> Any:
    """The first one of a pass, and the one after its last."""
    first = control[FIRST_PHASE]
    each = control[PHASES]
    last = min(each * control[LAYERS] + 1, each * control[END])
    return first + each * control[PART], first + last


@njit
def begin(control: Any) -> None:
    """Opens the next pass, whose words are filled in, and wakes who sleeps. Phases that are not the
    pass's keep an older number, so that nobody claims anything of them."""
    address = control.ctypes.data
    number = load_now(address + 8 * PASS) + 1
    first, end = phases_of(control)
    for index in range(first, end):
        counters = longs_at(address + 8 * (WORDS + COUNTERS * index), COUNTERS)
        counters[LINE] = number << 32
        counters[0] = number << 32
    add_to(address + 8 * PASS, 1)
    for _ in range(min(control[THREADS] - 1, load_now(address + 8 * ASLEEP))):
        call_with(control[POST], (control[IDLE], ONE, ZERO))


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
                call_with(control[WAIT], (control[IDLE], FOREVER, ZERO))
            add_to(address + 8 * ASLEEP, -1)
            spins = 0
    return -1


@njit
def run_few(control: Any, phase: Any, own: Any, piece: int) -> None:
    kind = phase[KIND]
    if kind == ATTENTION:
        attend_few(control, phase, own, piece)
    elif kind in (UP, UP_GATED):
        few.up_piece(control, phase, own, piece)
    else:
        few.product_piece(control, phase, own, piece)


@njit
def run_many(control: Any, phase: Any, own: Any, piece: int) -> None:
    kind = phase[KIND]
    if kind == READING:
        many.read_piece(control, phase, own, piece)
    elif kind == KEEPING:
        many.keep_piece(control, phase, own, piece)
    elif kind == ATTENTION:
        attend_many(control, phase, own, piece)
    elif kind in (UP, UP_GATED):
        many.up_piece(control, phase, own, piece)
    else:
        many.product_piece(control, phase, own, piece)


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
        first, end = phases_of(control)
        for index in range(first, end):
            phase = longs_at(control[TABLE] + 8 * FIELDS * index, FIELDS)
            counters = address + 8 * (WORDS + COUNTERS * index)
            pieces = phase[PIECES]
            if phase[MANY]:
                pieces = many.pieces_of(control, phase)
            done = (number << 32) + pieces
            piece = take(counters, number, pieces)
            if piece >= 0 and not phase[MANY]:
                few.prepare(control, phase, own)
            while piece >= 0:
                if phase[MANY]:
                    run_many(control, phase, own, piece)
                else:
                    run_few(control, phase, own, piece)
                count_done(control, counters, done)
                piece = take(counters, number, pieces)
            finish(control, counters, number, done)
        if t == 0:
            return


def load() -> None:
    """Compiles `share`, or loads it."""
    share.compile((types.int64, types.int64))
