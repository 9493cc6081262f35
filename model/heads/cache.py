"""BatchCache: the keys and values of a batch of texts, for the pass over what follows.

Shapes: B batch, T new positions, S positions seen (those that the cache kept and the new ones), K
key/value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model.decoder.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class BatchCache:
    """What the passes so far leave for the next one. A pass returns a new cache and changes none,
    so that one text can be continued in several ways, and gradients reach the passes before.

    window: the decoder's; with one, only the last window - 1 positions are kept. length: how many
    positions there were, padding too. keys, values: of each layer, (B, K, positions kept, D), keys
    already rotated.
    """

    window: int | None
    length: int = 0
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()

    @property
    def kept(self) -> int:
        """How many positions the layers still hold."""
        return self.keys[0].shape[2] if self.keys else 0

    def check(self, config: DecoderConfig, batch: int) -> None:
        """Raises ValueError for a cache of other texts or of another model."""
        expected = (config.num_layers, batch, config.num_kv_heads, config.head_dim)
        for keys in self.keys[:1]:
            shape = (len(self.keys), *keys.shape[:2], keys.shape[3])
            if shape != expected or self.window != config.sliding_window:
                raise ValueError(
                    f"cache is one of (layers, texts, heads, dimensions) {shape} and window "
                    f"{self.window}, but must be of {expected} and {config.sliding_window}: the "
                    "one that this model's pass over the same texts returned"
                )

    def seen(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Of one layer: the new keys and values (B, K, T, D) -> all that are seen (B, K, S, D)."""
        if not self.keys:
            return keys, values
        return (
            torch.cat((self.keys[layer], keys), dim=2),
            torch.cat((self.values[layer], values), dim=2),
        )

    def keep(self, seen: Tensor) -> Tensor:
        """What the next cache keeps of a layer's keys or values (B, K, S, D)."""
        first = 0 if self.window is None else max(0, seen.shape[2] - (self.window - 1))
        return seen[:, :, first:].contiguous()

    def after(self, new: int, kept: Mapping[int, tuple[Tensor, Tensor]]) -> BatchCache:
        """The cache after `new` more positions. kept: keys and values of each layer."""
        keys, values = zip(*(kept[layer] for layer in range(len(kept))), strict=True)
        return BatchCache(self.window, self.length + new, keys, values)
