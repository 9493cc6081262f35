"""How much text a prompt may hold: what this machine's engine reads in time, by its own measure.

A request offers the engine prompts of a few sizes. It runs the largest whose uncached part it can
read within the time budget, and reads the larger ones when it is idle; then these are cached and
the next request gets them. A prompt of each size keeps its windows' edges, so each only grows.
"""

from __future__ import annotations

from collections.abc import Sequence

UNLIMITED = 2**31  # tokens: as much as the setting contextTokens or the model allows
FIRST = 256  # tokens of text; with less, suggestions are worth little
UNMEASURED = 2048
IDLE_S = 8.0  # of reading; a larger prompt would seldom be ready in time
STEP = 4  # between two sizes
STEADY = 1.5  # a speed that differs less from the one in use changes nothing


class PromptSizes:
    """The sizes for one engine. They change only if its speed has really changed: windows of
    another size would have other edges, and nothing of them would be cached."""

    def __init__(self) -> None:
        self._speed: float | None = None

    def at(self, speed: float | None, budget_ms: float, limit: int) -> Sequence[int]:
        """Tokens of the text in a prompt, the largest size first.

        speed: tokens of a prompt read in a second; None: nothing was measured yet. limit: of a
        whole prompt; sizes that it cuts are one, UNLIMITED.
        """
        sizes = self._sizes(speed, budget_ms)
        kept = [size for size in sizes if size < limit]
        return kept if len(kept) == len(sizes) else [UNLIMITED, *kept]

    def _sizes(self, speed: float | None, budget_ms: float) -> list[int]:
        known = self._speed
        if speed is not None and (known is None or not known / STEADY < speed < known * STEADY):
            self._speed = speed
        if self._speed is None:
            return [UNMEASURED, FIRST]
        first = max(FIRST, power_of_two(self._speed * budget_ms / 1000))
        largest = max(first, power_of_two(self._speed * IDLE_S))
        sizes = [largest]
        size = first
        while 2 * size <= largest:
            sizes.append(size)
            size *= STEP
        return sorted(sizes, reverse=True)


def power_of_two(value: float) -> int:
    """The largest power of two that is not above the value; 1 if there is none."""
    return 1 << max(0, int(value).bit_length() - 1)
