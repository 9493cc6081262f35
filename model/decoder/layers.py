"""Rotary embedding, grouped-query attention, the two kinds of MLP.

Shapes: B batch, T new positions, S positions seen, H heads, K key/value heads, D head dimension.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.decoder.config import DecoderConfig, RopeConfig
from model.decoder.kv_cache import KVCache


def rope_frequencies(rope: RopeConfig) -> tuple[Tensor, float]:
    """Angle per position of each rotated pair, (dim / 2,), and what cos and sin are multiplied
    with.

    Sources: RoFormer (Su et al. 2021), YaRN (Peng et al. 2023, arXiv 2309.00071), Llama 3.1's
    scaling.
    """
    frequencies = 1.0 / rope.theta ** (torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim)
    if rope.kind == "linear":
        return frequencies / rope.factor, 1.0
    if rope.kind == "llama3":
        wavelength = 2 * math.pi / frequencies
        turns = rope.original_max_positions / wavelength
        smooth = (
            (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        ).clamp(0, 1)
        return (1 - smooth) * frequencies / rope.factor + smooth * frequencies, 1.0
    if rope.kind == "yarn":

        def dimension(
            turns: float,
        ) -> float:  # where a pair makes that many turns over the original context
            return (
                rope.dim
                * math.log(rope.original_max_positions / (turns * 2 * math.pi))
                / (2 * math.log(rope.theta))
            )

        low = max(math.floor(dimension(rope.beta_fast)), 0)
        high = min(math.ceil(dimension(rope.beta_slow)), rope.dim - 1)
        ramp = (
            (torch.arange(rope.dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
        ).clamp(0, 1)
        scale = rope.attention_factor or (
            0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
        )
        return frequencies / rope.factor * ramp + frequencies * (1 - ramp), scale
    return frequencies, 1.0


def rope_tables(rope: RopeConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin for positions of any shape: (*positions, dim), the two halves alike."""
    frequencies, scale = rope_frequencies(rope)
    angles = positions[..., None].float() * frequencies.to(positions.device)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * scale, angles.sin() * scale


