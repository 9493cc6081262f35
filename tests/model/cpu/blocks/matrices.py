"""Matrices in blocks, of every format, and activations that find mistakes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.cpu.blocks.kernel import BlockProduct, Part
from model.cpu.blocks.layout import BLOCK, FORMATS, SUPER, Format
from model.cpu.blocks.packing import pack, unpack
from model.ggml import Quantized


def numbers(format_: Format, rows: int, width: int) -> Quantized:
    """Whole rows of the largest and the smallest numbers among others."""
    generator = torch.Generator().manual_seed(rows * width + format_.bits)

    def whole(low: int, high: int, columns: int, kind: torch.dtype) -> Tensor:
        return torch.randint(low, high, (rows, columns), dtype=kind, generator=generator)

    def halves(columns: int) -> Tensor:
        return (torch.rand(rows, columns, generator=generator) + 0.01).half()

    found = whole(0, 2**format_.bits, width, torch.uint8)
    found[::5] = 2**format_.bits - 1
    found[1::5] = 0
    blocks = width // BLOCK
    outer = blocks // SUPER if format_.two_level else blocks
    scale = halves(outer)
    minimum = halves(outer) if format_.minimum else None
    if not format_.two_level:
        return Quantized(found, scale, minimum, offset=format_.offset)
    low = 0 if format_.minimum else -128
    inner = whole(low, 64 if format_.minimum else 128, blocks * format_.scales, torch.int8)
    inner_minimum = whole(0, 64, blocks, torch.uint8) if format_.minimum else None
    return Quantized(found, scale, minimum, inner, inner_minimum, format_.offset)


def matrix(formats: Sequence[tuple[Format, int]], width: int) -> list[Part]:
    """Parts of so many rows, one below the other."""
    parts = []
    first = 0
    for format_, rows in formats:
        panels = pack(numbers(format_, rows, width), format_)
        parts.append(Part(first, rows, format_, panels))
        first += rows
    return parts


def floats_of(parts: Sequence[Part]) -> Tensor:
    """The matrix as float32."""
    return torch.cat([unpack(p.panels, p.format).floats()[: p.rows] for p in parts])


def activations(rows: int, width: int) -> Tensor:
    """Rows of all sizes, and such as round to nothing but 127, -127 or 0."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, width, generator=generator) * torch.logspace(-6, 6, rows)[:, None]
    x[1::4] = 3.5
    x[2::4] = -3.5
    x[3::8] = 0
    return x


def results(product: BlockProduct) -> dict[str, Tensor]:
    """Products of few and of many rows, by format."""
    width = 768
    x = activations(19, width)
    x[4, 5] = float("nan")
    found = {}
    for format_ in FORMATS:
        parts = matrix([(format_, 40)], width)
        few = [product.multiply(x[r : r + n], parts, 40) for r, n in ((0, 12), (12, 5), (17, 2))]
        found[f"{format_.name}, few rows"] = torch.cat(few)
        found[f"{format_.name}, many rows"] = product.multiply(x, parts, 40)
    return found
