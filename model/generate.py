"""Prefill and decode: a cache and a prompt -> an iterator of tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.copying import Copier
from model.decoder import Cancelled, Decoder
from model.healing import Healing
from model.kv_cache import KVCache
from model.sampling import Sampler, Sampling

PREFILL_CHUNK = 512  # positions between two commits: what a cancelled prefill may lose


class TextStream(Protocol):
    def push(self, token_id: int) -> str: ...


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token: its id, the text that became whole with it, its log-probability (natural logarithm)."""

    id: int
    text: str
    logprob: float


def prefill(
    decoder: Decoder, cache: KVCache, ids: Sequence[int], should_stop: Callable[[], bool] | None, chunk: int
) -> Tensor:
    """Brings the cache, which holds the first cache.length of ids, up to all of them.

    Returns the logits (vocabulary,) behind the last. Raises Cancelled; finished chunks stay in the cache.
    """
    if not cache.length < len(ids):
        raise ValueError("the cache must leave at least one id to compute")
    logits: Tensor | None = None
    while cache.length < len(ids):
        piece = torch.tensor([ids[cache.length : cache.length + chunk]], device=decoder.device)
        logits = decoder(piece, cache=cache, logits_to_keep=1, should_stop=should_stop).logits[0, -1]
    assert logits is not None
    return logits


@torch.inference_mode()
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
    copier: Copier | None = None,
    chunk: int = PREFILL_CHUNK,
) -> Iterator[Token]:
    """Continues ids, whose first cache.length are in the cache already, until a stop id, the limit, or should_stop.

    A stop id is not yielded. should_stop is asked between the layers of a prefill and between tokens; the iterator
    then just ends. healing is the text to begin with, which is not yielded; there, log-probabilities are those given
    that text. copier mixes in what followed the same tokens in ids; then log-probabilities are the mixture's. At every
    moment the cache holds a prefix of ids + the tokens yielded. Raises ValueError for an empty prompt or one longer
    than the model takes.
    """
    if not ids:
        raise ValueError("the prompt is empty")
    if len(ids) > decoder.config.max_positions:
        raise ValueError(f"a prompt of {len(ids)} tokens does not fit the model's {decoder.config.max_positions}")
    max_new_tokens = min(max_new_tokens, decoder.config.max_positions - len(ids) + 1)
    cache.reserve(min(len(ids) + max_new_tokens, decoder.config.max_positions))
    sample = Sampler(sampling, decoder.device)
    try:
        logits = prefill(decoder, cache, ids, should_stop, chunk)
        for count in range(1, max_new_tokens + 1):
            logits = copier.mix(logits) if copier else logits
            token, logprob = sample(healing.mask(logits) if healing else logits)
            if token in stop_ids:
                return
            if copier:
                copier.push(token)
            piece = text.push(token)
            yield Token(token, healing.take(piece) if healing else piece, logprob)
            if count == max_new_tokens or (should_stop is not None and should_stop()):
                return
            step = torch.tensor([[token]], device=decoder.device)
            logits = decoder(step, cache=cache, logits_to_keep=1).logits[0, -1]
    except Cancelled:
        return
