"""Quantized matrices as GGUF files hold them: blocks of numbers with their scales, taken apart and
widened.

Source: block_q4_0 and so on in ggml-common.h, dequantize_row_* in ggml-quants.c of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

AT_ONCE = 2**20  # weights to widen at once: they fit a CPU's cache
# Of each byte the eight bits, each as a byte of 0 or 16: a look-up is faster than eight shifts.
_BITS = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).to(torch.uint8) << 4
SIXTEENS = _BITS.view(torch.int64).view(256)


class Quantized(NamedTuple):
    """Rows of a matrix as unsigned numbers and scales:

        weight = scale * (number - offset) - minimum

    numbers (n, width) uint8. scale and minimum: half precision, (n, groups of columns). Where there
    are inner ones, whole numbers for smaller groups, the factor is the product of both.
    """

    numbers: Tensor
    scale: Tensor
    minimum: Tensor | None = None
    inner_scale: Tensor | None = None
    inner_minimum: Tensor | None = None
    offset: int = 0

    def floats(self) -> Tensor:
        """The weights, (n, width) float32: bit for bit those of ggml."""
        rows = len(self.numbers)
        # Numbers become floats before they are scaled: torch is slow at products of two types.
        found = self.numbers.float()
        if self.offset:
            found -= self.offset
        scale = _whole(self.scale, self.inner_scale)
        found.view(rows, scale.shape[1], -1).mul_(scale[..., None])
        if self.minimum is not None:
            minimum = _whole(self.minimum, self.inner_minimum)
            found.view(rows, minimum.shape[1], -1).sub_(minimum[..., None])
        return found


def _whole(outer: Tensor, inner: Tensor | None) -> Tensor:
    """The factors as float32."""
    if inner is None:
        return outer.float()
    products = inner.float().view(*outer.shape, -1) * outer.float()[..., None]
    return products.flatten(1)


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix in blocks of one of KINDS. raw: uint8 (rows, bytes of a row)."""

    kind: str
    shape: tuple[int, int]
    raw: Tensor

    def floats(self) -> Tensor:
        """The matrix as float32."""
        result = torch.empty(self.shape)
        step = max(1, AT_ONCE // self.shape[1])
        parts = zip(torch.split(result, step), torch.split(self.raw, step), strict=True)
        for into, part in parts:
            into.copy_(quantized(self.kind, part).floats())
        return result

    def is_finite(self) -> bool:
        """Whether all weights are finite."""
        size, _, halves = _KINDS[self.kind]
        blocks = self.raw.view(-1, size)
        return all(bool(torch.isfinite(_half(blocks, at)).all()) for at in halves)


def quantized(kind: str, raw: Tensor) -> Quantized:
    """Takes rows of blocks apart. raw: uint8 (n, bytes of a row) of one of KINDS."""
    size, read, _ = _KINDS[kind]
    parts = read(raw.reshape(-1, size))
    rows = len(raw)
    each = [None if part is None else part.reshape(rows, -1) for part in parts[:5]]
    return Quantized(*each, offset=parts.offset)  # type: ignore[arg-type, misc]


# Each of these takes blocks, uint8 (n, bytes of a block), and gives n rows of one block.


def _half(blocks: Tensor, first: int) -> Tensor:
    """The half-precision number at byte `first` of each block, (n, 1)."""
    return blocks[:, first : first + 2].contiguous().view(torch.float16)


def _nibbles(packed: Tensor) -> Tensor:
    """(n, groups, bytes) -> (n, groups, 2, bytes): the low halves of all bytes, then the high."""
    packed = packed.contiguous()  # each step runs over one array without gaps
    return torch.stack((packed & 15, packed >> 4), 2)


def _fifth_bits(blocks: Tensor, first: int) -> Tensor:
    """32 bits from byte `first` on, each as 0 or 16: (n, 32)."""
    packed = blocks[:, first : first + 4].reshape(-1).int()
    return SIXTEENS[packed].view(torch.uint8).view(-1, 32)


def _q4_0(blocks: Tensor) -> Quantized:
    return Quantized(_nibbles(blocks[:, None, 2:]), _half(blocks, 0), offset=8)


def _q4_1(blocks: Tensor) -> Quantized:
    return Quantized(_nibbles(blocks[:, None, 4:]), _half(blocks, 0), -_half(blocks, 2))


def _q5_0(blocks: Tensor) -> Quantized:
    numbers = _nibbles(blocks[:, None, 6:]).view(-1, 32).bitwise_or_(_fifth_bits(blocks, 2))
    return Quantized(numbers, _half(blocks, 0), offset=16)


def _q5_1(blocks: Tensor) -> Quantized:
    numbers = _nibbles(blocks[:, None, 8:]).view(-1, 32).bitwise_or_(_fifth_bits(blocks, 4))
    return Quantized(numbers, _half(blocks, 0), -_half(blocks, 2))


def _q8_0(blocks: Tensor) -> Quantized:
    return Quantized(blocks[:, 2:].contiguous().bitwise_xor_(128), _half(blocks, 0), offset=128)


def _scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of Q4_K and Q5_K: eight scales and minima of 6 bits in the 12 bytes from the fourth on, both
    (n, 8)."""
    low, high, rest = blocks[:, 4:16].view(-1, 3, 4).unbind(1)
    scales = torch.cat([low & 63, (rest & 15) | ((low >> 2) & 48)], 1)
    minima = torch.cat([high & 63, (rest >> 4) | ((high >> 2) & 48)], 1)
    return scales.view(torch.int8), minima


def _q4_k(blocks: Tensor) -> Quantized:
    numbers = _nibbles(blocks[:, 16:].view(-1, 4, 32))
    return Quantized(numbers, _half(blocks, 0), _half(blocks, 2), *_scales_and_minima(blocks))


def _q5_k(blocks: Tensor) -> Quantized:
    packed = blocks[:, 16:48].contiguous()
    fifth = torch.stack([((packed >> bit) & 1) << 4 for bit in range(8)], 1)
    numbers = _nibbles(blocks[:, 48:].view(-1, 4, 32)).view(-1, 8, 32).bitwise_or_(fifth)
    return Quantized(numbers, _half(blocks, 0), _half(blocks, 2), *_scales_and_minima(blocks))


def _q6_k(blocks: Tensor) -> Quantized:
    low = _nibbles(blocks[:, :128].view(-1, 2, 64)).view(-1, 8, 32)
    packed = blocks[:, 128:192].contiguous().view(-1, 2, 32)
    high = torch.stack([((packed >> bit) & 3) << 4 for bit in (0, 2, 4, 6)], 2).view(-1, 8, 32)
    scales = blocks[:, 192:208].contiguous().view(torch.int8)
    return Quantized(low.bitwise_or_(high), _half(blocks, 208), None, scales, offset=32)


# By kind: the bytes of a block, its reader, and where its half-precision numbers are.
_KINDS: dict[str, tuple[int, Callable[[Tensor], Quantized], tuple[int, ...]]] = {
    "q4_0": (18, _q4_0, (0,)),
    "q4_1": (20, _q4_1, (0, 2)),
    "q5_0": (22, _q5_0, (0,)),
    "q5_1": (24, _q5_1, (0, 2)),
    "q8_0": (34, _q8_0, (0,)),
    "q4_k": (144, _q4_k, (0, 2)),
    "q5_k": (176, _q5_k, (0, 2)),
    "q6_k": (210, _q6_k, (208,)),
}
KINDS = tuple(_KINDS)
