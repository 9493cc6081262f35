"""One decoder for all native families: embeddings, layers, final norm, causal language-model
head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from model.decoder.config import DecoderConfig
from model.decoder.factory import Factory
from model.decoder.kv_cache import KVCache, Unfinished
from model.decoder.layers import DecoderLayer
from model.decoder.rope import Rotations
from model.decoder.stopping import Cancelled, ShouldStop, ask


@dataclass(frozen=True, slots=True)
class DecoderOutput:
    """logits (batch, positions kept, vocabulary)."""

    logits: Tensor


class Step(Protocol):
    """Runs up to `max_rows` new positions after a cache, faster than the decoder's layers do.

    The result of each row does not depend on the other rows, except for the last bits on CUDA
    (model.gpu.cuda_graphs).
    """

    max_rows: int

    def __call__(
        self,
        ids: Tensor,
        cache: KVCache,
        keep: int,
        should_stop: ShouldStop | None,
        begun: Unfinished | None,
    ) -> Tensor:
        """ids (rows,) -> logits (keep, vocabulary) of the last rows.

        The cache has room for the rows. Commits them. begun: the same pass, which was cancelled; it
        may go on from there. Raises Cancelled.
        """


class Decoder(nn.Module):
    """A new decoder holds whatever is in memory for weights; model.weights.checkpoint fills it.

    scheme, prefill_chunk, cache_dtype: the factory's.
    """

    def __init__(self, config: DecoderConfig, factory: Factory) -> None:
        super().__init__()
        self.config = config
        self.scheme = factory.scheme
        self.prefill_chunk = factory.prefill_chunk
        self.cache_dtype = factory.cache_dtype
        self.embed_tokens = factory.embedding(config.vocab_size, config.hidden_size)
        if config.rope is None:
            self.embed_positions = factory.positions(config)
        self.layers = nn.ModuleList(DecoderLayer(config, factory) for _ in range(config.num_layers))
        self.norm = factory.norm(config)
        if not config.tie_embeddings:
            self.head = factory.head(config)
        self._step: Step | None = None
        self._row_costs: Mapping[int, float] | None = None
        self._cache_costs: Mapping[int, float] = {}
        self._rotations: Rotations | None = None

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of what is computed between the matrices."""
        return self.norm.weight.dtype

    @property
    def step(self) -> Step | None:
        """Runs rows after a cache in place of the layers; None where the layers do."""
        return self._step

    @property
    def row_costs(self) -> Mapping[int, float] | None:
        """The time of a pass over so many rows, as a multiple of one row's: in an empty cache, or
        where there are no cache_costs in one of typical length.

        Numbers of rows that are missing are not worth drafting for (model.generation.drafting).
        """
        return self._row_costs

    @property
    def cache_costs(self) -> Mapping[int, float]:
        """What 1,000 positions in the cache add to row_costs."""
        return self._cache_costs

    def use_step(
        self,
        step: Step | None,
        row_costs: Mapping[int, float] | None = None,
        cache_costs: Mapping[int, float] | None = None,
    ) -> None:
        """Lets `step` run what it can from now on; None lets the layers run everything."""
        self._step = step
        self._row_costs = row_costs
        self._cache_costs = cache_costs or {}

    def new_cache(self, capacity: int = 0) -> KVCache:
        return KVCache(self.config, dtype=self.cache_dtype, device=self.device, capacity=capacity)

    def forward(
        self,
        input_ids: Tensor,
        *,
        cache: KVCache | None = None,
        logits_to_keep: int = 0,
        should_stop: ShouldStop | None = None,
    ) -> DecoderOutput:
        """Runs input_ids (batch, positions) after what the cache holds (batch 1 with a cache).

        logits_to_keep: logits of only the last so many positions; 0 keeps all. should_stop is asked
        before each part of a layer. Raises Cancelled when it returns true; ValueError when the
        positions do not fit the model. A pass that was cancelled goes on where it was, if it is the
        next one with its cache.
        """
        new = input_ids.shape[1]
        end = self.make_room(input_ids, cache)
        start = end - new
        begun = None if cache is None else cache.take_unfinished(input_ids)
        if cache is not None and self._step is not None and new <= self._step.max_rows:
            keep = min(logits_to_keep, new) or new
            logits = self._step(input_ids[0], cache, keep, should_stop, begun)
            return DecoderOutput(logits[None])
        rotations = self._rotations_of(end, cache)[start:end]
        if begun is None:
            begun = Unfinished(input_ids, start, 0, self.embed(input_ids, slice(start, end)))
        layer, x = begun.layer, begun.x
        try:
            while layer < len(self.layers):
                x = self.layers[layer](x, rotations, layer, cache, should_stop=should_stop)
                layer += 1
            ask(should_stop)
        except Cancelled:
            if cache is not None:
                cache.unfinished = Unfinished(input_ids.clone(), start, layer, x)
            raise
        if cache is not None:
            cache.commit(new)
        return DecoderOutput(self.logits_of(self.norm(x[:, -logits_to_keep:])))

    def make_room(self, input_ids: Tensor, cache: KVCache | None) -> int:
        """Reserves the positions of input_ids (batch, positions) and returns where they end.

        Raises ValueError when they do not fit the model or the cache.
        """
        batch, new = input_ids.shape
        end = new if cache is None else cache.length + new
        if end > self.config.max_positions:
            raise ValueError(f"{end} positions do not fit the model's {self.config.max_positions}")
        if cache is not None:
            if batch != 1:
                raise ValueError("a cache holds one sequence: batch must be 1")
            cache.reserve(end)
        return end

    def embed(self, ids: Tensor, positions: slice | Tensor) -> Tensor:
        """ids (..., T) at positions, of which there are T -> (..., T, hidden)."""
        return self.place(self.embed_tokens(ids), positions)

    def place(self, x: Tensor, positions: slice | Tensor) -> Tensor:
        """What the first layer reads of token embeddings x (..., T, hidden) at positions."""
        if self.config.embedding_multiplier != 1:
            # Gemma's factor is rounded to the type; the other families' are exact in every type.
            x = x * torch.tensor(self.config.embedding_multiplier, dtype=self.dtype).item()
        if self.config.rope is None:
            x = x + self.embed_positions[positions]
        return x

    def logits_of(self, x: Tensor) -> Tensor:
        """The head: x (..., hidden) after the last norm -> logits (..., vocabulary)."""
        logits: Tensor
        logits = self.embed_tokens.as_head(x) if self.config.tie_embeddings else self.head(x)
        if self.config.logits_scaling != 1:
            logits = logits / self.config.logits_scaling
        return logits

    def _rotations_of(self, end: int, cache: KVCache | None) -> Rotations:
        """The rotations of the positions up to `end`; see model.decoder.rope."""
        rope = self.config.rope
        if cache is None and rope is not None and rope.varies:
            return Rotations.of_first(end, rope, self.device, self.dtype)
        return self.rotations

    @property
    def rotations(self) -> Rotations:
        """The rotations of every position in a sequence of max_positions, shared by all layers and
        made at the first use."""
        made = self._rotations
        if made is None or made.cos.device != self.device or made.cos.dtype != self.dtype:
            made = Rotations.of_first(
                self.config.max_positions, self.config.rope, self.device, self.dtype
            )
            self._rotations = made
        return made
