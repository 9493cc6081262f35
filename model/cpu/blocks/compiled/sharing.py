"""How threads share a job: by counting. Each takes the next piece that nobody has taken.

A job's owner opens it, works, and closes it. A helper that comes late, because the machine is busy,
finds it closed, and nobody has waited for it. A helper without a job spins for some microseconds,
then sleeps.

A job is a row of int64. The words up to BEGIN are the same in all kinds of jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from numba import types

from model.cpu.blocks.compiled.intrinsics import add_to, call, load_now, longs_at, pause

njit = numba.njit(cache=True, nogil=True, error_model="numpy")

SPINS = 1000  # some tens of microseconds, as OpenMP's threads spin (GOMP_SPINCOUNT in process.py)

# Counters of the threads, each in a cache line of its own: whether somebody owns the job, its
# number while it is open, how many helpers are inside, and how many sleep.
OWNED, OPEN, INSIDE, ASLEEP = 0, 8, 16, 24
NUMBER = 32  # of the job that was opened last
WORK = 33  # address of the function that does it, which takes the job's address
BEGIN = 40  # of what the kind of job says
JOB = 96  # int64, at most


@njit
def own(pool: int, threads: int) -> bool:
    """Whether the caller has the helpers now; not if another thread of this process has them."""
    if threads == 1:
        return False
    if add_to(pool + 8 * OWNED, 1) == 0:
        return True
    add_to(pool + 8 * OWNED, -1)
    return False


@njit
def run(job: Any, shared: bool, threads: int, semaphore: int, post: int) -> None:
    """Does a job, together with the helpers if the caller owns them, and waits for its end."""
    address = job.ctypes.data
    if not shared:
        call(job[WORK], address)
        return
    job[NUMBER] += 1
    add_to(address + 8 * OPEN, job[NUMBER])
    for _ in range(min(threads - 1, load_now(address + 8 * ASLEEP))):
        call(post, semaphore)
    call(job[WORK], address)
    add_to(address + 8 * OPEN, -job[NUMBER])  # lets no more helpers in
    while load_now(address + 8 * INSIDE) > 0:
        pause()
    add_to(address + 8 * OWNED, -1)


@njit
def help_with(pool: int, semaphore: int, wait: int) -> None:
    """What a helper does, without an end."""
    job = longs_at(pool, JOB)
    last = 0
    spins = 0
    while True:
        number = load_now(pool + 8 * OPEN)
        if number != 0 and number != last:
            last = number
            spins = 0
            add_to(pool + 8 * INSIDE, 1)
            if load_now(pool + 8 * OPEN) != 0:  # it has not been closed meanwhile
                call(job[WORK], pool)
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


def load() -> None:
    """Compiles `help_with`, or loads it."""
    help_with.compile((types.int64,) * 3)


def address_of(work: Callable[[int], int]) -> int:
    """Compiles a function for WORK, or loads it. It stays in memory."""
    compiled = numba.cfunc(types.int32(types.int64), cache=True)(work)
    _COMPILED.append(compiled)
    return int(compiled.address)


_COMPILED: list[Any] = []
