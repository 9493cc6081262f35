"""The step in torch: a forward pass of one or a few rows after a long cache, in as few calls as
torch allows.

A small model's step is bound by the calls and not by the sums. So buffers are made once, and views
once a step; rotations are one product of complex numbers in place; the scale of the scores is in
the weights (quantized_linear.py); attention is two batched products. Each row attends by itself, so
that its result is the same, bit for bit, whatever the other rows are: that is what makes
speculative decoding equal to plain decoding.

Shapes: R rows, H heads, K key/value heads, G = H / K, D head dimension, S positions seen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from model.cpu.kernels import Plan
from model.cpu.measurements import threads
from model.cpu.quantized_linear import Int8Linear, is_small
from model.decoder.config import DecoderConfig
from model.decoder.decoder import Decoder
from model.decoder.factory import Norm, gains_of
from model.decoder.kv_cache import KVCache, Unfinished
from model.decoder.layers import ACTIVATIONS, DecoderLayer, normalize_heads
from model.decoder.stopping import ShouldStop, ask

ROW_COSTS = {1: 1.0, 2: 1.2, 4: 1.6, 8: 2.8}


class Matrix:
    """A matrix and its bias in as few calls as possible. x is (R, width) of the type `takes`."""

    def __init__(self, linear: nn.Module) -> None:
        assert isinstance(linear, Int8Linear)
        kernel, self._packed = linear.few
        self.takes = kernel.takes
        self._product = kernel.product
        self._bias = linear.bias
        self._own_bias = None if linear.bias is None else linear.bias.to(kernel.takes)

    def _scaled(self, x: Tensor) -> Tensor:
        y, factor = self._product(x, self._packed)
        return y if factor is None else y.mul_(factor)

    def into(self, x: Tensor, out: Tensor) -> None:
        """Writes the product into out (R, out) float32."""
        if self._bias is None:
            out.copy_(self._scaled(x))
        else:
            torch.add(self._scaled(x), self._bias, out=out)

    def new(self, x: Tensor) -> Tensor:
        """Returns the product (R, out), of the type that the matrix takes."""
        y = self._scaled(x)
        return y if self._own_bias is None else y.add_(self._own_bias)

    def add(self, x: Tensor, to: Tensor, multiplier: float) -> None:
        """Adds the product, times a factor, to `to` (R, out) float32, the residual stream."""
        to.add_(self._scaled(x), alpha=multiplier)
        if self._bias is not None:
            to.add_(self._bias, alpha=multiplier)


def norm_call(norm: Norm) -> Callable[[Tensor], Tensor]:
    """A norm as one call of torch, without the calls that nn.Module makes around it."""
    shape = norm.normalized_shape
    if isinstance(norm, nn.RMSNorm):
        return partial(torch.rms_norm, normalized_shape=shape, weight=gains_of(norm), eps=norm.eps)
    return partial(
        torch.layer_norm, normalized_shape=shape, weight=norm.weight, bias=norm.bias, eps=norm.eps
    )


class Layer:
    """The matrices, norms and gains of a decoder's layer, looked up once."""

    def __init__(self, layer: DecoderLayer) -> None:
        self.qkv = Matrix(layer.attention.qkv)
        self.out = Matrix(layer.attention.out)
        self.up = Matrix(layer.mlp.up)
        self.down = Matrix(layer.mlp.down)
        self.attention_norm = norm_call(layer.attention_norm)
        self.mlp_norm = None if layer.parallel else norm_call(layer.mlp_norm)
        self.gains: tuple[Tensor, Tensor] | None = None  # of queries (H, D) and keys (K, D)
        if layer.attention.config.qk_norm:
            self.gains = (layer.attention.q_norm, layer.attention.k_norm)


class Buffers:
    """The tensors that a step of R rows writes into, and views of them, made once."""

    def __init__(self, rows: int, config: DecoderConfig, takes: torch.dtype) -> None:
        """takes: the type of what the matrices multiply."""
        width = config.head_dim
        heads = config.num_heads
        kv_heads = config.num_kv_heads
        first_value = heads + kv_heads
        self.qkv = torch.empty(rows, config.qkv_size)
        parts = self.qkv.view(rows, -1, width)  # (R, H + 2K, D)
        queries = parts[:, :heads]
        keys = parts[:, heads:first_value]
        half = config.rotated_dim // 2
        pairs = parts[:, :first_value, : 2 * half].view(rows, first_value, half, 2)
        self.rotated = torch.view_as_complex(pairs)  # (R, H + K, dim / 2): queries and keys
        self.normed = (queries, keys)  # where these have norms
        self.queries = queries.view(rows, kv_heads, -1, width).unbind(0)  # of each row (K, G, D)
        self.keys = keys.transpose(0, 1)  # (K, R, D)
        self.values = parts[:, first_value:].transpose(0, 1)  # (K, R, D)
        self.attended = torch.empty(rows, heads * width, dtype=takes)
        self.heads = self.attended.view(rows, kv_heads, -1, width).unbind(0)  # as queries


