"""The step: a forward pass of one or a few rows behind a long cache, in as few calls as torch
allows.

A small model's step is bound by the calls and not by the sums: buffers are made once, views once a
step, rotations are one product of complex numbers in place, the scores' scale is in the weights
(model.quantize), attention is two batched products. Each row attends by itself, so that a row comes
out the same, bit for bit, whatever stands beside it: that is what makes speculative decoding equal
to plain decoding.

Shapes: R rows, H heads, K key/value heads, G = H / K, D head dimension, S positions seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from model.cpu.kernels import FEW, Book, Busy, Plan, fastest_us, threads
from model.cpu.quantized_linear import Int8Linear
from model.decoder.decoder import Cancelled, Decoder
from model.decoder.kv_cache import KVCache
from model.decoder.layers import ACTIVATIONS, DecoderLayer

TYPICAL = 768  # positions in the cache while somebody types
SHARED = (
    1.2  # one thread may take so much longer: it leaves the rest to others, and waits for nobody
)
BY_THUMB = {1: 1.0, 2: 1.2, 4: 1.6, 8: 2.8, 16: 5.0}  # row costs where nothing can be measured


class Matrix:
    """A matrix with its bias, in as few calls as its kernel allows. x is (R, width), as the matrix
    `takes` it."""

    def __init__(self, linear: object) -> None:
        assert isinstance(linear, Int8Linear)
        kernel, self._packed = linear.few
        self.takes, self._product = kernel.takes, kernel.product
        self._bias = linear.bias
        self._own_bias = None if linear.bias is None else linear.bias.to(kernel.takes)

    def _scaled(self, x: Tensor) -> Tensor:
        y, factor = self._product(x, self._packed)
        return y if factor is None else y.mul_(factor)

    def into(self, x: Tensor, out: Tensor) -> None:
        """The product into out (R, out) float32."""
        if self._bias is None:
            out.copy_(self._scaled(x))
        else:
            torch.add(self._scaled(x), self._bias, out=out)

    def new(self, x: Tensor) -> Tensor:
        """The product (R, out), of the type that the matrix takes."""
        return self._scaled(x) if self._own_bias is None else self._scaled(x).add_(self._own_bias)

    def add(self, x: Tensor, to: Tensor) -> None:
        """Adds the product to `to` (R, out) float32, the residual stream."""
        to.add_(self._scaled(x))
        if self._bias is not None:
            to.add_(self._bias)


class Layer:
    """What a step needs of a decoder's layer, looked up once."""

    def __init__(self, layer: DecoderLayer) -> None:
        attention, mlp = layer.attention, layer.mlp
        self.qkv, self.out = Matrix(attention.qkv), Matrix(attention.out)
        self.up, self.down = Matrix(mlp.up), Matrix(mlp.down)
        self.attention_norm = _norm(layer.attention_norm)
        self.mlp_norm = None if layer.parallel else _norm(layer.mlp_norm)
        self.gains = (attention.q_norm, attention.k_norm) if attention.config.qk_norm else None


Norm = tuple[Tensor, Tensor, float]


