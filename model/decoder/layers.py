"""The parts of one layer: grouped-query attention, the two kinds of MLP, the residual connections.

Shapes: B batch, T new positions, S positions seen, H heads, K key/value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.decoder.config import DecoderConfig
from model.decoder.factory import Factory
from model.decoder.kv_cache import KVCache
from model.decoder.rope import Rotations, rotate, rotate_interleaved
from model.decoder.stopping import ShouldStop, ask

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "silu": F.silu,
}

# A layer, x, rotations, the layer's number and the cache, as in DecoderLayer.forward -> x.
LayerRun = Callable[["DecoderLayer", Tensor, Rotations, int, KVCache | None], Tensor]


def normalize_heads(x: Tensor, config: DecoderConfig) -> Tensor:
    """The config's kind of norm over each head, without weights; x (..., D)."""
    if config.norm == "rms_norm":
        return F.rms_norm(x, (config.head_dim,), eps=config.norm_eps)
    return F.layer_norm(x, (config.head_dim,), eps=config.norm_eps)


def causal_mask(new: int, seen: int, window: int | None, device: torch.device) -> Tensor:
    """(new, seen): which of the last `seen` positions each of the last `new` may look at."""
    query = torch.arange(seen - new, seen, device=device)[:, None]
    key = torch.arange(seen, device=device)
    mask = key <= query
    if window is None:
        return mask
    return mask & (key > query - window)


def attend(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float | None = None
) -> Tensor:
    """q (B, H, T, D) at the last T of the S positions of k and v (B, K, S, D) -> (B, H, T, D).

    scale: of the scores; None is 1 / sqrt(D).
    """
    new = q.shape[2]
    seen = k.shape[2]
    grouped = q.shape[1] > k.shape[1]
    windowed = window is not None and seen > window
    if not windowed and new in (1, seen):
        causal = new == seen
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=causal, enable_gqa=grouped, scale=scale
        )
    mask = causal_mask(new, seen, window if windowed else None, q.device)
    return attend_where(mask, q, k, v, scale)


def attend_where(
    mask: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float | None, dropout: float = 0.0
) -> Tensor:
    """Attention to the positions at which the mask, (T, S) or (B or 1, H or 1, T, S), is true, or
    with a mask of numbers added to the scores.

    q (B, H, T, D), k and v (B, K, S, D) -> (B, H, T, D). A row without any such position gives 0.
    """
    group = q.shape[1] // k.shape[1]
    grouped = group > 1
    if grouped and q.is_cuda:  # none of the fast kernels there takes both a mask and groups
        k = k.repeat_interleave(group, dim=1)
        v = v.repeat_interleave(group, dim=1)
        grouped = False
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, enable_gqa=grouped, scale=scale
    )


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) with one fused projection for queries, keys and
    values.

    Where the factory is `interleaved`, the two dimensions of each rotated pair stand side by side
    (model.cpu.quantized_linear makes weights of that order). A rotation is then one product of
    complex numbers. With `scaled_queries`, queries already carry the scale of the scores.
    """

    def __init__(self, config: DecoderConfig, factory: Factory) -> None:
        super().__init__()
        self.config = config
        self.interleaved = factory.interleaved
        self.scaled_queries = factory.scaled_queries
        self.qkv = factory.qkv(config)
        width = config.num_heads * config.head_dim
        self.out = factory.linear(width, config.hidden_size, config.out_bias)
        if config.qk_norm:
            shared = config.qk_norm_shared
            self.q_norm = factory.head_gains(1 if shared else config.num_heads, config.head_dim)
            self.k_norm = factory.head_gains(1 if shared else config.num_kv_heads, config.head_dim)

    def forward(self, x: Tensor, rotations: Rotations, layer: int, cache: KVCache | None) -> Tensor:
        """x (B, T, hidden) -> (B, T, hidden). The cache takes the new keys and values."""
        q, k, v = self.project(x, rotations)
        if cache is not None:
            k, v = cache.append(layer, k[0], v[0], self._first_seen(cache))
        return self.join(attend(q, k, v, self.config.sliding_window, self.score_scale))

    @property
    def score_scale(self) -> float:
        """The factor of the scores of what `project` gives."""
        return 1.0 if self.scaled_queries else self.config.score_scale

    def project(self, x: Tensor, rotations: Rotations) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, hidden) -> queries (B, H, T, D), keys and values (B, K, T, D), rotated."""
        config = self.config
        batch, new, _ = x.shape
        qkv = self.qkv(x).view(batch, new, -1, config.head_dim)  # (B, T, H + 2K, D)
        q, k, v = qkv.split((config.num_heads, config.num_kv_heads, config.num_kv_heads), dim=2)
        if config.qk_norm:
            q = normalize_heads(q, config) * self.q_norm
            k = normalize_heads(k, config) * self.k_norm
        if self.interleaved and config.rope:
            rotate_interleaved(q, rotations.pairs)
            rotate_interleaved(k, rotations.pairs)
        elif config.rope:
            q = rotate(q, rotations.cos, rotations.sin)
            k = rotate(k, rotations.cos, rotations.sin)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def join(self, attended: Tensor) -> Tensor:
        """The output projection of all heads: (B, H, T, D) -> (B, T, hidden)."""
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out

    def _first_seen(self, cache: KVCache) -> int:
        """The first position that any new one can see, so that a step costs no more than its
        window."""
        window = self.config.sliding_window
        if window is None:
            return 0
        return max(0, cache.length + 1 - window)


