"""The step: a forward pass of one or a few rows behind a long cache, in as few calls as torch allows.

A small model's step is bound by the calls and not by the sums: buffers are made once, views once a step, rotations are
one product of complex numbers in place, the scores' scale is in the weights (model.quantize), attention is two batched
products. Each row attends by itself, so that a row comes out the same, bit for bit, whatever stands beside it: that is
what makes speculative decoding equal to plain decoding.

Shapes: R rows, H heads, K key/value heads, G = H / K, D head dimension, S positions seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from model.decoder import Cancelled, Decoder
from model.kernels import FEW, Rows, fastest_us, quiet
from model.kv_cache import KVCache
from model.layers import DecoderLayer
from model.quantize import Int8Linear

TYPICAL = 768  # positions in the cache while somebody types
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "silu": F.silu,
}


class Matrix(Protocol):
    """A matrix with its bias, in as few calls as its kernel allows."""

    takes: torch.dtype

    def into(self, x: Tensor, out: Tensor) -> None:
        """x (R, width) as the matrix takes it -> out (R, out) float32."""

    def new(self, x: Tensor) -> Tensor:
        """x (R, width) as the matrix takes it -> (R, out) in the same type."""

    def add(self, x: Tensor, to: Tensor) -> None:
        """Adds the product to `to` (R, out), the residual stream."""


class Narrow:
    """With the kernel for few rows, whose products are bfloat16."""

    takes = torch.bfloat16

    def __init__(self, linear: Int8Linear) -> None:
        self._rows, self._scale = linear.few[1]
        self._bias = linear.bias
        self._narrow_bias = None if linear.bias is None else linear.bias.bfloat16()

    def into(self, x: Tensor, out: Tensor) -> None:
        y = torch._weight_int8pack_mm(x, self._rows, self._scale)
        if self._bias is None:
            out.copy_(y)
        else:
            torch.add(y, self._bias, out=out)

    def new(self, x: Tensor) -> Tensor:
        y = torch._weight_int8pack_mm(x, self._rows, self._scale)
        return y if self._narrow_bias is None else y.add_(self._narrow_bias)

    def add(self, x: Tensor, to: Tensor) -> None:
        to.add_(torch._weight_int8pack_mm(x, self._rows, self._scale))
        if self._bias is not None:
            to.add_(self._bias)


class Scaled:
    """With any kernel whose products are float32, with or without a factor a row."""

    takes = torch.float32

    def __init__(self, linear: Int8Linear) -> None:
        self._kernel, self._packed = linear.few
        self._bias = linear.bias

    def into(self, x: Tensor, out: Tensor) -> None:
        out.copy_(self.new(x))

    def new(self, x: Tensor) -> Tensor:
        y, factor = self._kernel.product(x, self._packed)
        if factor is None:
            return y if self._bias is None else y.add_(self._bias)
        return y.mul_(factor) if self._bias is None else torch.addcmul(self._bias, y, factor)

    def add(self, x: Tensor, to: Tensor) -> None:
        to.add_(self.new(x))


def matrix(linear: object) -> Matrix:
    assert isinstance(linear, Int8Linear)
    return Narrow(linear) if isinstance(linear.few[0], Rows) else Scaled(linear)


class Layer:
    """What a step needs of a decoder's layer, looked up once."""

    def __init__(self, layer: DecoderLayer) -> None:
        attention, mlp = layer.attention, layer.mlp
        self.qkv, self.out = matrix(attention.qkv), matrix(attention.out)
        self.up, self.down = matrix(mlp.up), matrix(mlp.down)
        self.attention_norm = _norm(layer.attention_norm)
        self.mlp_norm = None if layer.parallel else _norm(layer.mlp_norm)
        self.gains = (attention.q_norm, attention.k_norm) if attention.config.qk_norm else None


Norm = tuple[Tensor, Tensor, float]


def _norm(module: torch.nn.LayerNorm) -> Norm:
    return module.weight, module.bias, module.eps


@dataclass(frozen=True, slots=True)
class Buffers:
    """What a step of so many rows writes into, and views of it, made once."""

    qkv: Tensor  # (R, (H + 2K) D)
    turned: Tensor  # (R, H + K, dim / 2) complex: what is rotated
    queries: tuple[Tensor, ...]  # of each row (K, G, D)
    normed: tuple[Tensor, Tensor]  # (R, H, D), (R, K, D): queries and keys, where they have norms
    keys: Tensor  # (K, R, D)
    values: Tensor  # (K, R, D)
    attended: Tensor  # (R, H D), as the next matrix takes it
    heads: tuple[Tensor, ...]  # of each row (K, G, D)


