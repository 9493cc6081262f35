"""How long a decoder's step takes by its number of rows, which says how many drafts are worth a
try (model.generation.drafting)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from model.cpu.measurements import fastest_us
from model.decoder.decoder import Decoder

FEW = (1, 2, 4, 8, 16)  # rows of a step with drafts, or of a few typed tokens
TYPICAL = 768  # positions in the cache while somebody types


def relative_costs(times: Mapping[int, float]) -> dict[int, float]:
    """The time of so many rows as a multiple of one row's.

    More rows never cost less: where they seem to, something else held up the measurement.
    """
    costs = {}
    slowest = 0.0
    for rows in sorted(times):
        slowest = max(slowest, times[rows])
        costs[rows] = slowest / times[1]
    return costs


def shape_of(decoder: Decoder) -> str:
    """The sizes that the time of a step depends on, as a name for the measurements."""
    config = decoder.config
    sizes = (
        config.num_layers,
        config.hidden_size,
        config.intermediate_size,
        int(config.gated_mlp),
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        config.vocab_size,
        config.max_positions,
    )
    return "x".join(map(str, sizes))


def step_rows(decoder: Decoder, max_rows: int) -> list[int]:
    """The numbers of rows for which a step is measured."""
    return [rows for rows in FEW if rows <= min(max_rows, decoder.config.max_positions)]


@torch.inference_mode()
def step_us(decoder: Decoder, counts: Sequence[int]) -> dict[int, float]:
    """Microseconds by rows, after a cache of typical length, to which each row attends."""
    cache = decoder.new_cache()
    length = min(TYPICAL, decoder.config.max_positions - max(counts))
    cache.reserve(length + max(counts))
    cache.keys.zero_()
    cache.values.zero_()
    cache.commit(length)
    found: dict[int, float] = {}
    for rows in counts:
        ids = torch.zeros(1, rows, dtype=torch.long)

        def step(ids: torch.Tensor = ids) -> None:
            cache.trim(length)
            decoder(ids, cache=cache, logits_to_keep=ids.shape[1])

        found[rows] = fastest_us(step)
    return found
