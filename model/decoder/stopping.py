"""How a pass that nobody waits for any longer ends: it asks now and then whether to stop."""

from __future__ import annotations

from collections.abc import Callable

ShouldStop = Callable[[], bool]
# For so long, about, a pass on a CPU computes before it asks again: the chunks of a prefill and the
# parts of a step are that small. The engine is then free for the next request within 30 ms.
ASK_EVERY_S = 0.015
LEAST_CHUNK = 32  # positions: smaller chunks of a prefill take longer for each
CHUNK_STEP = 16


class Cancelled(Exception):
    """`should_stop` returned true within a pass. The cache is as it was before the call, but
    for what it knows of the unfinished pass."""


def chunk_at(positions_per_s: float, layers: int) -> int:
    """The positions of a prefill's chunk for which a layer takes ASK_EVERY_S, at that speed of a
    whole prefill."""
    fitting = positions_per_s * layers * ASK_EVERY_S
    return max(LEAST_CHUNK, round(fitting / CHUNK_STEP) * CHUNK_STEP)


def ask(should_stop: ShouldStop | None) -> None:
    """Raises Cancelled where `should_stop` returns true."""
    if should_stop is not None and should_stop():
        raise Cancelled