@dataclass(frozen=True, slots=True)
class Turns:
    """The rotations of some positions, (positions, 1, dim) real each and (positions, 1, dim / 2)
    complex."""

    cos: Tensor
    sin: Tensor
    pairs: Tensor

    @classmethod
    def of(
        cls, rope: RopeConfig, positions: int, device: torch.device, dtype: torch.dtype
    ) -> Turns:
        """Those of the first positions."""
        cos, sin = rope_tables(rope, torch.arange(positions, device=device)[:, None])
        half = rope.dim // 2
        return cls(cos.to(dtype), sin.to(dtype), torch.complex(cos[..., :half], sin[..., :half]))

    def __getitem__(self, positions: slice) -> Turns:
        return Turns(self.cos[positions], self.sin[positions], self.pairs[positions])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first `dim` dimensions of each head; x (B, T, heads, D), cos and sin (B or 1, T,
    1, dim)."""
    dim = cos.shape[-1]
    head = x[..., :dim]
    first, second = head.chunk(2, dim=-1)
    rotated = head * cos + torch.cat((-second, first), dim=-1) * sin
    return rotated if dim == x.shape[-1] else torch.cat((rotated, x[..., dim:]), dim=-1)


def rotate_pairs(x: Tensor, turns: Tensor) -> None:
    """As `rotate`, in place, where pairs stand side by side; x (..., D) float32, turns (..., dim /
    2) complex."""
    pairs = x[..., : 2 * turns.shape[-1]]
    pairs = pairs.view(*pairs.shape[:-1], -1, 2)
    torch.view_as_complex(pairs).mul_(turns)


def causal_mask(new: int, seen: int, window: int | None, device: torch.device) -> Tensor:
    """(new, seen): which of the last `seen` positions each of the last `new` may look at."""
    query = torch.arange(seen - new, seen, device=device)[:, None]
    key = torch.arange(seen, device=device)
    mask = key <= query
    return mask if window is None else mask & (key > query - window)


def attend(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float | None = None
) -> Tensor:
    """q (B, H, T, D) at the last T of the S positions of k and v (B, K, S, D) -> (B, H, T, D).

    scale: of the scores; None is 1 / sqrt(D).
    """
    new, seen = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    windowed = window is not None and seen > window
    if new == seen and not windowed:
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=grouped, scale=scale
        )
    if new == 1 and not windowed:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped, scale=scale)
    mask = causal_mask(new, seen, window if windowed else None, q.device)
    if grouped and q.is_cuda:  # none of the fast kernels there takes both a mask and groups
        k, v, grouped = (
            *(t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v)),
            False,
        )
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped, scale=scale)


class Linear(nn.Linear):
    """A linear layer whose weights come from a checkpoint: initializing them before would only cost
    time."""

    def reset_parameters(self) -> None:
        pass


class Embeddings(nn.Module, ABC):
    """ids (...) -> (..., hidden)."""

    @abstractmethod
    def as_head(self, x: Tensor) -> Tensor:
        """The logits where the head is tied to the embeddings: x (..., hidden) -> (...,
        vocabulary)."""

    @abstractmethod
    def holds(self, weights: Tensor) -> bool:
        """Whether these are the weights."""


class Embedding(nn.Embedding, Embeddings):
    """See Linear."""

    def reset_parameters(self) -> None:
        pass

    def as_head(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def holds(self, weights: Tensor) -> bool:
        return torch.equal(weights.to(self.weight), self.weight)


class Packed(nn.Module, ABC):
    """A module that keeps its matrix in a form of its own."""

    @abstractmethod
    def fill(self, first: int, weights: Tensor) -> None:
        """Takes weights (n, width) as the rows from `first` on."""

    @abstractmethod
    def finish(self) -> None:
        """Once all rows are there: packs them."""


@dataclass(frozen=True)
class Factory:
    """Makes a decoder's modules, with whatever is in memory for weights. model.quantize and
    model.bits make others."""

    device: torch.device
    dtype: torch.dtype
    paired: ClassVar[bool] = False  # see Attention

    @property
    def scheme(self) -> str:
        """How the matrices are kept and multiplied, as far as results depend on it."""
        return str(self.dtype).removeprefix("torch.")

    def linear(self, width: int, out: int, bias: bool) -> nn.Module:
        return Linear(width, out, bias=bias, device=self.device, dtype=self.dtype)

    def qkv(self, config: DecoderConfig) -> nn.Module:
        """The fused projection for queries, keys and values: hidden -> (H + 2K) D."""
        return self.linear(config.hidden_size, config.qkv_size, config.qkv_bias)

    def embedding(self, vocabulary: int, hidden: int) -> Embeddings:
        return Embedding(vocabulary, hidden, device=self.device, dtype=self.dtype)

    def norm(self, hidden: int, eps: float) -> nn.LayerNorm:
        return nn.LayerNorm(hidden, eps, device=self.device, dtype=self.dtype)

    def gains(self, heads: int, dim: int) -> nn.Parameter:
        return nn.Parameter(torch.ones(heads, dim, device=self.device, dtype=self.dtype))

    def finish(self, module: nn.Module) -> None:
        """Told when all weights of a module are there."""
        if isinstance(module, Packed):
            module.finish()


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023) with one fused projection for queries, keys and
    values.

    With a factory's `paired`, each head's rotated dimensions stand in the order of their pairs, and
    queries carry the scores' scale (model.quantize puts them so): then a rotation is one product of
    complex numbers.
    """

    def __init__(self, config: DecoderConfig, factory: Factory) -> None:
        super().__init__()
        self.config, self.paired = config, factory.paired
        self.qkv = factory.qkv(config)
        self.out = factory.linear(
            config.num_heads * config.head_dim, config.hidden_size, config.out_bias
        )
        if config.qk_norm:
            self.q_norm = factory.gains(config.num_heads, config.head_dim)
            self.k_norm = factory.gains(config.num_kv_heads, config.head_dim)

    def forward(self, x: Tensor, turns: Turns, layer: int, cache: KVCache | None) -> Tensor:
        c = self.config
        batch, new, _ = x.shape
        qkv = self.qkv(x).view(batch, new, -1, c.head_dim)  # (B, T, H + 2K, D)
        q, k, v = qkv.split((c.num_heads, c.num_kv_heads, c.num_kv_heads), dim=2)
        if c.qk_norm:
            q = F.layer_norm(q, (c.head_dim,), eps=c.norm_eps) * self.q_norm
            k = F.layer_norm(k, (c.head_dim,), eps=c.norm_eps) * self.k_norm
        if self.paired:
            rotate_pairs(q, turns.pairs)
            rotate_pairs(k, turns.pairs)
        else:
            q, k = rotate(q, turns.cos, turns.sin), rotate(k, turns.cos, turns.sin)
        q, k, v = (
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
        )  # (B, H, T, D), (B, K, T, D) twice
        if cache is not None:
            # Positions that no new one can see are left out: the cost of a step stays that of the
            # window.
            first = 0 if c.sliding_window is None else max(0, cache.length + 1 - c.sliding_window)
            k, v = cache.append(layer, k[0], v[0], first)
        a = attend(q, k, v, c.sliding_window, scale=1.0 if self.paired else None)
        out: Tensor = self.out(a.transpose(1, 2).reshape(batch, new, -1))
        return out


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "silu": F.silu,
}


class MLP(nn.Module):
    """down(act(up(x))), or gated (SwiGLU, Shazeer 2020): down(act(gate(x)) * up(x)), gate and up
    fused."""

    def __init__(self, config: DecoderConfig, factory: Factory) -> None:
        super().__init__()
        self.gated, self.activation = config.gated_mlp, ACTIVATIONS[config.activation]
        rows = config.intermediate_size * (2 if config.gated_mlp else 1)
        self.up = factory.linear(config.hidden_size, rows, config.mlp_bias)
        self.down = factory.linear(config.intermediate_size, config.hidden_size, config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        gate, factor = x.chunk(2, dim=-1) if self.gated else (x, None)
        gate = self.activation(gate)
        out: Tensor = self.down(gate if factor is None else gate * factor)
        return out


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig, factory: Factory) -> None:
        super().__init__()
        self.parallel = config.parallel_residual
        self.attention_norm = factory.norm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config, factory)
        if not self.parallel:
            self.mlp_norm = factory.norm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config, factory)

    def forward(self, x: Tensor, turns: Turns, layer: int, cache: KVCache | None) -> Tensor:
        """x (B, T, hidden) -> (B, T, hidden)."""
        normed = self.attention_norm(x)
        attended = self.attention(normed, turns, layer, cache)
        out: Tensor
        if self.parallel:
            out = x + attended + self.mlp(normed)
            return out
        x = x + attended
        out = x + self.mlp(self.mlp_norm(x))
        return out
