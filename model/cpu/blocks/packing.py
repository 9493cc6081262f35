"""Quantizes matrices, and puts their numbers into the layout and takes them out of it, in torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.cpu.blocks.layout import BLOCK, OUTPUTS, PLANE, QUAD, QUADS, SUPER, Format

# A block's scale in the numbers' largest step: of these, the one that loses least is taken.
TRIED = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82)


class Quantized(NamedTuple):
    """Rows of a matrix, quantized, in no particular layout.

    numbers (n, width) uint8. scale: half precision, (n, width / BLOCK), or of super-blocks, (n,
    width / BLOCK / SUPER); minimum: the same. inner_scale (n, scales * width / BLOCK) int8 and
    inner_minimum (n, width / BLOCK) uint8: of the blocks of super-blocks.
    """

    numbers: Tensor
    scale: Tensor
    minimum: Tensor | None = None
    inner_scale: Tensor | None = None
    inner_minimum: Tensor | None = None

    def floats(self, format_: Format) -> Tensor:
        """What they stand for, (n, width) float32."""
        rows, width = self.numbers.shape
        scale = self.scale.float()
        if self.inner_scale is not None:
            scale = self.inner_scale.float() * scale.repeat_interleave(SUPER * format_.scales, 1)
        scales = scale.view(rows, -1, 1)
        numbers = self.numbers.view(rows, scales.shape[1], -1).float() - format_.offset
        numbers = numbers * scales
        if self.minimum is not None:
            minimum = self.minimum.float()
            if self.inner_minimum is not None:
                minimum = self.inner_minimum.float() * minimum.repeat_interleave(SUPER, 1)
            numbers = numbers.view(rows, -1, BLOCK) - minimum[..., None]
        return numbers.reshape(rows, width)


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
    return Quantized(numbers, chosen.squeeze(-1).half())


def pack(rows: Quantized, format_: Format) -> Tensor:
    """Rows (n, width) -> uint8 (panels, panel_bytes). Rows that the last panel lacks are 0."""
    panels = -(-len(rows.numbers) // OUTPUTS)
    blocks = rows.numbers.shape[1] // BLOCK
    # (panels, blocks, quads, outputs, QUAD)
    numbers = (
        _panels(rows.numbers).view(panels, OUTPUTS, blocks, QUADS, QUAD).permute(0, 2, 3, 1, 4)
    )
    parts = []
    if format_.bits == 8:
        parts.append(numbers)
    else:
        lower = numbers & 15
        parts.append(lower[:, :, 0::2] | lower[:, :, 1::2] << 4)
        weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
        for bit in range(4, format_.bits):
            plane = (numbers >> bit & 1).reshape(panels, blocks, -1, 8)
            parts.append((plane * weights).sum(-1, dtype=torch.uint8))
    if rows.inner_scale is None:
        parts += [_halves(rows.scale, blocks)]
        if rows.minimum is not None:
            parts.append(_halves(rows.minimum, blocks))
    else:
        # each of a block's scales of all outputs together
        inner = _panels(rows.inner_scale).view(panels, OUTPUTS, blocks, format_.scales)
        parts.append(inner.permute(0, 2, 3, 1).view(torch.uint8))
        if rows.inner_minimum is not None:
            parts.append(_panels(rows.inner_minimum).transpose(1, 2))
    packed = torch.cat([part.reshape(panels, blocks, -1) for part in parts], -1)
    if format_.two_level:
        supers = blocks // SUPER
        heads = [_halves(rows.scale, supers)]
        if rows.minimum is not None:
            heads.append(_halves(rows.minimum, supers))
        packed = torch.cat((*heads, packed.view(panels, supers, -1)), -1)
    return packed.view(panels, -1)


def _panels(part: Tensor) -> Tensor:
    """(n, columns) -> (panels, OUTPUTS, columns)."""
    part = F.pad(part, (0, 0, 0, -len(part) % OUTPUTS))
    return part.view(-1, OUTPUTS, part.shape[1])


def _halves(part: Tensor, blocks: int) -> Tensor:
    """(n, blocks) half precision -> (panels, blocks, bytes)."""
    panels = _panels(part).transpose(1, 2).contiguous().view(torch.uint8)
    return panels.view(len(panels), blocks, -1)


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
        return Quantized(numbers, *_read_halves(scales, format_))
    inner = scales[..., : format_.scale_bytes].unfold(-1, OUTPUTS, OUTPUTS)
    inner = inner.permute(0, 3, 1, 2).reshape(panels * OUTPUTS, -1).view(torch.int8)
    least = None
    if format_.minimum:
        least = scales[..., format_.scale_bytes :].transpose(1, 2).reshape(panels * OUTPUTS, -1)
    return Quantized(numbers, *_read_halves(head, format_), inner, least)


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
