"""A decoder in the processes of a group: tensor parallelism as in Megatron-LM (Shoeybi et al. 2019,
arXiv 1909.08053).

Attention and MLP of each layer end in a sum over the group, after which every process has the same
states; so each computes the same logits. Every process runs the same passes in the same order, with
the same seed where something is drawn (tokens, dropouts), and no `should_stop` of its own.

Embeddings and head are whole in every process: with StarCoder2-7B 0.45 GB in bfloat16 for each. The
KV cache of a process holds its own heads, and its configuration counts them alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from model.decoder.decoder import Decoder
from model.decoder.factory import Factory, Linear
from model.decoder.layers import Attention, DecoderLayer
from model.families.weight_table import WeightSlot
from model.placement.shares import Share


class ColumnParallel(Linear):
    """Some rows of a matrix, for an input that all processes have: x (..., in) -> (..., own
    rows)."""

    group: dist.ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            x = _SummedBackward.apply(x, self.group)  # type: ignore[no-untyped-call]
        return super().forward(x)


class RowParallel(Linear):
    """Some columns of a matrix: x (..., own columns) -> (..., out), the sum of all processes."""

    group: dist.ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight)
        if torch.is_grad_enabled():
            y = _SummedForward.apply(y, self.group)  # type: ignore[no-untyped-call]
        else:
            dist.all_reduce(y, group=self.group)
        return y if self.bias is None else y + self.bias


class _SummedForward(torch.autograd.Function):
    """The sum over the group; a gradient goes on as it is, since every process has all of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _SummedBackward(torch.autograd.Function):
    """The same tensor; its gradient is the sum over the group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _sum(gradient, ctx.group), None


def _sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


class ParallelDecoder(Decoder):
    """A process's share of a decoder. It has no faster step for few rows."""

    def __init__(self, share: Share, factory: Factory, group: dist.ProcessGroup) -> None:
        """factory: of floats."""
        super().__init__(share.local, factory)
        self.share = share
        self.group = group
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            self._turn(layer.attention.qkv, ColumnParallel)
            self._turn(layer.attention.out, RowParallel)
            self._turn(layer.mlp.up, ColumnParallel)
            self._turn(layer.mlp.down, RowParallel)
            self._sum_gradients(layer.attention)

    def _turn(self, module: nn.Module, kind: type[ColumnParallel | RowParallel]) -> None:
        """Makes the kind of it, which has the same weights."""
        assert type(module) is Linear
        module.__class__ = kind
        assert isinstance(module, kind)
        module.group = self.group

    def _sum_gradients(self, attention: Attention) -> None:
        """Weights of attention that several processes have get the gradients of all of them."""
        config = self.share.config
        if config.qk_norm and config.qk_norm_shared:
            for weights in (attention.q_norm, attention.k_norm):
                _on_gradient(weights, partial(_sum, group=self.group))
        if self.share.has_copies:
            first_key = self.config.num_heads * config.head_dim
            for weights in attention.qkv.parameters():
                _on_gradient(weights, partial(self._sum_copies, first=first_key))
            if config.qk_norm and not config.qk_norm_shared:
                _on_gradient(attention.k_norm, partial(self._sum_copies, first=0))

    def gather(self, slot: WeightSlot) -> Tensor:
        """What a slot of the whole decoder holds, in every process. All of them call it."""
        parameter = self.get_parameter(slot.parameter).detach()
        whole = parameter.new_full(slot.shape, -math.inf)
        places = torch.arange(whole.numel(), device=parameter.device).view(slot.shape)
        found = self.share.cut(slot, places)
        if found is not None:
            first, own = found
            held = replace(slot, first_row=first, shape=tuple(own.shape)).read(parameter)
            whole.view(-1)[own.flatten()] = held.flatten()
        dist.all_reduce(whole, dist.ReduceOp.MAX, self.group)
        return whole

    def agree(self, weights: Iterable[Tensor]) -> None:
        """Gives all processes the first one's weights, where they are drawn at random."""
        for drawn in weights:
            dist.broadcast(drawn.data, dist.get_global_rank(self.group, 0), self.group)

    def _sum_copies(self, gradient: Tensor, first: int) -> Tensor:
        """Sums the rows from `first` on, of this process's one key/value head, over the processes
        that have the same head."""
        own = gradient[first:]
        every = own.new_zeros(self.share.config.num_kv_heads, *own.shape)
        every[self.share.kv_heads.start] = own
        dist.all_reduce(every, group=self.group)
        return torch.cat((gradient[:first], every[self.share.kv_heads.start]))


def _on_gradient(weights: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    weights.register_hook(change)  # type: ignore[no-untyped-call]
