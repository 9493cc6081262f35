"""How long a decoder's step takes by its number of rows and behind how much, which says how many
drafts are worth a try (model.generation.drafting) and how long a prefill's chunk may be."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from statistics import median

import torch

from model.cpu.measurements import Busy, Measurements
from model.decoder.decoder import Decoder

# A tile of the products takes four rows at once, so that a fifth row is dear.
ROWS = (1, 2, 3, 4, 5, 8, 9, 12, 13, 16)
LONG = 1024  # positions in the cache of the second measurement
CHUNK = 64  # positions of a prefill that is measured behind those
# All counts in turn, so that what holds up the machine for a moment does not hold up one of them.
LEAST_ROUNDS, MOST_ROUNDS = 3, 9
PATIENCE_S = 0.5


@dataclass(frozen=True, slots=True)
class StepCosts:
    """rows: the time of a step over so many rows in an empty cache, as a multiple of one row's.
    cache: what 1,000 positions in the cache add. position_us: microseconds of each position of a
    prefill; None where nothing was measured."""

    rows: Mapping[int, float]
    cache: Mapping[int, float]
    position_us: float | None = None


# What to suppose: products are bound by reading the weights.
BY_THUMB = StepCosts(
    rows={1: 1.0, 4: 1.35, 5: 1.7, 8: 2.2, 9: 2.7, 12: 3.2, 16: 4.3}, cache={1: 0.05, 16: 0.6}
)


def step_costs(decoder: Decoder, name: str, folder: Path) -> StepCosts:
    """The costs of a decoder's step, which were measured before, or are now.

    name: of the way in which the decoder computes. folder: of the measurements. Where the machine
    is too busy to measure, they are by rule of thumb.
    """
    long = min(LONG, decoder.config.max_positions // 2)
    rows = [count for count in ROWS if count + long <= decoder.config.max_positions]

    measured: dict[str, dict[int, float]] = {}

    def measure(way: str, counts: Sequence[int]) -> dict[int, float]:
        if way not in measured:  # steps behind both numbers of positions in turn
            lengths = {"empty": 0, "long": long} if way in ("empty", "long") else {way: long}
            measured.update(step_us(decoder, counts, lengths))
        return measured[way]

    subject = f"{name} {shape_of(decoder)}"
    chunk = min(CHUNK, decoder.config.max_positions - long)
    wanted = {"empty": rows, "long": rows, "prefill": [chunk]}
    try:
        times = Measurements(folder).times(subject, wanted, measure)
    except Busy:
        return BY_THUMB
    return StepCosts(
        rows=_relative(times["empty"]),
        cache=_slopes(times["empty"], times["long"], long),
        position_us=times["prefill"][chunk] / chunk,
    )


def _relative(times: Mapping[int, float]) -> dict[int, float]:
    """The time of so many rows as a multiple of one row's.

    More rows never cost less: where they seem to, something else held up the measurement.
    """
    costs = {}
    most = 0.0
    for rows in sorted(times):
        most = max(most, times[rows])
        costs[rows] = most / times[1]
    return costs


def _slopes(
    empty: Mapping[int, float], long: Mapping[int, float], positions: int
) -> dict[int, float]:
    """What 1,000 positions add for so many rows: some for any number, and some for each row.
    Medians (Theil and Sen's line) are not led astray by a count that something else held up."""
    added = {rows: (long[rows] - empty[rows]) * 1000 / positions / empty[1] for rows in empty}
    pairs = combinations(added, 2)
    each = max(0.0, median((added[b] - added[a]) / (b - a) for a, b in pairs))
    any_number = max(0.0, median(more - each * rows for rows, more in added.items()))
    return {rows: any_number + each * rows for rows in empty}


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


@torch.inference_mode()
def step_us(
    decoder: Decoder, counts: Sequence[int], lengths: Mapping[str, int]
) -> dict[str, dict[int, float]]:
    """Microseconds by rows, behind each of the numbers of positions."""
    cache = decoder.new_cache()
    most = max(lengths.values())
    cache.reserve(most + max(counts))
    cache.keys.zero_()
    cache.values.zero_()
    cache.commit(most)
    found = {way: dict.fromkeys(counts, math.inf) for way in lengths}
    begun = time.perf_counter()
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() - begun > PATIENCE_S:
            break
        for rows, way in product(counts, lengths):
            ids = torch.zeros(1, rows, dtype=torch.long)
            cache.trim(0)
            cache.commit(lengths[way])
            started = time.perf_counter()
            decoder(ids, cache=cache, logits_to_keep=min(rows, ROWS[-1]))
            found[way][rows] = min(found[way][rows], (time.perf_counter() - started) * 1e6)
    return found
