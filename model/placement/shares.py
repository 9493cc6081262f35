"""What one process of a group has of a decoder, and a checkpoint that is cut to that.

Each process has some of the heads and a part of the MLP's inner dimensions. All else is whole in
every process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from model.decoder.config import DecoderConfig
from model.errors import ModelError
from model.families.registry import FAMILIES
from model.families.weight_table import WeightSlot
from model.ggml import Blocks
from model.weights.checkpoint import Checkpoint, check


@dataclass(frozen=True, slots=True)
class Share:
    """What one process of a group has of a decoder.

    config: of the whole decoder. Where there are fewer key/value heads than processes, several
    processes have the same one.
    """

    config: DecoderConfig
    rank: int
    size: int

    @classmethod
    def of(cls, config: DecoderConfig, group: dist.ProcessGroup) -> Share:
        """This process's share. Raises ModelError where the heads do not divide among the group."""
        size = dist.get_world_size(group)
        rank = dist.get_rank(group)
        if rank < 0:
            raise ModelError(
                "This process does not belong to the group of tensor_parallel. Give one that it is "
                "in."
            )
        kv_heads = config.num_kv_heads
        if config.num_heads % size or (kv_heads % size and size % kv_heads):
            raise ModelError(
                f"{config.num_heads} heads and {kv_heads} key/value heads do not divide among "
                f"{size} processes. Use a number of processes that divides the heads, and that "
                "divides the key/value heads or is a multiple of them."
            )
        if config.intermediate_size < size:
            raise ModelError(
                f"{config.intermediate_size} inner dimensions do not divide among {size} processes."
                " Use fewer processes."
            )
        return cls(config, rank, size)

    @property
    def heads(self) -> range:
        return self._part(self.config.num_heads)

    @property
    def kv_heads(self) -> range:
        heads = self.heads
        group = self.config.num_heads // self.config.num_kv_heads
        return range(heads.start // group, (heads.stop - 1) // group + 1)

    @property
    def inner(self) -> range:
        """Of the MLP's inner dimensions."""
        return self._part(self.config.intermediate_size)

    @property
    def has_copies(self) -> bool:
        """Whether other processes have the same key/value heads."""
        return self.size > self.config.num_kv_heads

    @property
    def local(self) -> DecoderConfig:
        """The decoder of this process."""
        return replace(
            self.config,
            num_heads=len(self.heads),
            num_kv_heads=len(self.kv_heads),
            intermediate_size=len(self.inner),
        )

    def _part(self, count: int) -> range:
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def cut(self, slot: WeightSlot, tensor: Tensor) -> tuple[int, Tensor] | None:
        """The tensor of a slot in the whole decoder -> its first row in this process's parameter,
        and what goes there; None where nothing does."""
        columns = self._columns(slot.parameter)
        if columns is not None:
            return slot.first_row, tensor[:, columns.start : columns.stop]
        rows = self._rows(slot.parameter)
        if rows is None:
            return slot.first_row, tensor
        is_row = slot.parameter.endswith("_norm") and tensor.dim() == 1  # of (heads, D)
        whole = tensor[None] if is_row else tensor
        first = None
        before = 0
        pieces = []
        for own in rows:
            start = max(own.start, slot.first_row)
            stop = min(own.stop, slot.first_row + len(whole))
            if start < stop:
                pieces.append(whole[start - slot.first_row : stop - slot.first_row])
                first = before + start - own.start if first is None else first
            before += len(own)
        if first is None:
            return None
        part = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        return first, part[0] if is_row else part

    def _rows(self, parameter: str) -> list[range] | None:
        """This process's rows of a parameter of the whole decoder; None for all."""
        config = self.config
        module = parameter.removesuffix(".weight").removesuffix(".bias")
        if module.endswith("attention.qkv"):
            keys = config.num_heads
            values = keys + config.num_kv_heads
            heads = [self.heads, _moved(self.kv_heads, keys), _moved(self.kv_heads, values)]
            return [range(h.start * config.head_dim, h.stop * config.head_dim) for h in heads]
        if module.endswith("attention.q_norm") and not config.qk_norm_shared:
            return [self.heads]
        if module.endswith("attention.k_norm") and not config.qk_norm_shared:
            return [self.kv_heads]
        if module.endswith("mlp.up"):
            gated = [_moved(self.inner, config.intermediate_size)] if config.gated_mlp else []
            return [self.inner, *gated]
        return None

    def _columns(self, parameter: str) -> range | None:
        """This process's columns of a parameter of the whole decoder; None for all."""
        if parameter.endswith("attention.out.weight"):
            dim = self.config.head_dim
            return range(self.heads.start * dim, self.heads.stop * dim)
        if parameter.endswith("mlp.down.weight"):
            return self.inner
        return None


def _moved(part: range, by: int) -> range:
    return range(part.start + by, part.stop + by)


@dataclass(frozen=True, slots=True)
class SharedCheckpoint(Checkpoint):
    """A checkpoint of which this process reads every file and keeps its share alone."""

    whole: Checkpoint
    share: Share

    @classmethod
    def of(cls, whole: Checkpoint, share: Share) -> SharedCheckpoint:
        local = share.local
        table = FAMILIES[whole.folder.model_type].weight_table(local)
        return cls(whole.folder, local, table, whole.files, whole, share)

    def stored_tensors(self) -> Iterator[tuple[Path, str, Tensor | Blocks]]:
        """Floats alone: what is cut need not be whole blocks."""
        return self.tensors()

    def tensors(self) -> Iterator[tuple[Path, str, Tensor]]:
        """See Checkpoint.tensors; what has no place in the whole decoder comes as it is."""
        names = {(slot.parameter, slot.first_row): name for name, slot in self.table.items()}
        for file, stored, tensor in self.whole.tensors():
            name = self.whole.full_name(stored)
            slot = self.whole.table.get(name)
            if slot is None:
                yield file, stored, tensor
                continue
            check(slot, tensor, name, file)
            part = self.share.cut(slot, tensor)
            if part is not None:
                first, own = part
                yield file, names[slot.parameter, first], own