class MLP(nn.Module):
    """down(act(up(x))), or gated (SwiGLU, Shazeer 2020): down(act(gate(x)) * up(x)), gate and up
    fused."""

    def __init__(self, config: DecoderConfig, factory: Factory) -> None:
        super().__init__()
        self.gated = config.gated_mlp
        self.activation = ACTIVATIONS[config.activation]
        rows = config.intermediate_size
        if config.gated_mlp:
            rows *= 2
        self.up = factory.linear(config.hidden_size, rows, config.mlp_bias)
        self.down = factory.linear(config.intermediate_size, config.hidden_size, config.mlp_bias)

    def forward(self, x: Tensor, should_stop: ShouldStop | None = None) -> Tensor:
        """x (B, T, hidden) -> (B, T, hidden). Raises Cancelled."""
        inner = self.up(x)
        ask(should_stop)
        if self.gated:
            gate, up = inner.chunk(2, dim=-1)
            inner = self.activation(gate) * up
        else:
            inner = self.activation(inner)
        out: Tensor = self.down(inner)
        return out


class DecoderLayer(nn.Module):
    """Attention and MLP with their norms, one after the other or side by side."""

    def __init__(self, config: DecoderConfig, factory: Factory) -> None:
        super().__init__()
        self.parallel = config.parallel_residual
        self.multiplier = config.residual_multiplier
        self.attention_norm = factory.norm(config)
        self.attention = Attention(config, factory)
        if not self.parallel:
            self.mlp_norm = factory.norm(config)
        self.mlp = MLP(config, factory)

    def forward(
        self,
        x: Tensor,
        rotations: Rotations,
        layer: int,
        cache: KVCache | None,
        run: LayerRun | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Tensor:
        """x (B, T, hidden) -> (B, T, hidden). Asks should_stop before each part and raises
        Cancelled.

        run: computes the layer instead. A layer is only run by calling it: a decoder on several
        devices, or partly on a disk, has its weights where they are needed no longer than that.
        """
        if run is not None:
            return run(self, x, rotations, layer, cache)
        ask(should_stop)
        normed = self.attention_norm(x)
        attended = self.attention(normed, rotations, layer, cache)
        ask(should_stop)
        out: Tensor
        if self.parallel:
            out = x + self.scaled(attended) + self.scaled(self.mlp(normed, should_stop))
            return out
        x = x + self.scaled(attended)
        out = x + self.scaled(self.mlp(self.mlp_norm(x), should_stop))
        return out

    def scaled(self, added: Tensor) -> Tensor:
        """What is added to the residual stream, times its factor."""
        return added if self.multiplier == 1 else added * self.multiplier
