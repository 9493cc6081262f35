"""The keys and values of one sequence, as an object with verbs."""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import DecoderConfig

GROWTH = 512  # positions added at a time, at least


class KVCache:
    """Keys and values of the first `length` positions of one sequence.

    Tensors are (layers, kv_heads, capacity, head_dim). A forward pass writes behind `length` with `append`, layer by
    layer, and makes it count with `commit`; a pass that is cancelled in between has changed nothing.
    """

    def __init__(self, config: DecoderConfig, *, dtype: torch.dtype, device: torch.device, capacity: int = 0) -> None:
        self.config = config
        self.length = 0
        shape = (config.num_layers, config.num_kv_heads, capacity, config.head_dim)
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty(shape, dtype=dtype, device=device)

    @property
    def capacity(self) -> int:
        return self._keys.shape[2]

    @property
    def nbytes(self) -> int:
        return 2 * self._keys.nbytes

    def reserve(self, positions: int) -> None:
        """Makes room for `positions` in all. What is cached stays."""
        if positions <= self.capacity:
            return
        capacity = max(positions, self.capacity + GROWTH, self.capacity * 5 // 4)
        layers, kv_heads, _, head_dim = self._keys.shape
        for name in ("_keys", "_values"):
            old = getattr(self, name)
            new = old.new_empty((layers, kv_heads, capacity, head_dim))
            new[:, :, : self.length] = old[:, :, : self.length]
            setattr(self, name, new)

    def append(self, layer: int, keys: Tensor, values: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """Writes a layer's new keys and values, each (kv_heads, n, head_dim), behind `length`.

        Returns all keys and values from position `first` on, each (1, kv_heads, length + n - first, head_dim).
        """
        end = self.length + keys.shape[1]
        self._keys[layer, :, self.length : end] = keys
        self._values[layer, :, self.length : end] = values
        return self._keys[layer : layer + 1, :, first:end], self._values[layer : layer + 1, :, first:end]

    def commit(self, positions: int) -> None:
        """Counts positions that every layer has appended."""
        self.length += positions

    def trim(self, length: int) -> int:
        """Forgets every position from `length` on; returns how many were forgotten."""
        forgotten = max(0, self.length - length)
        self.length -= forgotten
        return forgotten

    def fork(self, length: int) -> KVCache:
        """A copy of the first `length` positions that can grow on its own."""
        copy = KVCache(
            self.config, dtype=self._keys.dtype, device=self._keys.device, capacity=min(self.capacity, length + GROWTH)
        )
        copy.length = min(length, self.length)
        copy._keys[:, :, : copy.length] = self._keys[:, :, : copy.length]
        copy._values[:, :, : copy.length] = self._values[:, :, : copy.length]
        return copy
