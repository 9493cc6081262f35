"""From log-probabilities to a token: greedy, or with a seed from the likeliest tokens: the top k,
the nucleus (Holtzman et al. 2020), those above a share of the likeliest (min-p, Nguyen et al.
2024)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0 is greedy. top_k keeps the likeliest so many tokens, 0 all; top_p the fewest of
    those whose probabilities reach it; min_p those of at least this share of the likeliest's."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < float("inf") and 0 < self.top_p <= 1):
            raise ValueError(
                f"temperature {self.temperature} must be >= 0, top_p {self.top_p} in (0, 1]"
            )
        if self.top_k < 0 or not 0 <= self.min_p <= 1:
            raise ValueError(f"top_k {self.top_k} must be >= 0, min_p {self.min_p} in [0, 1]")


class Sampler:
    """Draws the tokens of one generation; the same seed draws the same tokens.

    row: the text's number in a batch. Each has draws of its own.
    """

    def __init__(self, sampling: Sampling, row: int = 0) -> None:
        self._sampling = sampling
        self._random: np.random.Generator | None = None
        if sampling.temperature > 0:
            self._random = np.random.default_rng((sampling.seed, row))

    @property
    def is_greedy(self) -> bool:
        return self._random is None

    def __call__(self, scores: NDArray[np.float32]) -> int:
        """Log-probabilities (vocabulary,) -> a token's id."""
        if self._random is None:
            return int(scores.argmax())
        tokens, probabilities = candidates(scores, self._sampling)
        sums = probabilities.cumsum()
        drawn = sums.searchsorted(self._random.random() * sums[-1], "right")
        return int(tokens[min(int(drawn), len(tokens) - 1)])


def candidates(
    scores: NDArray[np.float32], sampling: Sampling
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """What may be drawn of log-probabilities (vocabulary,): ids and probabilities, likeliest first.

    The probabilities add up to 1 together with those of tokens that min_p and top_p left out.
    """
    if 0 < sampling.top_k < len(scores):
        least = np.partition(scores, -sampling.top_k)[-sampling.top_k]
        scores = np.where(scores < least, np.float32(-np.inf), scores)
    powers = np.exp((scores - scores.max()) / np.float64(max(sampling.temperature, 1e-6)))
    probabilities = powers / powers.sum()
    # The tokens below this bound together have less than 1 - top_p, so they are never in the
    # nucleus. Few are left to sort.
    bound = (1 - sampling.top_p) / len(scores)
    bound = max(bound, sampling.min_p * probabilities.max(), np.finfo(np.float64).tiny)
    tokens = (probabilities >= bound).nonzero()[0]
    tokens = tokens[np.argsort(-probabilities[tokens], kind="stable")]
    kept = probabilities[tokens]
    inside = kept.cumsum() - kept < sampling.top_p  # the first token is always inside
    return tokens[inside], kept[inside]
