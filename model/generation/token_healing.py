"""Token healing: a generation that must begin with a text, whatever tokens that takes.

A prompt that ends inside a word ends in tokens that the model seldom saw there. Its last piece is
taken away, and the first tokens are held to those that spell it: `retur` + `n` becomes ` return`
again (Lundberg, "The art of prompt design: prompt boundaries and token healing", 2023).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Spelling:
    """A vocabulary in the order of its texts."""

    def __init__(self, texts: Sequence[str | None]) -> None:
        """texts: each id's text, None for ids that are no whole text."""
        ordered = sorted((text, i) for i, text in enumerate(texts) if text)
        self._texts = [text for text, _ in ordered]
        self._ids = np.array([i for _, i in ordered], np.intp)

    def of(self, text: str) -> NDArray[np.intp]:
        """The ids that go with a text: it begins with theirs, or theirs with it."""
        begin = bisect_left(self._texts, text)
        end = bisect_right(self._texts, text, begin, key=lambda t: t[: len(text)])
        ranges = [(begin, end)]
        for length in range(1, len(text)):
            first = bisect_left(self._texts, text[:length], 0, begin)
            ranges.append((first, bisect_right(self._texts, text[:length], first, begin)))
        return np.concatenate(
            [self._ids[first:last] for first, last in ranges if first < last] or [self._ids[:0]]
        )


class Healing:
    """What is left of the text to begin with, and which tokens may come next."""

    def __init__(self, spelling: Spelling, begin_with: str) -> None:
        """Raises ValueError where no token could follow."""
        self._spelling, self.left = spelling, begin_with
        self._allowed = spelling.of(begin_with) if begin_with else None
        if self._allowed is not None and not len(self._allowed):
            raise ValueError("no token of the model begins with this text")

    def mask(self, row: NDArray[np.float32]) -> None:
        """Changes log-probabilities (vocabulary,) to those given what is left: nothing else may
        come."""
        if self._allowed is None:
            return
        allowed = row[self._allowed]
        top = allowed.max()
        row.fill(-np.inf)
        row[self._allowed] = allowed - (top + np.log(np.exp(allowed - top).sum()))

    def take(self, text: str) -> str:
        """Spells with a token's text; returns what of it comes after the text to begin with."""
        if not self.left:
            return text
        spelled = min(len(self.left), len(text))
        self.left = self.left[spelled:]
        self._allowed = self._spelling.of(self.left) if self.left else None
        return text[spelled:]
