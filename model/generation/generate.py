"""Prefill and decode: a cache and a prompt -> an iterator of tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.decoder.decoder import Cancelled, Decoder
from model.decoder.kv_cache import KVCache
from model.generation.copying import CopyWeights, mix
from model.generation.drafting import LONGEST_DRAFT, Drafter, Tally
from model.generation.sampling import Sampler, Sampling
from model.generation.text_matches import Matches
from model.generation.token_healing import Healing


class TextStream(Protocol):
    def push(self, token_id: int) -> str: ...


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token: its id, the text that became whole with it, its log-probability (natural
    logarithm)."""

    id: int
    text: str
    logprob: float


def prefill(
    decoder: Decoder,
    cache: KVCache,
    ids: Sequence[int],
    should_stop: Callable[[], bool] | None,
    chunk: int,
    draft: Sequence[int] = (),
) -> Tensor:
    """Brings the cache, which holds the first cache.length of ids, up to all of them and the draft
    behind them.

    Returns the logits (1 + len(draft), vocabulary) behind the last id and each of the draft. Raises
    Cancelled; finished chunks stay in the cache.
    """
    if not cache.length < len(ids):
        raise ValueError("the cache must leave at least one id to compute")
    while True:
        piece = list(ids[cache.length : cache.length + chunk])
        last = cache.length + len(piece) == len(ids)
        rows = 1 + len(draft) if last else 1
        step = torch.tensor([[*piece, *draft] if last else piece], device=decoder.device)
        with torch.inference_mode():
            logits: Tensor = decoder(
                step, cache=cache, logits_to_keep=rows, should_stop=should_stop
            ).logits[0]
        if last:
            return logits


class Stepper:
    """Passes over a few rows, with as little between them as can be."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._decoder, self._cache = decoder, cache
        self._on_cpu = decoder.device.type == "cpu"
        self._input = torch.zeros((1, 1 + LONGEST_DRAFT), dtype=torch.long)
        self._numbers = self._input.numpy()[0]
        self._row = torch.empty(decoder.config.vocab_size)
        self._view: NDArray[np.float32] = self._row.numpy()

    def __call__(self, ids: Sequence[int]) -> Tensor:
        """Logits (len(ids), vocabulary) behind each."""
        rows = len(ids)
        self._numbers[:rows] = ids
        step = self._input[:, :rows]
        with torch.inference_mode():
            step = step if self._on_cpu else step.to(self._decoder.device)
            logits: Tensor = self._decoder(step, cache=self._cache, logits_to_keep=rows).logits[0]
        return logits

    def normalize(self, logits: Tensor) -> NDArray[np.float32]:
        """Logits (vocabulary,) -> log-probabilities, in a buffer that the next call writes to
        again."""
        if logits.dtype != torch.float32 or not self._on_cpu:
            logits = logits.to("cpu", torch.float32)
        torch.log_softmax(logits, -1, out=self._row)
        return self._view


def generate(
    decoder: Decoder,
    cache: KVCache,
    ids: Sequence[int],
    *,
    max_new_tokens: int,
    text: TextStream,
    sampling: Sampling,
    stop_ids: Collection[int] = (),
    should_stop: Callable[[], bool] | None = None,
    healing: Healing | None = None,
    matches: Matches | None = None,
    copying: CopyWeights | None = None,
    drafter: Drafter | None = None,
    tally: Tally | None = None,
    chunk: int | None = None,
) -> Iterator[Token]:
    """Continues ids, whose first cache.length are in the cache already, until a stop id, the limit,
    or should_stop.

    A stop id is not yielded. should_stop is asked between the layers of a prefill and between
    tokens; the iterator then just ends. healing is the text to begin with, which is not yielded;
    there, log-probabilities are those given that text. matches, those of ids in themselves, is
    needed for copying, which mixes in what followed the same tokens (log-probabilities are then the
    mixture's), and for drafter, which changes how many passes it takes and nothing else. At every
    moment the cache holds a prefix of ids + the tokens yielded. Raises ValueError for an empty
    prompt or one longer than the model takes.
    """
    if not ids:
        raise ValueError("the prompt is empty")
    if len(ids) > decoder.config.max_positions:
        raise ValueError(
            f"a prompt of {len(ids)} tokens does not fit the model's {decoder.config.max_positions}"
        )
    max_new_tokens = min(max_new_tokens, decoder.config.max_positions - len(ids) + 1)
    cache.reserve(min(len(ids) + max_new_tokens, decoder.config.max_positions))
    tally = Tally() if tally is None else tally
    chunk = chunk or decoder.prefill_chunk
    rows = (len(ids) - cache.length - 1) % chunk + 1
    draft = drafter.propose(max_new_tokens - 1, rows) if drafter else []
    try:
        logits = prefill(decoder, cache, ids, should_stop, chunk, draft)
    except Cancelled:
        return
    step, sample, left = Stepper(decoder, cache), Sampler(sampling), max_new_tokens
    while left > 0:
        tally.drafted += len(draft)
        cache.trim(
            cache.length - len(draft)
        )  # what the drafts have computed comes back as they prove right
        for place, row in enumerate(logits):
            scores = step.normalize(row)
            if copying and matches:
                mix(copying, scores, *matches.votes())
            if healing:
                healing.mask(scores)
            token = sample(scores)
            right = drafter.learn(place, token) if drafter else False
            tally.accepted += right and place < len(draft)
            if token in stop_ids:
                return
            logprob = float(scores[token])
            if matches:
                matches.push(token)
            piece = text.push(token)
            left -= 1
            yield Token(token, healing.take(piece) if healing else piece, logprob)
            if not left or (should_stop is not None and should_stop()):
                return
            if not right or place == len(draft):
                break
            cache.commit(1)
        draft = drafter.propose(left - 1) if drafter else []
        logits = step([token, *draft])
        tally.passes += 1
