"""How fast the model runs on this machine: running medians of real requests."""

from __future__ import annotations

from collections import deque
from statistics import median

KEPT = 15  # measurements
LEAST = 32  # positions; shorter prefills cost what a step does, and say nothing of longer ones


class Speed:
    """Positions a second of prefill and decode. Another program's work counts, too: the medians
    follow it within some requests."""

    def __init__(self) -> None:
        self._prefills: deque[float] = deque(maxlen=KEPT)
        self._decodes: deque[float] = deque(maxlen=KEPT)

    def prefilled(self, positions: int, seconds: float) -> None:
        """Adds a whole prefill; the seconds include the choice of the first token."""
        if positions >= LEAST and seconds > 0:
            self._prefills.append(positions / seconds)

    def decoded(self, tokens: int, seconds: float) -> None:
        """Adds the tokens after an answer's first."""
        if tokens > 0 and seconds > 0:
            self._decodes.append(tokens / seconds)

    @property
    def prefill(self) -> float | None:
        """None before anything was measured."""
        return median(self._prefills) if self._prefills else None

    @property
    def decode(self) -> float | None:
        """None before anything was measured."""
        return median(self._decodes) if self._decodes else None

    def fits(self, positions: int, seconds: float) -> bool:
        """Whether so many positions are prefilled in so many seconds; False if that is unknown."""
        rate = self.prefill
        return positions < LEAST or (rate is not None and positions <= rate * seconds)