class Step:
    """Runs a decoder whose matrices are Int8Linear."""

    def __init__(self, decoder: Decoder, most: int) -> None:
        self.most = most
        self._config, self._embed = decoder.config, decoder.embed_tokens
        self._buffers: dict[int, Buffers] = {}
        self._layers = [Layer(cast(DecoderLayer, layer)) for layer in decoder.layers]
        self._turns = decoder.turns.pairs  # (positions, 1, dim / 2)
        self._activation = ACTIVATIONS[decoder.config.activation]
        self._last_norm = _norm(decoder.norm)
        self._head = matrix(decoder.embed_tokens.matrix if decoder.config.tie_embeddings else decoder.head)
        self._takes = self._head.takes

    @torch.inference_mode()
    def __call__(
        self, ids: Tensor, cache: KVCache, keep: int, should_stop: Callable[[], bool] | None
    ) -> Tensor:
        """See model.decoder.FewRows. The cache has room for the rows."""
        c, takes = self._config, self._takes
        rows, start = ids.shape[0], cache.length
        end, width = start + rows, (c.hidden_size,)
        b = self._buffers.get(rows) or self._buffers.setdefault(rows, self._make(rows))
        turns, activation, layer_norm, bmm, softmax = (
            self._turns[start:end], self._activation, torch.layer_norm, torch.bmm, torch.softmax,
        )  # fmt: skip
        new_keys, new_values = (t[:, :, start:end].unbind(0) for t in (cache.keys, cache.values))
        seen = [self._seen(cache, stop) for stop in range(start + 1, end + 1)]
        x = self._embed(ids)
        for i, layer in enumerate(self._layers):
            if should_stop is not None and should_stop():
                raise Cancelled
            normed = layer_norm(x, width, *layer.attention_norm).to(takes)
            layer.qkv.into(normed, b.qkv)
            if layer.gains is not None:
                for part, gains in zip(b.normed, layer.gains, strict=True):
                    torch.mul(layer_norm(part, (c.head_dim,), None, None, c.norm_eps), gains, out=part)
            b.turned.mul_(turns)
            new_keys[i].copy_(b.keys)
            new_values[i].copy_(b.values)
            for query, head, (keys, values) in zip(b.queries, b.heads, seen, strict=True):
                head.copy_(bmm(softmax(bmm(query, keys[i]), -1), values[i]))
            layer.out.add(b.attended, x)
            if layer.mlp_norm is not None:
                normed = layer_norm(x, width, *layer.mlp_norm).to(takes)
            inner = layer.up.new(normed)
            if c.gated_mlp:
                gate, inner = inner.chunk(2, -1)
                inner = activation(gate).mul_(inner)
            else:
                inner = activation(inner)
            layer.down.add(inner, x)
        cache.commit(rows)
        return self._head.new(layer_norm(x[rows - keep :], width, *self._last_norm).to(takes)).float()

    def _seen(self, cache: KVCache, stop: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """By layer the keys (K, D, S) and values (K, S, D) that the position before `stop` attends to."""
        window = self._config.sliding_window
        first = 0 if window is None else max(0, stop - window)
        keys = cache.keys[:, :, first:stop].transpose(2, 3).unbind(0)
        return keys, cache.values[:, :, first:stop].unbind(0)

    def _make(self, rows: int) -> Buffers:
        c = self._config
        heads, kv_heads, width = c.num_heads, c.num_kv_heads, c.head_dim
        total = heads + 2 * kv_heads
        qkv = torch.empty(rows, total * width)
        parts = qkv.view(rows, total, width)
        pairs = parts[:, : heads + kv_heads, : c.rope.dim].view(rows, heads + kv_heads, -1, 2)
        queries = parts[:, :heads].view(rows, kv_heads, -1, width)
        attended = torch.empty(rows, heads * width, dtype=self._takes)
        keys, values = parts[:, heads : heads + kv_heads], parts[:, heads + kv_heads :]
        return Buffers(
            qkv, torch.view_as_complex(pairs), queries.unbind(0), (parts[:, :heads], keys), keys.transpose(0, 1),
            values.transpose(0, 1), attended, attended.view(rows, kv_heads, -1, width).unbind(0),
        )  # fmt: skip


def add_step(decoder: Decoder) -> None:
    """Gives a decoder of int8 matrices, all of them filled, its step."""
    plan = next(module.plan for module in decoder.layers.modules() if isinstance(module, Int8Linear))
    decoder.few_rows = Step(decoder, plan.few_rows)
    decoder.row_costs = _row_costs(decoder, plan.few_rows) if quiet() else plan.row_costs


@torch.inference_mode()
def _row_costs(decoder: Decoder, most: int) -> dict[int, float]:
    """See Decoder. Measured behind a cache of some length, since each row attends by itself. It also warms up."""
    cache = decoder.new_cache()
    most = min(most, decoder.config.max_positions)
    room = min(TYPICAL, decoder.config.max_positions - most)
    cache.reserve(room + most)
    cache.keys.zero_()
    cache.values.zero_()
    cache.commit(room)
    costs: dict[int, float] = {}
    for rows in (rows for rows in FEW if rows <= most):
        ids = torch.zeros(1, rows, dtype=torch.long)

        def step(ids: Tensor = ids) -> None:
            cache.trim(room)
            decoder(ids, cache=cache, logits_to_keep=ids.shape[1])

        costs[rows] = fastest_us(step)
    # More rows are never cheaper: where they seem so, something else was in the way.
    return {rows: max(costs[few] for few in costs if few <= rows) / costs[1] for rows in costs}
