"""Copying from the context: the model's next-token probabilities mixed with what followed the same
tokens before.

A small model knows less about a file than the file itself. Wherever the last tokens stood before,
what came behind them votes for the next token; how much the votes count grows with the length of
the match and falls with the model's own certainty. A continuous cache (Grave, Joulin, Usunier 2017,
arXiv 1612.04426) over exact matches instead of hidden states; the four weights are fitted on
held-out code (training/copying.py).
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray


def features(match: int, agreement: float, certainty: float) -> tuple[float, float, float, float]:
    """What the weights are multiplied with. match in tokens; agreement: the share of the votes for
    the first choice; certainty: the model's largest probability."""
    certainty = min(max(certainty, 1e-6), 1 - 1e-6)
    return 1.0, math.log(match), agreement, math.log(certainty / (1 - certainty))


@dataclass(frozen=True, slots=True)
class CopyWeights:
    """The votes' share in the mixture is the sigmoid of the features' weighted sum."""

    bias: float
    length: float
    agreement: float
    confidence: float

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, astuple(self))):
            raise ValueError("the weights of copying must be finite")

    def share(self, match: int, agreement: float, certainty: float) -> float:
        one, by_length, by_agreement, by_certainty = features(match, agreement, certainty)
        score = (
            self.bias * one
            + self.length * by_length
            + self.agreement * by_agreement
            + self.confidence * by_certainty
        )
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))


def mix(weights: CopyWeights, row: NDArray[np.float32], match: int, votes: dict[int, int]) -> None:
    """Changes the model's log-probabilities (vocabulary,) to those of the mixture with the
    votes."""
    if not votes:
        return
    total = sum(votes.values())
    share = weights.share(match, max(votes.values()) / total, math.exp(row[row.argmax()]))
    row += math.log1p(-share)
    tokens, counts = list(votes), np.fromiter(votes.values(), np.float32, len(votes))
    row[tokens] = np.logaddexp(row[tokens], np.log(counts * np.float32(share / total)))
