"""One layer with attention of the caller's, dropouts, and its attention weights.

Shapes: B batch, T new positions, S positions seen (those of the cache and the new ones), H heads,
K key/value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from model.decoder.kv_cache import KVCache
from model.decoder.layers import Attention, DecoderLayer
from model.decoder.rope import Rotations
from model.errors import ModelError
from model.families.family import Family
from model.families.hf_config import ConfigReader
from model.heads.attention import Attend
from model.heads.cache import BatchCache


@dataclass(frozen=True, slots=True)
class Dropouts:
    """The shares that are dropped in training: of attention weights, of the embeddings, of what
    attention and MLP add (residual), and of what the MLP adds (hidden)."""

    attention: float = 0.0
    embedding: float = 0.0
    residual: float = 0.0
    hidden: float = 0.0

    @classmethod
    def of(cls, raw: Mapping[str, Any], family: Family) -> Dropouts:
        """From the content of config.json. Raises ModelError."""
        return cls(
            **{
                place: read_dropout(raw, key, family.dropout)
                for place, key in family.dropouts.items()
            }
        )


def read_dropout(raw: Mapping[str, Any], key: str, default: float) -> float:
    """A share from the content of config.json. Raises ModelError."""
    share: float = ConfigReader(raw).get(key, float, default)
    if not 0 <= share <= 1:
        raise ModelError(f"config.json: {key} is {share}, but must be from 0 to 1")
    return share


NO_DROPOUTS = Dropouts()


class Layers:
    """Runs layers as DecoderLayer.forward does, with attention of the caller's and dropouts.

    attentions: the attention weights (B, H, T, S) by the layers' numbers, where `attend` makes
    them. kept: the keys and values for the next cache by the layers' numbers, where `caching`.
    """

    def __init__(
        self,
        rotations: Rotations,
        attend: Attend,
        dropouts: Dropouts,
        cache: BatchCache,
        caching: bool,
    ) -> None:
        self.rotations = rotations
        self.attend = attend
        self.dropouts = dropouts
        self.cache = cache
        self.caching = caching
        self.attentions: dict[int, Tensor] = {}
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def run(self, layer: DecoderLayer, index: int, x: Tensor) -> Tensor:
        """x (B, T, hidden) -> (B, T, hidden)."""
        out: Tensor = layer(x, self.rotations, index, None, self._compute)
        return out

    def _compute(
        self, layer: DecoderLayer, x: Tensor, rotations: Rotations, index: int, _: KVCache | None
    ) -> Tensor:
        """A LayerRun."""
        normed = layer.attention_norm(x)
        attended = self._attention(layer.attention, normed, rotations, index)
        x = x + layer.scaled(F.dropout(attended, self.dropouts.residual))
        added = layer.mlp(normed if layer.parallel else layer.mlp_norm(x))
        added = F.dropout(F.dropout(added, self.dropouts.residual), self.dropouts.hidden)
        return x + layer.scaled(added)

    def _attention(
        self, attention: Attention, normed: Tensor, rotations: Rotations, index: int
    ) -> Tensor:
        q, k, v = attention.project(normed, rotations)
        k, v = self.cache.seen(index, k, v)
        if self.caching:
            self.kept[index] = (self.cache.keep(k), self.cache.keep(v))
        attended, weights = self.attend(q, k, v, attention.score_scale, self.dropouts.attention)
        if weights is not None:
            self.attentions[index] = weights
        return attention.join(attended)
