"""Copying from the context: the model's next-token probabilities mixed with what followed the same tokens before.

A small model knows less about a file than the file itself. Wherever the last tokens stood before, what came behind
them votes for the next token; how much the votes count grows with the length of the match and falls with the model's
own certainty. A continuous cache (Grave, Joulin, Usunier 2017, arXiv 1612.04426) over exact matches instead of hidden
states; the four weights are fitted on held-out code (training/copying.py).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

LONGEST_MATCH = 32  # tokens; longer ones count no more
PLACES = 256  # the newest places looked at, of a token that is everywhere


def features(match: int, agreement: float, certainty: float) -> tuple[float, float, float, float]:
    """What the weights are multiplied with. match in tokens; agreement: the share of the votes for the first choice;
    certainty: the model's largest probability."""
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
        score = sum(w * f for w, f in zip(astuple(self), features(match, agreement, certainty), strict=True))
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))


class Copier:
    """The tokens of one generation so far, and where each of them stands."""

    def __init__(self, weights: CopyWeights, ids: Sequence[int], never: Collection[int]) -> None:
        """never: ids that are not copied: sentinels."""
        self._weights, self._never = weights, frozenset(never)
        self._ids: list[int] = []
        self._places: defaultdict[int, deque[int]] = defaultdict(lambda: deque(maxlen=PLACES))
        for token in ids:
            self.push(token)

    def push(self, token: int) -> None:
        """The generation goes on with this token."""
        if self._ids:  # the newest token itself has nothing behind it yet
            self._places[self._ids[-1]].append(len(self._ids) - 1)
        self._ids.append(token)

    def votes(self) -> tuple[int, Counter[int]]:
        """The length of the longest match, and what followed its places; the newest counts half as much again."""
        ids, longest, found = self._ids, 0, Counter[int]()
        end = len(ids) - 1
        for place in reversed(self._places.get(ids[end], ()) if ids else ()):
            follower = ids[place + 1]
            if follower in self._never:
                continue
            match = 1
            while match < LONGEST_MATCH and match <= place and ids[place - match] == ids[end - match]:
                match += 1
            if match > longest:
                longest, found = match, Counter()
            if match == longest:
                found[follower] += 2 if found else 3
        return longest, found

    def mix(self, logits: Tensor) -> Tensor:
        """logits (vocabulary,) -> log-probabilities (vocabulary,) of the mixture."""
        mixed = logits.float().log_softmax(-1)
        match, votes = self.votes()
        if not votes:
            return mixed
        total = votes.total()
        share = self._weights.share(match, max(votes.values()) / total, float(mixed.max().exp()))
        tokens = torch.tensor(list(votes), device=mixed.device)
        counted = torch.tensor([votes[t] / total for t in votes], device=mixed.device)
        mixed += math.log1p(-share)
        mixed[tokens] = torch.logaddexp(mixed[tokens], torch.log(share * counted))
        return mixed