def _norm(module: torch.nn.LayerNorm | torch.nn.RMSNorm) -> Norm:
    assert isinstance(module, torch.nn.LayerNorm)
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

    def __init__(self, decoder: Decoder, max_rows: int) -> None:
        self.max_rows = max_rows
        # To wake a second thread for each product takes longer than a small product, and on a busy
        # machine far longer.
        self.threads: int | None = None  # None: as many as there are
        self._config, self._embed = decoder.config, decoder.embed_tokens
        self._buffers: dict[int, Buffers] = {}
        self._layers = [Layer(cast(DecoderLayer, layer)) for layer in decoder.layers]
        self._turns = decoder.rotations.pairs  # (positions, 1, dim / 2)
        self._activation = ACTIVATIONS[decoder.config.activation]
        self._last_norm = _norm(decoder.norm)
        self._head = Matrix(
            decoder.embed_tokens.linear if decoder.config.tie_embeddings else decoder.head
        )
        self._takes = self._head.takes

    @torch.inference_mode()
    def __call__(
        self, ids: Tensor, cache: KVCache, keep: int, should_stop: Callable[[], bool] | None
    ) -> Tensor:
        """See model.decoder.decoder.FewRowsStep. The cache has room for the rows."""
        if self.threads is None:
            return self._run(ids, cache, keep, should_stop)
        with threads(self.threads):
            return self._run(ids, cache, keep, should_stop)

    def _run(
        self, ids: Tensor, cache: KVCache, keep: int, should_stop: Callable[[], bool] | None
    ) -> Tensor:
        c, takes = self._config, self._takes
        rows, start = ids.shape[0], cache.length
        end, width = start + rows, (c.hidden_size,)
        b = self._buffers.get(rows) or self._buffers.setdefault(rows, self._make(rows))
        turns, activation, layer_norm, bmm, softmax = (
            self._turns[start:end],
            self._activation,
            torch.layer_norm,
            torch.bmm,
            torch.softmax,
        )
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
                    torch.mul(
                        layer_norm(part, (c.head_dim,), None, None, c.norm_eps), gains, out=part
                    )
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
        return self._head.new(
            layer_norm(x[rows - keep :], width, *self._last_norm).to(takes)
        ).float()

    def _seen(self, cache: KVCache, stop: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """By layer the keys (K, D, S) and values (K, S, D) that the position before `stop` attends
        to."""
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
            qkv,
            torch.view_as_complex(pairs),
            queries.unbind(0),
            (parts[:, :heads], keys),
            keys.transpose(0, 1),
            values.transpose(0, 1),
            attended,
            attended.view(rows, kv_heads, -1, width).unbind(0),
        )


def add_step(decoder: Decoder, plan: Plan, measured: Path | None = None) -> None:
    """Gives a decoder of int8 matrices, all of them filled, its step. measured: see
    kernels.make_plan."""
    step = Step(decoder, plan.few_rows)
    decoder.use_step(step)
    ways: dict[str, int | None] = {"all threads": None}
    if (
        plan.small and torch.get_num_threads() > 1
    ):  # what a large one reads keeps all threads at work
        ways["one thread"] = 1

    def measure(way: str, rows: Sequence[int]) -> dict[int, float]:
        step.threads = ways[way]
        return step_us(decoder, rows)

    name = f"step {plan.few} {plan.many} {shape_of(decoder)}"
    try:
        times = Book(measured).times(
            name, dict.fromkeys(ways, step_rows(decoder, plan.few_rows)), measure
        )
    except Busy:
        step.threads = 1 if plan.small else None
        costs = {rows: cost for rows, cost in BY_THUMB.items() if rows <= plan.few_rows}
        decoder.use_step(step, costs)
        return
    best = "all threads"
    if "one thread" in times and times["one thread"][1] < SHARED * times[best][1]:
        best = "one thread"
    step.threads = ways[best]
    decoder.use_step(step, relative(times[best]))


def relative(times: Mapping[int, float]) -> dict[int, float]:
    """What so many rows cost, in those of one. More are never cheaper: where they seem so,
    something was in the way."""
    return {rows: max(times[few] for few in times if few <= rows) / times[1] for rows in times}


def shape_of(decoder: Decoder) -> str:
    """What the time of a step depends on, for model.kernels' book."""
    c = decoder.config
    layer = (
        c.hidden_size,
        c.intermediate_size,
        int(c.gated_mlp),
        c.num_heads,
        c.num_kv_heads,
        c.head_dim,
    )
    return "x".join(map(str, (c.num_layers, *layer, c.vocab_size, c.max_positions)))


def step_rows(decoder: Decoder, most: int) -> list[int]:
    """For how many rows a step is measured."""
    return [rows for rows in FEW if rows <= min(most, decoder.config.max_positions)]


@torch.inference_mode()
def step_us(decoder: Decoder, counts: Sequence[int]) -> dict[int, float]:
    """Microseconds by rows, behind a cache of some length, since each row attends by itself."""
    cache = decoder.new_cache()
    room = min(TYPICAL, decoder.config.max_positions - max(counts))
    cache.reserve(room + max(counts))
    cache.keys.zero_()
    cache.values.zero_()
    cache.commit(room)
    costs: dict[int, float] = {}
    for rows in counts:
        ids = torch.zeros(1, rows, dtype=torch.long)

        def step(ids: Tensor = ids) -> None:
            cache.trim(room)
            decoder(ids, cache=cache, logits_to_keep=ids.shape[1])

        costs[rows] = fastest_us(step)
    return costs
