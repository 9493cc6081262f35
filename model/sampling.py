"""From logits to a token: greedy, or temperature and nucleus sampling (Holtzman et al. 2020) with a seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0 is greedy; top_p keeps the fewest tokens whose probabilities reach it."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < float("inf") and 0 < self.top_p <= 1):
            raise ValueError(f"temperature {self.temperature} must be >= 0, top_p {self.top_p} in (0, 1]")


class Sampler:
    """Draws the tokens of one generation; the same seed draws the same tokens."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.sampling = sampling
        self._random = torch.Generator(device)
        self._random.manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> tuple[int, float]:
        """logits (vocabulary,) -> the token's id and its log-probability under the model itself (temperature 1)."""
        log_probabilities = torch.log_softmax(logits.float(), dim=-1)
        if self.sampling.temperature == 0:
            token = int(log_probabilities.argmax())
        else:
            probabilities = torch.softmax(logits.float() / self.sampling.temperature, dim=-1)
            token = int(torch.multinomial(nucleus(probabilities, self.sampling.top_p), 1, generator=self._random))
        return token, float(log_probabilities[token])


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """(vocabulary,) with everything outside the nucleus set to zero; not renormalized."""
    if top_p >= 1:
        return probabilities
    ordered, order = probabilities.sort(descending=True)
    outside = ordered.cumsum(-1) - ordered >= top_p  # the first token is always inside
    return probabilities.scatter(0, order[outside], 0.0)
