"""Token healing: a generation that must begin with a text, whatever tokens that takes.

A prompt that ends inside a word ends in tokens that the model seldom saw there. Its last piece is taken away, and the
first tokens are held to those that spell it: `retur` + `n` becomes ` return` again (Lundberg, "The art of prompt
design: prompt boundaries and token healing", 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Healing:
    """What is left of the text to begin with, and which tokens may come next."""

    def __init__(self, texts: Sequence[str | None], begin_with: str) -> None:
        """texts: each id's text, None for ids that are no whole text. Raises ValueError where none could follow."""
        self._texts, self.left = texts, begin_with
        self._allowed = self._find_allowed()
        if begin_with and not self._allowed:
            raise ValueError("no token of the model begins with this text")

    def mask(self, logits: Tensor) -> Tensor:
        """logits (vocabulary,), with minus infinity for every token that does not go with what is left."""
        if not self.left:
            return logits
        masked = torch.full_like(logits, float("-inf"))
        allowed = torch.tensor(self._allowed, device=logits.device)
        masked[allowed] = logits[allowed]
        return masked

    def take(self, text: str) -> str:
        """Spells with a token's text; returns what of it comes after the text to begin with."""
        spelled = min(len(self.left), len(text))
        if spelled:
            self.left = self.left[spelled:]
            self._allowed = self._find_allowed()
        return text[spelled:]

    def _find_allowed(self) -> list[int]:
        """The ids that go with what is left; none once nothing is."""
        if not (left := self.left):
            return []
        return [i for i, t in enumerate(self._texts) if t and (t.startswith(left) or left.startswith(t))]
