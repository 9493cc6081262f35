"""From log-probabilities to a token: greedy, or temperature and nucleus sampling (Holtzman et al.
2020) with a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0 is greedy; top_p keeps the fewest tokens whose probabilities reach it."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < float("inf") and 0 < self.top_p <= 1):
            raise ValueError(
                f"temperature {self.temperature} must be >= 0, top_p {self.top_p} in (0, 1]"
            )


class Sampler:
    """Draws the tokens of one generation; the same seed draws the same tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random: np.random.Generator | None = None
        if sampling.temperature > 0:
            self._random = np.random.default_rng(sampling.seed)

    def __call__(self, scores: NDArray[np.float32]) -> int:
        """Log-probabilities (vocabulary,) -> a token's id."""
        if self._random is None:
            return int(scores.argmax())
        sampling = self._sampling
        tokens, probabilities = nucleus(scores, sampling.temperature, sampling.top_p)
        sums = probabilities.cumsum()
        drawn = sums.searchsorted(self._random.random() * sums[-1], "right")
        return int(tokens[min(int(drawn), len(tokens) - 1)])


def nucleus(
    scores: NDArray[np.float32], temperature: float, top_p: float
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The nucleus of log-probabilities (vocabulary,): ids and probabilities, likeliest first."""
    powers = np.exp((scores - scores.max()) / np.float64(max(temperature, 1e-6)))
    probabilities = powers / powers.sum()
    # The tokens below this bound together have less than 1 - top_p, so they are never in the
    # nucleus. Few are left to sort.
    tokens = (probabilities >= (1 - top_p) / len(scores)).nonzero()[0]
    tokens = tokens[np.argsort(-probabilities[tokens], kind="stable")]
    kept = probabilities[tokens]
    inside = kept.cumsum() - kept < top_p  # the first token is always inside
    return tokens[inside], kept[inside]
