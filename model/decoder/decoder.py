"""One decoder for all native families: embeddings, layers, final norm, causal language-model
head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from model.decoder.config import DecoderConfig
from model.decoder.kv_cache import KVCache
from model.decoder.layers import DecoderLayer, Factory, Turns


class Cancelled(Exception):
    """`should_stop` said so between two layers. The cache is as it was before the call."""


@dataclass(frozen=True, slots=True)
class DecoderOutput:
    """logits (batch, positions kept, vocabulary)."""

    logits: Tensor


class FewRows(Protocol):
    """A forward pass of at most `most` rows behind a cache. Each row comes out as it would
    alone."""

    most: int

    def __call__(
        self, ids: Tensor, cache: KVCache, keep: int, should_stop: Callable[[], bool] | None
    ) -> Tensor:
        """ids (rows,) -> logits (keep, vocabulary) of the last. Raises Cancelled."""


class Decoder(nn.Module):
    """Made with whatever is in memory for weights; model.weights fills it.

    scheme: how the matrices are kept, and multiplied at first. row_costs: what a forward pass over
    so many rows behind a long cache takes, as a multiple of one row's. Absent rows are not worth
    drafting for (model.speculative). prefill_chunk: positions between two commits of a prefill,
    which is what a cancelled one may lose.
    """

    def __init__(self, config: DecoderConfig, factory: Factory) -> None:
        super().__init__()
        self.config, self.scheme = config, factory.scheme
        self.embed_tokens = factory.embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, factory) for _ in range(config.num_layers))
        self.norm = factory.norm(config.hidden_size, config.norm_eps)
        if not config.tie_embeddings:
            self.head = factory.linear(config.hidden_size, config.vocab_size, False)
        self.few_rows: FewRows | None = (
            None  # another way for a few rows behind a cache, where there is a faster one
        )
        self.row_costs: Mapping[int, float] | None = None
        self.prefill_chunk = 512
        self._turns: Turns | None = None

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of what is computed between the weights, and of the cache."""
        return self.norm.weight.dtype

    def new_cache(self, capacity: int = 0) -> KVCache:
        return KVCache(self.config, dtype=self.dtype, device=self.device, capacity=capacity)

    def forward(
        self,
        input_ids: Tensor,
        *,
        cache: KVCache | None = None,
        logits_to_keep: int = 0,
        should_stop: Callable[[], bool] | None = None,
    ) -> DecoderOutput:
        """Runs input_ids (batch, positions) behind what the cache holds (batch 1 with a cache).

        logits_to_keep: logits of only the last so many positions; 0 keeps all. Raises Cancelled
        when should_stop, asked between layers, says so; ValueError when the positions do not fit
        the model.
        """
        batch, new = input_ids.shape
        start = 0 if cache is None else cache.length
        if start + new > self.config.max_positions:
            raise ValueError(
                f"{start + new} positions do not fit the model's {self.config.max_positions}"
            )
        if cache is not None:
            if batch != 1:
                raise ValueError("a cache holds one sequence: batch must be 1")
            cache.reserve(start + new)
            if self.few_rows is not None and new <= self.few_rows.most:
                logits = self.few_rows(
                    input_ids[0], cache, min(logits_to_keep, new) or new, should_stop
                )
                return DecoderOutput(logits[None])
        turns = self.turns[start : start + new]
        x = self.embed_tokens(input_ids)  # (B, T, hidden)
        for i, layer in enumerate(self.layers):
            if should_stop is not None and should_stop():
                raise Cancelled
            x = layer(x, turns, i, cache)
        if cache is not None:
            cache.commit(new)
        x = self.norm(x[:, -logits_to_keep:])
        return DecoderOutput(
            self.embed_tokens.as_head(x) if self.config.tie_embeddings else self.head(x)
        )

    @property
    def turns(self) -> Turns:
        """The rotations of every position, shared by all layers."""
        if self._turns is None or (self._turns.cos.device, self._turns.cos.dtype) != (
            self.device,
            self.dtype,
        ):
            self._turns = Turns.of(
                self.config.rope, self.config.max_positions, self.device, self.dtype
            )
        return self._turns
