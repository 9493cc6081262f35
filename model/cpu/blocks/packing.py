"""Quantizes matrices, and puts their numbers into the layout and takes them out of it, in torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.cpu.blocks.layout import BLOCK, OUTPUTS, PLANE, QUAD, QUADS, SUPER, Format
from model.ggml import Quantized

# What a block's largest number is made to be of the format's: of these, what loses least is taken.
TRIED = (1.06, 1.02, 0.98, 0.94, 0.9, 0.86)
TINY = 1e-30  # divides what has nothing in it
WHOLE = 1e-3  # nearer to a whole number than floats come by chance


def quantize(weights: Tensor, format_: Format) -> Quantized:
    """weights (n, width) float32 -> numbers with a scale a block.

    The block's number that is farthest from 0 becomes the lowest one, which has the largest size.
    Of less than 8 bits a few scales are tried, and each is fitted to its numbers by least squares.
    Rows that were rounded to 8 bits before, with a scale a row, keep their numbers.
    Raises ValueError for a format with minimums or super-blocks.
    """
    if format_.minimum or format_.two_level:
        raise ValueError(f"{format_.name} is read, but nothing is rounded to it")
    blocks = weights.reshape(-1, BLOCK)
    least, most = blocks.aminmax(dim=-1, keepdim=True)
    farthest = torch.where(-least > most, least, most)
    # of 8 bits the lowest number stays free: products of it would not fit 16 bits on AVX2
    lowest = -format_.offset + (format_.bits == 8)
    scale = farthest / lowest
    if format_.bits < 8:
        scale = _best_scale(blocks, scale, format_)
    elif _are_whole(weights[:1]) and _are_whole(weights):
        scale = _row_scale(weights).expand(-1, weights.shape[1] // BLOCK).reshape(-1, 1)
    halves = scale.half()
    numbers = _round(blocks, halves.float(), lowest, format_.offset - 1)
    numbers = numbers.add_(format_.offset).to(torch.uint8)
    return Quantized(
        numbers.view(weights.shape), halves.view(len(weights), -1), offset=format_.offset
    )


def _row_scale(weights: Tensor) -> Tensor:
    """(n, 1): what makes a row's largest number 127."""
    return weights.abs().amax(-1, True).clamp_min(TINY) / 127


def _are_whole(weights: Tensor) -> bool:
    """Whether all rows are whole numbers from -127 to 127, times a scale."""
    numbers = weights / _row_scale(weights)
    return bool((numbers - numbers.round()).abs().amax() < WHOLE) if len(weights) else False


def _best_scale(blocks: Tensor, scale: Tensor, format_: Format) -> Tensor:
    """Of scales near one, (n, 1), the ones with the smallest sums of squared errors."""
    best = torch.full_like(scale, -1)
    found = scale
    numbers = torch.empty_like(blocks)
    for share in TRIED:
        _round(blocks, scale * share, -format_.offset, format_.offset - 1, numbers)
        # With the scale p / q an error is the block's own square less p p / q.
        p = torch.linalg.vecdot(numbers, blocks)[:, None]
        q = torch.linalg.vecdot(numbers, numbers)[:, None].clamp_min_(TINY)
        explained = p * p / q
        better = explained > best
        best = torch.where(better, explained, best)
        found = torch.where(better, p / q, found)
    return found


def _round(
    blocks: Tensor, scale: Tensor, lowest: int, highest: int, numbers: Tensor | None = None
) -> Tensor:
    """The whole numbers nearest to blocks (n, BLOCK) in steps of scale (n, 1). numbers: where
    to."""
    inverse = torch.where(scale == 0, 0, 1 / scale)
    return torch.mul(blocks, inverse, out=numbers).round_().clamp_(lowest, highest)


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