class TorchStep:
    """Runs a decoder whose matrices are Int8Linear: a model.decoder.decoder.Step."""

    def __init__(self, decoder: Decoder, max_rows: int) -> None:
        self.max_rows = max_rows
        # To wake a second thread for each product takes longer than a small product, and on a busy
        # machine far longer.
        self.threads: int | None = None  # None: as many as there are
        self._config = decoder.config
        self._embed = decoder.embed
        self._buffers: dict[int, Buffers] = {}  # by rows
        self._layers = [Layer(cast(DecoderLayer, layer)) for layer in decoder.layers]
        self._rotations = decoder.rotations.pairs  # (positions, 1, dim / 2)
        self._activation = ACTIVATIONS[decoder.config.activation]
        self._last_norm = norm_call(decoder.norm)
        head = decoder.embed_tokens.linear if decoder.config.tie_embeddings else decoder.head
        self._head = Matrix(cast(nn.Module, head))

    @torch.inference_mode()
    def __call__(
        self,
        ids: Tensor,
        cache: KVCache,
        keep: int,
        should_stop: ShouldStop | None,
        begun: Unfinished | None = None,
    ) -> Tensor:
        """See Step."""
        if self.threads is None:
            return self._run(ids, cache, keep, should_stop)
        with threads(self.threads):
            return self._run(ids, cache, keep, should_stop)

    def _run(
        self, ids: Tensor, cache: KVCache, keep: int, should_stop: ShouldStop | None
    ) -> Tensor:
        takes = self._head.takes
        rows = len(ids)
        buffers = self._buffers.get(rows)
        if buffers is None:
            buffers = Buffers(rows, self._config, takes)
            self._buffers[rows] = buffers
        new = slice(cache.length, cache.length + rows)
        rotations = self._rotations[new]
        new_keys = cache.keys[:, :, new].unbind(0)
        new_values = cache.values[:, :, new].unbind(0)
        seen = [self._seen(cache, stop) for stop in range(new.start + 1, new.stop + 1)]
        x = self._embed(ids, new)
        multiplier = self._config.residual_multiplier
        for i, layer in enumerate(self._layers):
            ask(should_stop)
            normed = layer.attention_norm(x).to(takes)
            layer.qkv.into(normed, buffers.qkv)
            if layer.gains is not None:
                for part, gains in zip(buffers.normed, layer.gains, strict=True):
                    torch.mul(normalize_heads(part, self._config), gains, out=part)
            if self._config.rope:
                buffers.rotated.mul_(rotations)
            new_keys[i].copy_(buffers.keys)
            new_values[i].copy_(buffers.values)
            for query, head, (keys, values) in zip(
                buffers.queries, buffers.heads, seen, strict=True
            ):
                scores = torch.softmax(torch.bmm(query, keys[i]), -1)
                head.copy_(torch.bmm(scores, values[i]))
            layer.out.add(buffers.attended, x, multiplier)
            if layer.mlp_norm is not None:
                normed = layer.mlp_norm(x).to(takes)
            layer.down.add(self._activated(layer.up.new(normed)), x, multiplier)
        cache.commit(rows)
        logits = self._head.new(self._last_norm(x[rows - keep :]).to(takes)).float()
        if self._config.logits_scaling != 1:
            logits /= self._config.logits_scaling
        return logits

    def _activated(self, inner: Tensor) -> Tensor:
        if not self._config.gated_mlp:
            return self._activation(inner)
        gate, inner = inner.chunk(2, -1)
        return self._activation(gate).mul_(inner)

    def _seen(self, cache: KVCache, stop: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """By layer the keys (K, D, S) and values (K, S, D) that position `stop` - 1 attends to."""
        window = self._config.sliding_window
        first = 0 if window is None else max(0, stop - window)
        keys = cache.keys[:, :, first:stop].transpose(2, 3).unbind(0)
        return keys, cache.values[:, :, first:stop].unbind(0)


def add_step(decoder: Decoder, plan: Plan) -> None:
    """Gives a decoder of int8 matrices, all of them filled, its step."""
    step = TorchStep(decoder, plan.few_rows)
    step.threads = 1 if is_small(decoder.config) else None  # a large one keeps all threads at work
    decoder.use_step(step, ROW_COSTS)
