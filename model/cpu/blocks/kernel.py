"""The product with weights in blocks. Until there is machine code, torch computes it, slower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.cpu.blocks.layout import BLOCK, LARGEST, OUTPUTS, Format
from model.cpu.blocks.packing import unpack

SMALLEST = 1e-20  # divides a block of zeros
AT_ONCE = 2**21  # weights that are widened at once


class Part(NamedTuple):
    """Rows of a matrix that have one format. panels: uint8 (panels, panel_bytes)."""

    first: int
    rows: int
    format: Format
    panels: Tensor


class BlockProduct:
    """Activations are rounded to 8 bits with a scale a block."""

    def multiply(self, x: Tensor, parts: Sequence[Part], out: int) -> Tensor:
        """x (rows, width) float32 -> (rows, out)."""
        return self._slow(x, parts)

    def _slow(self, x: Tensor, parts: Sequence[Part]) -> Tensor:
        x = round_activations(x)
        found = []
        for part in parts:
            step = max(1, AT_ONCE // (OUTPUTS * x.shape[1]))
            for panels in torch.split(part.panels, step):
                found.append(F.linear(x, unpack(panels, part.format).floats()))
            extra = len(part.panels) * OUTPUTS - part.rows
            if extra:
                found[-1] = found[-1][:, :-extra]
        return torch.cat(found, 1)


def round_activations(x: Tensor) -> Tensor:
    """x (rows, width) -> (rows, width in whole blocks), as the product takes them."""
    x = F.pad(x, (0, -x.shape[1] % BLOCK))
    blocks = x.view(len(x), -1, BLOCK)
    most = blocks.abs().amax(-1, True).clamp_min_(SMALLEST)
    step = most * (1 / LARGEST)
    inverse = torch.full_like(most, LARGEST).div_(most)
    return (torch.round(blocks * inverse) * step).view_as(x)


PRODUCT = BlockProduct()
