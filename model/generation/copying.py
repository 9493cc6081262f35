"""Copying from the context: mixes the model's next-token probabilities with the tokens that
followed the same text before.

A small model knows less about a file than the file itself. Wherever the last tokens stood before,
the token that followed them votes for the next token. The weight of the votes grows with the length
of the match and falls with the model's own certainty. This is a continuous cache (Grave, Joulin,
Usunier 2017, arXiv 1612.04426) over exact matches instead of hidden states; the four weights are
fitted on held-out code (training/copying.py).
"""

from __future__ import annotations

import math
import operator
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from model.generation.text_matches import TextMatches


def features(match: int, agreement: float, certainty: float) -> tuple[float, float, float, float]:
    """The factors of the four weights. match: its length in tokens; agreement: the share of the
    votes for the first choice; certainty: the model's largest probability."""
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
        factors = features(match, agreement, certainty)
        score = sum(map(operator.mul, astuple(self), factors))
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))


class Copying:
    """A score processor that mixes in the votes. The generation's drafter updates the matches."""

    def __init__(self, weights: CopyWeights, matches: TextMatches) -> None:
        self._weights = weights
        self._matches = matches

    def process(self, scores: NDArray[np.float32]) -> None:
        """Changes the model's log-probabilities (vocabulary,) to those of the mixture."""
        match, votes = self._matches.votes()
        if not votes:
            return
        total = sum(votes.values())
        certainty = math.exp(scores[scores.argmax()])
        share = self._weights.share(match, max(votes.values()) / total, certainty)
        scores += math.log1p(-share)
        tokens = list(votes)
        counts = np.fromiter(votes.values(), np.float32, len(votes))
        scores[tokens] = np.logaddexp(scores[tokens], np.log(counts * np.float32(share / total)))

    def take(self, text: str) -> str:
        return text
