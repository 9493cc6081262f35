"""Token healing: a generation must begin with a given text, in whatever tokens spell it.

A prompt that ends inside a word ends in tokens that the model seldom saw there. So the prompt
leaves out its last piece, and the first generated tokens are limited to those that spell that
piece: `retur` + `n` becomes ` return` again (Lundberg, "The art of prompt design: prompt boundaries
and token healing", 2023).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

BLANKS = (" ", "\t")


class Spelling:
    """The tokens of a vocabulary, sorted by their texts."""

    def __init__(self, texts: Sequence[str | None]) -> None:
        """texts: the text of each id; None for an id that has no text of whole characters."""
        tokens = sorted((text, token) for token, text in enumerate(texts) if text)
        self._texts = [text for text, _ in tokens]
        self._ids = np.array(list(map(itemgetter(1), tokens)), np.intp)

    @cached_property
    def after_blank(self) -> dict[str, NDArray[np.intp]]:
        """For a blank and a tab the ids whose text begins with it and has no more of either."""
        found = {}
        for blank in BLANKS:
            wider = [self.ids_from(blank + more) for more in BLANKS]
            found[blank] = np.setdiff1d(self.ids_from(blank), np.concatenate(wider))
        return found

    def ids_from(self, text: str) -> NDArray[np.intp]:
        """The ids whose text begins with `text`."""
        begin = bisect_left(self._texts, text)
        end = bisect_right(self._texts, text, begin, key=lambda t: t[: len(text)])
        return self._ids[begin:end]

    def ids_for(self, text: str) -> NDArray[np.intp]:
        """The ids whose text begins with `text`, or is the beginning of `text`."""
        begin = bisect_left(self._texts, text)
        found = [self.ids_from(text)]
        for length in range(1, len(text)):
            first = bisect_left(self._texts, text[:length], 0, begin)
            last = bisect_right(self._texts, text[:length], first, begin)
            if first < last:
                found.append(self._ids[first:last])
        return np.concatenate(found)


class TokenHealing:
    """A score processor that allows only tokens that go on spelling the text, until it is whole."""

    def __init__(self, spelling: Spelling, begin_with: str) -> None:
        """After a text that is one blank or tab, the token that spells it has no second one: where
        the indentation was typed, models of byte-level tokens else begin the line with more of it.

        Raises ValueError where no token could follow.
        """
        self._spelling = spelling
        self._left = begin_with  # the part of the text that is not spelled yet
        self._allowed = spelling.ids_for(begin_with)
        if begin_with in BLANKS and len(spelling.after_blank[begin_with]):
            self._allowed = spelling.after_blank[begin_with]
        if not len(self._allowed):
            raise ValueError("no token of the model begins with this text")

    def process(self, scores: NDArray[np.float32]) -> None:
        """Makes all other tokens impossible; the probabilities of the allowed ones sum up to 1."""
        if not self._left:
            return
        allowed = scores[self._allowed]
        top = allowed.max()
        scores.fill(-np.inf)
        scores[self._allowed] = allowed - (top + np.log(np.exp(allowed - top).sum()))

    def take(self, text: str) -> str:
        """Spells with a token's text; returns the part of it that comes after the given text."""
        if not self._left:
            return text
        spelled = min(len(self._left), len(text))
        self._left = self._left[spelled:]
        if self._left:
            self._allowed = self._spelling.ids_for(self._left)
        return text[spelled:]
