"""Rotary position embedding: frequencies, tables of cos and sin, and the rotation of heads.

Sources: RoFormer (Su et al. 2021, arXiv 2104.09864), YaRN (Peng et al. 2023, arXiv 2309.00071), and
the scaling of Llama 3.1 (its model card, and transformers' rope type llama3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model.decoder.config import RopeConfig


def rope_frequencies(rope: RopeConfig) -> tuple[Tensor, float]:
    """Radians per position of each rotated pair, (dim / 2,), and the factor of cos and sin."""
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim
    frequencies = 1.0 / rope.theta**exponents
    if rope.kind == "linear":
        return frequencies / rope.factor, 1.0
    if rope.kind == "llama3":
        return _llama3_frequencies(rope, frequencies), 1.0
    if rope.kind == "yarn":
        return _yarn_frequencies(rope, frequencies), _yarn_scale(rope)
    return frequencies, 1.0


def _llama3_frequencies(rope: RopeConfig, frequencies: Tensor) -> Tensor:
    """Slow pairs are interpolated, fast ones stay, those in between are mixed."""
    wavelength = 2 * math.pi / frequencies
    turns = rope.original_max_positions / wavelength
    share = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = share.clamp(0, 1)
    return (1 - smooth) * frequencies / rope.factor + smooth * frequencies


def _yarn_frequencies(rope: RopeConfig, frequencies: Tensor) -> Tensor:
    """As llama3 does, but by a linear ramp over the pairs."""
    low = max(math.floor(_yarn_pair(rope, rope.beta_fast)), 0)
    high = min(math.ceil(_yarn_pair(rope, rope.beta_slow)), rope.dim - 1)
    pairs = torch.arange(rope.dim // 2, dtype=torch.float32)
    ramp = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequencies / rope.factor * ramp + frequencies * (1 - ramp)


def _yarn_pair(rope: RopeConfig, turns: float) -> float:
    """The pair that makes so many turns over the original context, as a fraction."""
    wavelength = rope.original_max_positions / (turns * 2 * math.pi)
    return rope.dim * math.log(wavelength) / (2 * math.log(rope.theta))


def _yarn_scale(rope: RopeConfig) -> float:
    if rope.attention_factor:
        return rope.attention_factor
    if rope.factor > 1:
        return 0.1 * math.log(rope.factor) + 1.0
    return 1.0


def rope_tables(rope: RopeConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, each (*positions, dim), where dimension i turns together with i + dim / 2."""
    frequencies, scale = rope_frequencies(rope)
    angles = positions[..., None].float() * frequencies.to(positions.device)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * scale, angles.sin() * scale


@dataclass(frozen=True, slots=True)
class Rotations:
    """The rotations of successive positions, once as two real tables and once as complex numbers.

    cos and sin are (positions, 1, dim); pairs is complex, (positions, 1, dim / 2).
    """

    cos: Tensor
    sin: Tensor
    pairs: Tensor

    @classmethod
    def of_first(
        cls, positions: int, rope: RopeConfig | None, device: torch.device, dtype: torch.dtype
    ) -> Rotations:
        """The rotations of positions 0, 1, ..., positions - 1; of no dimension without rope."""
        if rope is None:
            none = torch.empty(positions, 1, 0, dtype=dtype, device=device)
            return cls(none, none, none.to(torch.complex64))
        cos, sin = rope_tables(rope, torch.arange(positions, device=device)[:, None])
        half = rope.dim // 2
        pairs = torch.complex(cos[..., :half], sin[..., :half])
        return cls(cos.to(dtype), sin.to(dtype), pairs)

    def __getitem__(self, positions: slice) -> Rotations:
        return Rotations(self.cos[positions], self.sin[positions], self.pairs[positions])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first dim dimensions of each head.

    x (B, T, heads, D), cos and sin (T, 1, dim) -> (B, T, heads, D).
    """
    dim = cos.shape[-1]
    head = x[..., :dim]
    first, second = head.chunk(2, dim=-1)
    rotated = head * cos + torch.cat((-second, first), dim=-1) * sin
    if dim == x.shape[-1]:
        return rotated
    return torch.cat((rotated, x[..., dim:]), dim=-1)


def rotate_interleaved(x: Tensor, pairs: Tensor) -> None:
    """Rotates in place heads in which the two dimensions of a pair stand side by side.

    x (B, T, heads, D) float32, pairs (T, 1, dim / 2) complex.
    """
    head = x[..., : 2 * pairs.shape[-1]]
    head = head.view(*head.shape[:-1], -1, 2)
    torch.view_as_complex(head).mul_(pairs)
