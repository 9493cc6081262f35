"""Blocks as they lie in GGUF files, in the layout of this room without a second rounding.

Source: ggml's block_q4_0 and so on (ggml-common.h, dequantize_row_* in ggml-quants.c).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model.cpu.blocks.packing import Quantized


def to_quantized(kind: str, raw: Tensor) -> Quantized:
    """raw: uint8 (n, bytes of a row), of one of KINDS, which are also the names of formats."""
    size, read = _READERS[kind]
    return read(raw.view(len(raw), -1, size))


def _half(blocks: Tensor, at: int) -> Tensor:
    """The half-precision number at a byte of each block, (n, blocks)."""
    return blocks[..., at : at + 2].contiguous().view(torch.float16)[..., 0]


def _flat(numbers: Tensor) -> Tensor:
    return numbers.reshape(len(numbers), -1)


def _groups(bytes_: Tensor, size: int) -> Tensor:
    """(..., k) -> (..., k / size, size)."""
    return bytes_.reshape(*bytes_.shape[:-1], -1, size)


def _nibbles(bytes_: Tensor) -> Tensor:
    """Lower halves of bytes (..., k), then the upper ones: (..., 2k)."""
    return torch.cat((bytes_ & 15, bytes_ >> 4), -1)


def _fifth_bits(blocks: Tensor, at: int) -> Tensor:
    """32 bits from four bytes, as 16 in their places."""
    shifts = torch.arange(8, dtype=torch.uint8)
    bits = blocks[..., at : at + 4, None] >> shifts & 1
    return bits.flatten(-2) << 4


def _q4_0(blocks: Tensor) -> Quantized:
    return Quantized(_flat(_nibbles(blocks[..., 2:])), _half(blocks, 0))


def _q4_1(blocks: Tensor) -> Quantized:
    return Quantized(_flat(_nibbles(blocks[..., 4:])), _half(blocks, 0), -_half(blocks, 2))


def _q5_0(blocks: Tensor) -> Quantized:
    numbers = _nibbles(blocks[..., 6:]) | _fifth_bits(blocks, 2)
    return Quantized(_flat(numbers), _half(blocks, 0))


def _q5_1(blocks: Tensor) -> Quantized:
    numbers = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks, 4)
    return Quantized(_flat(numbers), _half(blocks, 0), -_half(blocks, 2))


def _q8_0(blocks: Tensor) -> Quantized:
    return Quantized(_flat(blocks[..., 2:] ^ 128), _half(blocks, 0))


def _inner(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The scales and minimums of 6 bits in bytes 4 to 16 of each super-block, (n, 8 * blocks)."""
    packed = blocks[..., 4:16]
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:12]
    scales = torch.cat((first & 63, (third & 15) | (first >> 6 << 4)), -1)
    minimums = torch.cat((second & 63, (third >> 4) | (second >> 6 << 4)), -1)
    return _flat(scales).view(torch.int8), _flat(minimums)


def _q4_k(blocks: Tensor) -> Quantized:
    scales, minimums = _inner(blocks)
    numbers = _nibbles(_groups(blocks[..., 16:], 32))
    return Quantized(_flat(numbers), _half(blocks, 0), _half(blocks, 2), scales, minimums)


def _q5_k(blocks: Tensor) -> Quantized:
    scales, minimums = _inner(blocks)
    shifts = torch.arange(8, dtype=torch.uint8)
    # bit 2 g of byte l belongs to the lower half of group g, bit 2 g + 1 to its upper half
    fifth = (
        (blocks[..., 16:48, None] >> shifts & 1).transpose(-1, -2).reshape(*blocks.shape[:2], 4, 64)
    )
    numbers = _nibbles(_groups(blocks[..., 48:], 32)) | fifth << 4
    return Quantized(_flat(numbers), _half(blocks, 0), _half(blocks, 2), scales, minimums)


def _q6_k(blocks: Tensor) -> Quantized:
    lower = _groups(blocks[..., :128], 64)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)
    upper = _groups(blocks[..., 128:192], 32)[..., None, :] >> shifts[:, None] & 3
    numbers = _nibbles(lower) | upper.flatten(-2) << 4
    scales = _flat(blocks[..., 192:208]).view(torch.int8)
    return Quantized(_flat(numbers), _half(blocks, 208), None, scales)


_READERS: dict[str, tuple[int, Callable[[Tensor], Quantized]]] = {
    "q4_0": (18, _q4_0),
    "q4_1": (20, _q4_1),
    "q5_0": (22, _q5_0),
    "q5_1": (24, _q5_1),
    "q8_0": (34, _q8_0),
    "q4_k": (144, _q4_k),
    "q5_k": (176, _q5_k),
    "q6_k": (210, _q6_k),
}
KINDS = tuple(_READERS)
