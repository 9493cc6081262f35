"""Prefill and decode: a cache and a prompt -> an iterator of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.decoder.config import DecoderConfig
from model.decoder.decoder import Decoder
from model.decoder.kv_cache import KVCache
from model.decoder.stopping import Cancelled
from model.errors import ModelError
from model.generation.drafting import LONGEST_DRAFT, Drafter, no_drafts
from model.generation.sampling import Sampler, Sampling

GREEDY = Sampling()


class TextStream(Protocol):
    def push(self, token_id: int) -> str:
        """The text that becomes whole with this token."""


class ScoreProcessor(Protocol):
    """Changes the log-probabilities that tokens are chosen from, and follows the answer."""

    def process(self, scores: NDArray[np.float32]) -> None:
        """Changes the log-probabilities (vocabulary,) of the next token in place."""

    def take(self, text: str) -> str:
        """Follows the text of the token that was chosen; returns the part that is yielded."""


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How a prompt is continued, and for how long.

    A token of stop_ids ends the generation and is not yielded. should_stop is asked within passes
    and between tokens; True ends the generation. The prefill runs in chunks of
    prefill_chunk positions, by default as many as the decoder's.
    """

    max_new_tokens: int
    sampling: Sampling = GREEDY
    stop_ids: Collection[int] = ()
    should_stop: Callable[[], bool] | None = None
    prefill_chunk: int | None = None

    @property
    def stopped(self) -> bool:
        return self.should_stop is not None and self.should_stop()


@dataclass(frozen=True, slots=True)
class Token:
    """text: became whole with this token; logprob: the natural logarithm of its probability."""

    id: int
    text: str
    logprob: float


@dataclass(slots=True)
class DecodeCounts:
    """The passes of the model after the prefill, the tokens drafted, and the drafts accepted."""

    passes: int = 0
    drafted: int = 0
    accepted: int = 0


def prefill(
    decoder: Decoder,
    cache: KVCache,
    ids: Sequence[int],
    should_stop: Callable[[], bool] | None,
    chunk: int,
    draft: Sequence[int] = (),
) -> Tensor:
    """Extends the cache, which holds the first cache.length ids, to all of them and the draft.

    Returns the logits (1 + len(draft), vocabulary) after the last id and after each id of the
    draft. Raises Cancelled; finished chunks stay in the cache.
    """
    if cache.length >= len(ids):
        raise ValueError("the cache must leave at least one id to compute")

    def run(piece: list[int], rows: int) -> Tensor:
        step = torch.tensor([piece], device=decoder.device)
        with torch.inference_mode():
            output = decoder(step, cache=cache, logits_to_keep=rows, should_stop=should_stop)
        logits: Tensor = output.logits[0]
        return logits

    if first := begun_chunk(cache, ids):
        run(list(ids[cache.length : cache.length + first]), 1)
    while cache.length + chunk < len(ids):
        run(list(ids[cache.length : cache.length + chunk]), 1)
    return run([*ids[cache.length :], *draft], 1 + len(draft))


def begun_chunk(cache: KVCache, ids: Sequence[int]) -> int:
    """The length of the chunk that an earlier prefill has begun, which is computed first; 0 where
    there is none, or nothing would be left after it."""
    begun = cache.begun(ids)
    return begun if cache.length + begun < len(ids) else 0


