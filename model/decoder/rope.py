"""Rotary position embedding: frequencies, tables of cos and sin, and the rotation of heads.

Sources: RoFormer (Su et al. 2021, arXiv 2104.09864), YaRN (Peng et al. 2023, arXiv 2309.00071),
LongRoPE (Ding et al. 2024, arXiv 2402.13753), the scaling of Llama 3.1 (its model card), and
transformers' rope types of these names; dynamic is the NTK-aware scaling that YaRN describes.

The frequencies of the kinds dynamic and longrope depend on the length of the sequence. A pass
without a cache rotates for the length of its own sequence, as transformers does for a new text. A
pass with a cache rotates for max_positions, the longest sequence that the configuration allows,
however short the text still is. The keys in a cache are rotated already, and what the deeper layers
hold was computed from them: frequencies that change while a text grows would mix two of them in one
attention, as transformers' generation does, or cost the whole cache, with dynamic at every token.
So a cache that was trimmed, forked, or filled in any chunks is what a new one would be. Who wants
the frequencies of the original context there sets max_position_embeddings to it (longrope) or
leaves the scaling out (dynamic).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model.decoder.config import RopeConfig

PIECE = 2**16  # positions


def rope_frequencies(rope: RopeConfig, length: int) -> tuple[Tensor, float]:
    """Radians per position of each rotated pair, (dim / 2,), and the factor of cos and sin.

    length: of the sequence, in positions; read by the kinds that vary with it.
    """
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.float32) / rope.dim
    frequencies = 1.0 / _theta(rope, length) ** exponents
    if rope.kind == "linear":
        return frequencies / rope.factor, 1.0
    if rope.kind == "llama3":
        return _llama3_frequencies(rope, frequencies), 1.0
    if rope.kind == "yarn":
        return _yarn_frequencies(rope, frequencies), _yarn_scale(rope)
    if rope.kind == "longrope":
        is_long = length > rope.original_max_positions
        divisors = torch.tensor(rope.long_factor if is_long else rope.short_factor)
        return frequencies / divisors, _longrope_scale(rope)
    return frequencies, 1.0


def _theta(rope: RopeConfig, length: int) -> float:
    """The base of the frequencies. The kind dynamic enlarges it with the length, so that the
    slowest pair turns over the whole sequence as far as over the original context."""
    original = rope.original_max_positions
    if rope.kind != "dynamic" or length <= original:
        return rope.theta
    stretch = rope.factor * length / original - (rope.factor - 1)
    return float(rope.theta * stretch ** (rope.dim / (rope.dim - 2)))


def _llama3_frequencies(rope: RopeConfig, frequencies: Tensor) -> Tensor:
    """Slow pairs are interpolated, fast ones stay, those in between are mixed."""
    wavelength = 2 * math.pi / frequencies
    turns = rope.original_max_positions / wavelength
    share = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = share.clamp(0, 1)
    return (1 - smooth) * frequencies / rope.factor + smooth * frequencies


def _yarn_frequencies(rope: RopeConfig, frequencies: Tensor) -> Tensor:
    """As llama3 does, but by a linear ramp over the pairs."""
    low = _yarn_pair(rope, rope.beta_fast)
    high = _yarn_pair(rope, rope.beta_slow)
    if rope.truncate:
        low = math.floor(low)
        high = math.ceil(high)
    low = max(low, 0)
    high = min(high, rope.dim - 1)
    pairs = torch.arange(rope.dim // 2, dtype=torch.float32)
    ramp = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequencies / rope.factor * ramp + frequencies * (1 - ramp)


def _yarn_pair(rope: RopeConfig, turns: float) -> float:
    """The pair that makes so many turns over the original context, as a fraction."""
    wavelength = rope.original_max_positions / (turns * 2 * math.pi)
    return rope.dim * math.log(wavelength) / (2 * math.log(rope.theta))


def _yarn_scale(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor <= 1:
        return 1.0
    tenth = 0.1 * math.log(rope.factor)
    if rope.mscale and rope.mscale_all_dim:
        return (tenth * rope.mscale + 1.0) / (tenth * rope.mscale_all_dim + 1.0)
    return tenth + 1.0


def _longrope_scale(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor > 1:
        return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_positions))
    return 1.0


def rope_tables(rope: RopeConfig, positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each (*positions, dim), where dimension i turns together with i + dim / 2.

    length: of the sequence that the positions belong to.
    """
    frequencies, scale = rope_frequencies(rope, length)
    angles = positions[..., None].float() * frequencies.to(positions.device)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * scale, angles.sin() * scale


@dataclass(frozen=True, slots=True)
class Rotations:
    """The rotations of positions, once as two real tables and once as complex numbers.

    cos and sin are (positions, 1, dim); pairs is complex, (positions, 1, dim / 2). What has
    positions of its own for each sequence has the batch in front.
    """

    cos: Tensor
    sin: Tensor
    pairs: Tensor

    @classmethod
    def of_first(
        cls, positions: int, rope: RopeConfig | None, device: torch.device, dtype: torch.dtype
    ) -> Rotations:
        """The rotations of a sequence of so many positions; of no dimension without rope. They take
        no more memory while they are made."""
        if rope is None or positions <= PIECE:
            return cls.of(torch.arange(positions, device=device), rope, positions, dtype)
        made = cls(
            torch.empty(positions, 1, rope.dim, dtype=dtype, device=device),
            torch.empty(positions, 1, rope.dim, dtype=dtype, device=device),
            torch.empty(positions, 1, rope.dim // 2, dtype=torch.complex64, device=device),
        )
        for first in range(0, positions, PIECE):
            some = torch.arange(first, min(first + PIECE, positions), device=device)
            piece = cls.of(some, rope, positions, dtype)
            there = made[first : first + PIECE]
            there.cos.copy_(piece.cos)
            there.sin.copy_(piece.sin)
            there.pairs.copy_(piece.pairs)
        return made

    @classmethod
    def of(
        cls, positions: Tensor, rope: RopeConfig | None, length: int, dtype: torch.dtype
    ) -> Rotations:
        """Rotations of positions (..., T) in a sequence of `length`: cos is (..., T, 1, dim)."""
        if rope is None:
            none = torch.empty(*positions.shape, 1, 0, dtype=dtype, device=positions.device)
            return cls(none, none, none.to(torch.complex64))
        cos, sin = rope_tables(rope, positions[..., None], length)
        half = rope.dim // 2
        pairs = torch.complex(cos[..., :half], sin[..., :half])
        return cls(cos.to(dtype), sin.to(dtype), pairs)

    def __getitem__(self, positions: slice) -> Rotations:
        return Rotations(self.cos[positions], self.sin[positions], self.pairs[positions])

    def to(self, device: torch.device) -> Rotations:
        return Rotations(self.cos.to(device), self.sin.to(device), self.pairs.to(device))


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
