"""One decoder for all native families: embeddings, layers, final norm, causal language-model head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import DecoderConfig
from model.kv_cache import KVCache
from model.layers import DecoderLayer, Embedding, Factory, Linear, rope_tables


class Cancelled(Exception):
    """`should_stop` said so between two layers. The cache is as it was before the call."""


@dataclass(frozen=True, slots=True)
class DecoderOutput:
    """logits (batch, positions kept, vocabulary)."""

    logits: Tensor


class Decoder(nn.Module):
    """Made with whatever is in memory for weights; model.weights fills it."""

    def __init__(self, config: DecoderConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        factory: Factory = {"device": device, "dtype": dtype}
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, **factory)
        self.layers = nn.ModuleList(DecoderLayer(config, factory) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps, **factory)
        if not config.tie_embeddings:
            self.head = Linear(config.hidden_size, config.vocab_size, bias=False, **factory)
        self._rope: tuple[Tensor, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

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

        logits_to_keep: logits of only the last so many positions; 0 keeps all. Raises Cancelled when should_stop,
        asked between layers, says so; ValueError when the positions do not fit the model.
        """
        batch, new = input_ids.shape
        start = 0 if cache is None else cache.length
        if start + new > self.config.max_positions:
            raise ValueError(f"{start + new} positions do not fit the model's {self.config.max_positions}")
        if cache is not None:
            if batch != 1:
                raise ValueError("a cache holds one sequence: batch must be 1")
            cache.reserve(start + new)
        cos, sin = (t[start : start + new, None] for t in self._rope_tables())  # each (T, 1, rotated)
        x = self.embed_tokens(input_ids)  # (B, T, hidden)
        for i, layer in enumerate(self.layers):
            if should_stop is not None and should_stop():
                raise Cancelled
            x = layer(x, cos, sin, i, cache)
        if cache is not None:
            cache.commit(new)
        x = self.norm(x[:, -logits_to_keep:])
        head = self.embed_tokens.weight if self.config.tie_embeddings else self.head.weight
        return DecoderOutput(F.linear(x, head))

    def _rope_tables(self) -> tuple[Tensor, Tensor]:
        """cos and sin of every position, shared by all layers: (max_positions, rotated) each."""
        if self._rope is None or self._rope[0].device != self.device or self._rope[0].dtype != self.dtype:
            positions = torch.arange(self.config.max_positions, device=self.device)
            cos, sin = rope_tables(self.config.rope, positions)
            self._rope = cos.to(self.dtype), sin.to(self.dtype)
        return self._rope
