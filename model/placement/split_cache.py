"""SplitCache: a KV cache whose layers are on different devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model.decoder.config import DecoderConfig
from model.decoder.kv_cache import KVCache


class SplitCache(KVCache):
    """A cache for each layer, all of one length."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        dtype: torch.dtype,
        devices: Sequence[torch.device],
        capacity: int = 0,
    ) -> None:
        """devices: of the layers."""
        self.config = config
        single = replace(config, num_layers=1)
        self.layers = [
            KVCache(single, dtype=dtype, device=device, capacity=capacity) for device in devices
        ]

    @property
    def length(self) -> int:
        return self.layers[0].length

    @length.setter
    def length(self, length: int) -> None:
        for layer in self.layers:
            layer.length = length

    @property
    def dtype(self) -> torch.dtype:
        return self.layers[0].dtype

    @property
    def device(self) -> torch.device:
        """The first layer's."""
        return self.layers[0].device

    @property
    def capacity(self) -> int:
        return self.layers[0].capacity

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def _resize(self, capacity: int) -> None:
        self.unfinished = None
        for layer in self.layers:
            layer._resize(capacity)

    def append(
        self, layer: int, keys: Tensor, values: Tensor, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        return self.layers[layer].append(0, keys, values, first)

    def fork(self, length: int, room: int = 0) -> SplitCache:
        devices = [layer.device for layer in self.layers]
        copy = SplitCache(self.config, dtype=self.dtype, devices=devices)
        copy.layers = [layer.fork(length, room) for layer in self.layers]
        return copy

    def copy_out(self, start: int, block: Tensor) -> None:
        for i, layer in enumerate(self.layers):
            layer.copy_out(start, block[:, i : i + 1])

    def extend(self, block: Tensor) -> None:
        self.unfinished = None
        for i, layer in enumerate(self.layers):
            layer.extend(block[:, i : i + 1])