class DecodeStep:
    """Passes over a few ids, with little work between them."""

    def __init__(
        self, decoder: Decoder, cache: KVCache, should_stop: Callable[[], bool] | None
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._should_stop = should_stop
        self._on_cpu = decoder.device.type == "cpu"
        self._input = torch.zeros((1, 1 + LONGEST_DRAFT), dtype=torch.long)
        self._input_numbers = self._input.numpy()[0]
        self._scores = torch.empty(decoder.config.vocab_size)
        self._score_numbers: NDArray[np.float32] = self._scores.numpy()

    def __call__(self, ids: Sequence[int]) -> Tensor:
        """Logits (len(ids), vocabulary) after each id. Raises Cancelled."""
        rows = len(ids)
        self._input_numbers[:rows] = ids
        step = self._input[:, :rows]
        with torch.inference_mode():
            if not self._on_cpu:
                step = step.to(self._decoder.device)
            output = self._decoder(
                step, cache=self._cache, logits_to_keep=rows, should_stop=self._should_stop
            )
        logits: Tensor = output.logits[0]
        return logits

    def log_probabilities(self, logits: Tensor) -> NDArray[np.float32]:
        """Logits (vocabulary,) -> log-probabilities, in a buffer that the next call reuses. Raises
        ModelError where they are not finite."""
        if logits.dtype != torch.float32 or not self._on_cpu:
            logits = logits.to("cpu", torch.float32)
        torch.log_softmax(logits, -1, out=self._scores)
        first = self._score_numbers[0]  # all are NaN where one logit is; -inf where one is inf
        if not math.isfinite(first) and np.isnan(self._score_numbers).any():
            raise ModelError(
                "The model computes numbers that are not finite. Download it again, or set the "
                "dtype to 'float32'."
            )
        return self._score_numbers


def generate(
    decoder: Decoder,
    cache: KVCache,
    ids: Sequence[int],
    text: TextStream,
    options: GenerationOptions,
    processors: Sequence[ScoreProcessor] = (),
    drafter: Drafter | None = None,
    counts: DecodeCounts | None = None,
) -> Iterator[Token]:
    """Continues ids, the first cache.length of which the cache already holds.

    processors change the log-probabilities of each token in turn; a token's logprob is the one
    after the last of them. drafter, which follows the same text, changes how many passes the
    generation takes and nothing else. counts is added to. At every moment the cache holds a prefix
    of ids and the tokens yielded. Raises ValueError for an empty prompt or one longer than the
    model takes.
    """
    left = token_limit(decoder.config, ids, options.max_new_tokens)
    cache.reserve(min(len(ids) + left, decoder.config.max_positions))
    drafter = drafter or no_drafts()
    counts = counts or DecodeCounts()
    chunk = options.prefill_chunk or decoder.prefill_chunk
    rows_of_last_chunk = (len(ids) - cache.length - begun_chunk(cache, ids) - 1) % chunk + 1
    draft = drafter.propose(left - 1, rows_of_last_chunk, len(ids))
    step = DecodeStep(decoder, cache, options.should_stop)
    sample = Sampler(options.sampling)
    with suppress(Cancelled):
        logits = prefill(decoder, cache, ids, options.should_stop, chunk, draft)
        while left > 0:
            counts.drafted += len(draft)
            # The draft's positions are taken off again; each that is accepted is committed below.
            cache.trim(cache.length - len(draft))
            for place, row in enumerate(logits):
                scores = step.log_probabilities(row)
                for processor in processors:
                    processor.process(scores)
                token = sample(scores)
                accepted = drafter.learn(place, token) and place < len(draft)
                counts.accepted += accepted
                if token in options.stop_ids:
                    return
                drafter.push(token)
                left -= 1
                piece = text.push(token)
                for processor in processors:
                    piece = processor.take(piece)
                yield Token(token, piece, float(scores[token]))
                if not left or options.stopped:
                    return
                if not accepted:
                    break
                cache.commit(1)
            draft = drafter.propose(left - 1, positions=cache.length)
            logits = step([token, *draft])
            counts.passes += 1


def token_limit(config: DecoderConfig, ids: Sequence[int], max_new_tokens: int) -> int:
    """How many tokens may follow the prompt; the last needs no position. Raises ValueError."""
    if not ids:
        raise ValueError("the prompt is empty")
    if len(ids) > config.max_positions:
        raise ValueError(
            f"a prompt of {len(ids)} tokens does not fit the model's {config.max_positions}"
        )
    return min(max_new_tokens, config.max_positions - len(ids) + 1)
