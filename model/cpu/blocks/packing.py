"""Quantizes matrices, and puts their numbers into the layout and takes them out of it, in torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.cpu.blocks.layout import BLOCK, OUTPUTS, PLANE, QUAD, QUADS, SUPER, Format
from model.ggml import Quantized

# A block's scale in the numbers' largest step: of these, the one that loses least is taken.
TRIED = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82)


def quantize(weights: Tensor, format_: Format) -> Quantized:
    """weights (n, width) float32 -> numbers with a scale a block, which loses least of some.

    The block's number that is farthest from 0 becomes the lowest one, which has the largest size.
    Raises ValueError for a format with minimums or super-blocks.
    """
    if format_.minimum or format_.two_level:
        raise ValueError(f"{format_.name} is read, but nothing is rounded to it")
    blocks = weights.view(len(weights), -1, BLOCK)
    farthest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    best: Tensor | None = None
    for share in TRIED if format_.bits < 8 else (1.0,):
        # of 8 bits the lowest number stays free: products of it would not fit 16 bits on AVX2
        lowest = -format_.offset + (format_.bits == 8)
        scale = (farthest * share / lowest).half().float()
        numbers = torch.round(blocks / torch.where(scale == 0, 1, scale))
        numbers = numbers.clamp_(lowest, format_.offset - 1)
        error = (numbers * scale - blocks).square_().sum(-1, keepdim=True)
        if best is None:
            best, chosen, rounded = error, scale, numbers
            continue
        better = error < best
        best = torch.where(better, error, best)
        chosen = torch.where(better, scale, chosen)
        rounded = torch.where(better, numbers, rounded)
    numbers = (rounded + format_.offset).to(torch.uint8).view(weights.shape)
    return Quantized(numbers, chosen.squeeze(-1).half(), offset=format_.offset)


# Shifts of whole words move bits of a byte into the next one: what they must not reach is masked.
_LOW = 0x0F0F0F0F  # of four bytes
_ONES = 0x0101010101010101  # of eight bytes
_GATHERED = 0x0102040810204080  # times eight bytes of 0 or 1: their bits in the highest byte


def pack(rows: Quantized, format_: Format, packed: Tensor | None = None) -> Tensor:
    """Rows (n, width) -> uint8 (panels, panel_bytes). Rows that the last panel lacks are 0. packed:
    where to."""
    panels = -(-len(rows.numbers) // OUTPUTS)
    blocks = rows.numbers.shape[1] // BLOCK
    if packed is None:
        packed = torch.empty(panels, format_.panel_bytes(BLOCK * blocks), dtype=torch.uint8)
    # (panels, groups, blocks of a group, bytes): groups share a header
    body = packed.view(panels, blocks, 1, -1)
    if format_.two_level:
        supers = packed.view(panels, blocks // SUPER, -1)
        _put_halves(supers[..., : format_.header_bytes], rows)
        body = supers[..., format_.header_bytes :].view(panels, -1, SUPER, format_.block_bytes)
    _put_numbers(body, rows.numbers, format_)
    scales = body[..., format_.number_bytes :]
    if rows.inner_scale is None:
        _put_halves(scales, rows)
        return packed
    # each of a block's scales of all outputs together
    inner = _panels(rows.inner_scale).view(panels, OUTPUTS, blocks, format_.scales)
    _put(scales, 0, inner.permute(0, 2, 3, 1).contiguous().view(torch.uint8))
    if rows.inner_minimum is not None:
        _put(scales, format_.scale_bytes, _panels(rows.inner_minimum).transpose(1, 2).contiguous())
    return packed


def _put_numbers(body: Tensor, numbers: Tensor, format_: Format) -> None:
    # A quad is one word: (panels, blocks, quads, outputs).
    words = _panels(numbers.view(torch.int32))
    words = words.view(*words.shape[:2], -1, QUADS)
    words = words.permute(0, 2, 3, 1).contiguous()
    if format_.bits == 8:
        _put(body, 0, words.view(torch.uint8))
        return
    lower = words & _LOW if format_.bits > 4 else words
    lower = lower[:, :, 0::2] | (lower[:, :, 1::2] << 4)
    _put(body, 0, lower.view(torch.uint8))
    pairs = words.view(torch.int64)
    for bit in range(4, format_.bits):
        plane = (pairs >> bit).bitwise_and_(_ONES).mul_(_GATHERED).bitwise_right_shift_(56)
        _put(body, bit * PLANE, plane)


def _put(places: Tensor, start: int, parts: Tensor) -> None:
    """Writes the parts of each block to bytes from `start` on of (panels, ..., bytes)."""
    parts = parts.view(*places.shape[:-1], -1)
    places[..., start : start + parts.shape[-1]] = parts


def _put_halves(places: Tensor, rows: Quantized) -> None:
    """Writes scales, then minimums."""
    start = 0
    for part in (rows.scale, rows.minimum):
        if part is not None:
            _put(places, start, _panels(part).transpose(1, 2).contiguous().view(torch.uint8))
            start += 2 * OUTPUTS


def _panels(part: Tensor) -> Tensor:
    """(n, columns) -> (panels, OUTPUTS, columns)."""
    part = F.pad(part, (0, 0, 0, -len(part) % OUTPUTS))
    return part.view(-1, OUTPUTS, part.shape[1])


def unpack(packed: Tensor, format_: Format) -> Quantized:
    """uint8 (panels, panel_bytes) -> rows (OUTPUTS * panels, width)."""
    panels = len(packed)
    blocks = packed
    head = packed
    if format_.two_level:
        supers = packed.view(panels, -1, format_.header_bytes + SUPER * format_.block_bytes)
        head = supers[..., : format_.header_bytes]
        blocks = supers[..., format_.header_bytes :]
    blocks = blocks.reshape(panels, -1, format_.block_bytes)
    numbers = _read_numbers(blocks[..., : format_.number_bytes], format_)
    scales = blocks[..., format_.number_bytes :]
    if not format_.two_level:
        return Quantized(numbers, *_read_halves(scales, format_), offset=format_.offset)
    inner = scales[..., : format_.scale_bytes].unfold(-1, OUTPUTS, OUTPUTS)
    inner = inner.permute(0, 3, 1, 2).reshape(panels * OUTPUTS, -1).view(torch.int8)
    least = None
    if format_.minimum:
        least = scales[..., format_.scale_bytes :].transpose(1, 2).reshape(panels * OUTPUTS, -1)
    return Quantized(numbers, *_read_halves(head, format_), inner, least, format_.offset)


def _read_numbers(part: Tensor, format_: Format) -> Tensor:
    """(panels, blocks, number_bytes) -> (n, width)."""
    panels, blocks, _ = part.shape
    shape = (panels, blocks, QUADS, OUTPUTS, QUAD)
    if format_.bits == 8:
        numbers = part.reshape(shape)
    else:
        pairs = part[..., : 4 * PLANE].reshape(panels, blocks, QUADS // 2, 1, OUTPUTS, QUAD)
        numbers = torch.cat((pairs & 15, pairs >> 4), 3).view(shape)
        shifts = torch.arange(8, dtype=torch.uint8)
        for bit in range(4, format_.bits):
            plane = part[..., bit * PLANE : (bit + 1) * PLANE, None] >> shifts & 1
            numbers = numbers | plane.reshape(shape) << bit
    return numbers.permute(0, 3, 1, 2, 4).reshape(panels * OUTPUTS, -1)


def _read_halves(part: Tensor, format_: Format) -> tuple[Tensor, Tensor | None]:
    """(panels, blocks, bytes) -> scale and minimum, each (n, blocks)."""
    halves = part.contiguous().view(torch.float16)
    halves = halves.view(*part.shape[:2], -1, OUTPUTS).permute(2, 0, 3, 1).flatten(1, 2)
    return halves[0], halves[1] if format_.minimum else None
