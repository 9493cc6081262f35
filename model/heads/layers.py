"""One layer with a mask of the caller's, dropouts, and its attention weights.

Shapes: B batch, T new positions, S positions seen (those of the cache and the new ones), H heads,
K key/value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.decoder.kv_cache import KVCache
from model.decoder.layers import Attention, DecoderLayer, attend, attend_where
from model.decoder.rope import Rotations
from model.errors import ModelError
from model.families.hf_config import ConfigReader


@dataclass(frozen=True, slots=True)
class Dropouts:
    """The shares that are dropped in training: StarCoder2's of the embeddings and of what attention
    and MLP add (residual), StableLM's of what the MLP adds (hidden), and both ones' of attention
    weights."""

    attention: float = 0.0
    embedding: float = 0.0
    residual: float = 0.0
    hidden: float = 0.0

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Dropouts:
        """From the content of config.json. Raises ModelError."""
        names = ("attention", "embedding", "residual", "hidden")
        return cls(**{name: read_dropout(raw, f"{name}_dropout", 0.0) for name in names})


def read_dropout(raw: Mapping[str, Any], key: str, default: float) -> float:
    """A share from the content of config.json. Raises ModelError."""
    share: float = ConfigReader(raw).get(key, float, default)
    if not 0 <= share <= 1:
        raise ModelError(f"config.json: {key} is {share}, but must be from 0 to 1")
    return share


NO_DROPOUTS = Dropouts()


class Layers:
    """Runs layers as DecoderLayer.forward does, with a mask and dropouts.

    mask: (B or 1, 1, T, S), true where a position is seen; None where only causality and the window
    decide.
    """

    def __init__(
        self,
        rotations: Rotations,
        mask: Tensor | None,
        dropouts: Dropouts,
        cache: KVCache | None,
        eager: bool,
    ) -> None:
        self.rotations = rotations
        self.mask = mask
        self.dropouts = dropouts
        self.cache = cache
        self.eager = eager
        self.attentions: list[Tensor] = []

    def run(self, layer: DecoderLayer, index: int, x: Tensor) -> Tensor:
        """x (B, T, hidden) -> (B, T, hidden)."""
        out: Tensor = layer(x, self.rotations, index, self.cache, self._compute)
        return out

    def _compute(
        self,
        layer: DecoderLayer,
        x: Tensor,
        rotations: Rotations,
        index: int,
        cache: KVCache | None,
    ) -> Tensor:
        """A LayerRun."""
        normed = layer.attention_norm(x)
        attended = self._attention(layer.attention, normed, rotations, index, cache)
        x = x + layer.scaled(F.dropout(attended, self.dropouts.residual))
        added = layer.mlp(normed if layer.parallel else layer.mlp_norm(x))
        added = F.dropout(F.dropout(added, self.dropouts.residual), self.dropouts.hidden)
        return x + layer.scaled(added)

    def _attention(
        self,
        attention: Attention,
        normed: Tensor,
        rotations: Rotations,
        index: int,
        cache: KVCache | None,
    ) -> Tensor:
        q, k, v = attention.project(normed, rotations)
        if cache is not None:
            k, v = cache.append(index, k[0], v[0])
        scale = attention.score_scale
        dropout = self.dropouts.attention
        if self.mask is None:
            return attention.join(attend(q, k, v, attention.config.sliding_window, scale))
        mask = self.mask.to(q.device)
        if not self.eager:
            return attention.join(attend_where(mask, q, k, v, scale, dropout))
        group = q.shape[1] // k.shape[1]
        k = k.repeat_interleave(group, dim=1)
        v = v.repeat_interleave(group, dim=1)
        weights = F.dropout(_weights(q, k, mask, scale), dropout)
        self.attentions.append(weights)
        return attention.join(weights @ v)


def _weights(q: Tensor, k: Tensor, mask: Tensor, scale: float) -> Tensor:
    """q (B, H, T, D), k (B, H, S, D) -> (B, H, T, S); a row that sees nothing is 0, as in
    attend_where."""
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~mask, torch.finfo(q.dtype).min)
    return (scores.softmax(-1, dtype=torch.float32) * mask.any(-1, keepdim=True)).to(q.dtype)
