"""Widens blocks of quantized weights with torch: several times as fast as the gguf library, for the
types that most files hold. The results are the same, bit for bit.

Source of the blocks: ggml-common.h and ggml-quants.c of llama.cpp. In each function blocks are
uint8 (n, bytes of a block), and the result is float32 (n, weights of a block).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

# Of each byte the eight bits, each as a byte of 0 or 16: a look-up is faster than eight shifts.
_BITS = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1).to(torch.uint8) << 4
SIXTEENS = _BITS.view(torch.int64).view(256)


def _half(blocks: Tensor, first: int) -> Tensor:
    """The float16 at byte `first` of each block, as float32 (n, 1)."""
    return blocks[:, first : first + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """(n, groups, bytes) -> (n, groups, 2, bytes): the low halves of all bytes, then the high."""
    packed = packed.contiguous()  # each step runs over one array without gaps
    return torch.stack((packed & 15, packed >> 4), 2)


def _fifth_bits(blocks: Tensor, first: int) -> Tensor:
    """32 bits from byte `first` on, each as 0 or 16: (n, 32)."""
    packed = blocks[:, first : first + 4].reshape(-1).int()
    return SIXTEENS[packed].view(torch.uint8).view(-1, 32)


# The numbers become floats before they are scaled: torch is slow at products of two types.


def _q4_0(blocks: Tensor) -> Tensor:
    numbers = _nibbles(blocks[:, None, 2:]).view(-1, 32)
    return numbers.float().sub_(8).mul_(_half(blocks, 0))


def _q4_1(blocks: Tensor) -> Tensor:
    numbers = _nibbles(blocks[:, None, 4:]).view(-1, 32)
    return numbers.float().mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q5_0(blocks: Tensor) -> Tensor:
    numbers = _nibbles(blocks[:, None, 6:]).view(-1, 32).bitwise_or_(_fifth_bits(blocks, 2))
    return numbers.float().sub_(16).mul_(_half(blocks, 0))


def _q5_1(blocks: Tensor) -> Tensor:
    numbers = _nibbles(blocks[:, None, 8:]).view(-1, 32).bitwise_or_(_fifth_bits(blocks, 4))
    return numbers.float().mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(blocks: Tensor) -> Tensor:
    numbers = blocks[:, 2:].contiguous().view(torch.int8)
    return numbers.float().mul_(_half(blocks, 0))


def _scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of Q4_K and Q5_K: eight 6-bit scales and minima in the 12 bytes from the fourth on, times the
    block's two halves. Both (n, 8, 1)."""
    low, high, rest = blocks[:, 4:16].view(-1, 3, 4).unbind(1)
    scales = torch.cat([low & 63, (rest & 15) | ((low >> 2) & 48)], 1).float()
    minima = torch.cat([high & 63, (rest >> 4) | ((high >> 2) & 48)], 1).float()
    return scales.mul_(_half(blocks, 0))[..., None], minima.mul_(_half(blocks, 2))[..., None]


def _q4_k(blocks: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(blocks)
    numbers = _nibbles(blocks[:, 16:].view(-1, 4, 32)).view(-1, 8, 32)
    return numbers.float().mul_(scales).sub_(minima).view(-1, 256)


def _q5_k(blocks: Tensor) -> Tensor:
    scales, minima = _scales_and_minima(blocks)
    packed = blocks[:, 16:48].contiguous()
    fifth = torch.stack([((packed >> bit) & 1) << 4 for bit in range(8)], 1)
    numbers = _nibbles(blocks[:, 48:].view(-1, 4, 32)).view(-1, 8, 32).bitwise_or_(fifth)
    return numbers.float().mul_(scales).sub_(minima).view(-1, 256)


def _q6_k(blocks: Tensor) -> Tensor:
    low = _nibbles(blocks[:, :128].view(-1, 2, 64)).view(-1, 8, 32)
    packed = blocks[:, 128:192].contiguous().view(-1, 2, 32)
    high = torch.stack([((packed >> bit) & 3) << 4 for bit in (0, 2, 4, 6)], 2).view(-1, 8, 32)
    numbers = low.bitwise_or_(high).float().sub_(32).view(-1, 16, 16)
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float().mul_(_half(blocks, 208))
    return numbers.mul_(scales[..., None]).view(-1, 256)


WIDENED: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
"""By the names of GGUF's types."""
