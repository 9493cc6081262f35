"""KVCache: the keys and values of one sequence, and the operations on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.decoder.config import DecoderConfig

GROWTH = 512  # positions added at a time, at least
LARGEST_HALF = torch.finfo(torch.float16).max


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A pass that was cancelled: over ids (1, n) from position `start` on, before `layer`, which
    reads x. Below it the layers have appended their keys and values."""

    ids: Tensor
    start: int
    layer: int
    x: Tensor


class KVCache:
    """Keys and values of the first `length` positions of one sequence.

    Tensors are (layers, kv_heads, capacity, head_dim). A forward pass writes after `length` with
    `append`, layer by layer, and counts the new positions with `commit`. A pass that is cancelled
    in between has changed nothing; `unfinished` lets the next one go on where it was, if that is
    the same. Whatever else writes after `length` sets it to None.
    """

    unfinished: Unfinished | None = None

    def __init__(
        self, config: DecoderConfig, *, dtype: torch.dtype, device: torch.device, capacity: int = 0
    ) -> None:
        self.config = config
        self.length = 0
        shape = (config.num_layers, config.num_kv_heads, capacity, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)

    @property
    def dtype(self) -> torch.dtype:
        return self.keys.dtype

    @property
    def device(self) -> torch.device:
        return self.keys.device

    @property
    def capacity(self) -> int:
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """The memory of the tensors, for all of capacity."""
        return 2 * self.keys.nbytes

    def reserve(self, positions: int) -> None:
        """Makes room for `positions` in all and keeps those that are cached.

        Grows by a quarter at least, so that a prompt that grows at every key seldom moves them.
        """
        if positions > self.capacity:
            ample = max(self.capacity + GROWTH, self.capacity * 5 // 4)
            self._resize(max(positions, min(ample, self.config.max_positions)))

    def shrink(self) -> None:
        """Frees the room after `length`."""
        if self.length < self.capacity:
            self.unfinished = None
            self._resize(self.length)

    @property
    def spare_bytes(self) -> int:
        """The memory that `shrink` would free."""
        return self.nbytes * (self.capacity - self.length) // max(1, self.capacity)

    def _resize(self, capacity: int) -> None:
        self.keys = self._moved(self.keys, capacity)
        self.values = self._moved(self.values, capacity)

    def _moved(self, old: Tensor, capacity: int) -> Tensor:
        layers, kv_heads, _, head_dim = old.shape
        new = old.new_empty((layers, kv_heads, capacity, head_dim))
        held = self.length
        if self.unfinished is not None:
            held = max(held, self.unfinished.start + self.unfinished.ids.shape[1])
        new[:, :, :held] = old[:, :, :held]
        return new

    def append(
        self, layer: int, keys: Tensor, values: Tensor, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Writes a layer's new keys and values, each (kv_heads, n, head_dim), after `length`.

        Returns all keys and values from position `first` on, each (1, kv_heads, length + n - first,
        head_dim), in the type of the new ones.
        """
        end = self.length + keys.shape[1]
        seen = (slice(layer, layer + 1), slice(None), slice(first, end))
        each = []
        for cached, new in ((self.keys, keys), (self.values, values)):
            if cached.dtype == torch.float16 != new.dtype:
                new = new.clamp(-LARGEST_HALF, LARGEST_HALF)
            cached[layer, :, self.length : end] = new
            each.append(cached[seen].to(new.dtype))
        return each[0], each[1]

    def take_unfinished(self, ids: Tensor) -> Unfinished | None:
        """The pass over ids (1, n) after `length` that was cancelled; None if the last was another.
        The caller appends."""
        unfinished, self.unfinished = self.unfinished, None
        if unfinished is None or unfinished.start != self.length:
            return None
        return unfinished if torch.equal(unfinished.ids, ids) else None

    def begun(self, ids: Sequence[int]) -> int:
        """How many of the ids after the cached ones a cancelled pass was over."""
        unfinished = self.unfinished
        if unfinished is None or unfinished.start != self.length:
            return 0
        own = unfinished.ids[0].tolist()
        return len(own) if list(ids[self.length : self.length + len(own)]) == own else 0

    def head_start(self, ids: Sequence[int]) -> int:
        """How many positions' worth of work that pass has done."""
        layer = self.unfinished.layer if self.unfinished is not None else 0
        return self.begun(ids) * layer // self.config.num_layers

    def commit(self, positions: int) -> None:
        """Counts positions that every layer has appended."""
        self.length += positions

    def trim(self, length: int) -> int:
        """Forgets every position from `length` on; returns how many were forgotten."""
        forgotten = max(0, self.length - length)
        self.length -= forgotten
        return forgotten

    def fork(self, length: int, room: int = 0) -> KVCache:
        """A copy of the first `length` positions, with room for `room` in all."""
        capacity = min(max(length, room) + GROWTH, max(self.capacity, self.config.max_positions))
        copy = KVCache(self.config, dtype=self.dtype, device=self.device, capacity=capacity)
        copy.length = min(length, self.length)
        copy.keys[:, :, : copy.length] = self.keys[:, :, : copy.length]
        copy.values[:, :, : copy.length] = self.values[:, :, : copy.length]
        return copy

    def copy_out(self, start: int, block: Tensor) -> None:
        """Copies positions `start` and following into block (2, layers, kv_heads, n, head_dim):
        keys, then values."""
        end = start + block.shape[3]
        block[0] = self.keys[:, :, start:end]
        block[1] = self.values[:, :, start:end]

    def extend(self, block: Tensor) -> None:
        """Adds the positions of a block as copy_out fills it."""
        end = self.length + block.shape[3]
        self.unfinished = None
        self.reserve(end)
        self.keys[:, :, self.length : end] = block[0]
        self.values[:, :, self.length : end] = block[1]
        self.length = end
