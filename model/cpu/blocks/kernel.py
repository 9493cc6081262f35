"""The product with weights in blocks. Until there is machine code, torch computes it, slower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.cpu import code_cache
from model.cpu.blocks.layout import BLOCK, LARGEST, OUTPUTS, SMALLEST, SUPER, Format
from model.cpu.blocks.packing import unpack

if TYPE_CHECKING:
    from model.cpu.blocks.panels import Panels

AT_ONCE = 2**21  # weights that are widened at once


class Part(NamedTuple):
    """Rows of a matrix that have one format. panels: uint8 (panels, panel_bytes)."""

    first: int
    rows: int
    format: Format
    panels: Tensor


class BlockProduct:
    """Activations are rounded to 8 bits with a scale a block."""

    def __init__(self) -> None:
        self._code: Any = None
        self.functions: Any = None  # as product.py takes them, when there is machine code
        self.panels: Panels | None = None

    @property
    def ready(self) -> bool:
        return self._code is not None

    def load(self, folder: Path) -> None:
        """Loads machine code from a folder that is intact (code_cache.py), or compiles it there.

        Raises OSError if numba would keep it elsewhere.
        """
        if self.ready:
            return
        code_cache.use(folder)
        from model.cpu.blocks import panels  # llvmlite may be missing

        self.use(panels.load(folder))

    def use(self, tiles: Panels | None) -> None:
        """Multiplies with some CPU's tiles from now on. The code's folder has to be in use."""
        from model.cpu.blocks.compiled import product  # not before numba knows the folder

        if tiles is not None:
            self.panels = tiles
            self.functions = product.load(tiles)
            self._code = product

    def multiply(
        self, x: Tensor, parts: Sequence[Part], out: int, bias: Tensor | None = None
    ) -> Tensor:
        """x (rows, width) float32 -> (rows, out), with the bias (out,) added.

        Raises ValueError if the sizes of x and the parts do not go together.
        """
        if self._code is None:
            y = self._slow(x, parts)
            return y if bias is None else y.add_(bias)
        rows, width = x.shape
        x = x.contiguous()
        table = part_table(self.panels, parts, width)
        # Machine code does not check where it reads and writes.
        if x.dtype != torch.float32 or parts[-1].first + parts[-1].rows != out:
            raise ValueError(f"{x.dtype} and parts of {parts[-1]} do not go with {out} outputs")
        if bias is not None and (bias.shape != (out,) or bias.dtype != torch.float32):
            raise ValueError(f"a bias of {bias.shape} does not go with {out} outputs")
        result = torch.empty(rows, out)
        places = rows * SUPER * -(-width // (SUPER * BLOCK))
        rounded = torch.empty(places * BLOCK, dtype=torch.int8)
        steps = torch.empty(places)
        sums = torch.empty(places * 2)
        self._code.multiply(
            x.data_ptr(), rows, width, table.data_ptr(), len(parts), out, result.data_ptr(),
            bias.data_ptr() if bias is not None else 0, rounded.data_ptr(), steps.data_ptr(),
            sums.data_ptr(), self.functions,
        )  # fmt: skip
        return result

    def look_up(self, ids: Tensor, parts: Sequence[Part], width: int) -> Tensor:
        """Rows ids (n,) of a matrix, as float32 (n, width). Raises IndexError if one has none."""
        rows = parts[-1].first + parts[-1].rows
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
            raise IndexError(f"there are {rows} rows")
        result = torch.empty(len(ids), width)
        if self._code is None:
            for part in parts:
                here = (ids >= part.first) & (ids < part.first + part.rows)
                if not here.any():
                    continue
                own = ids[here] - part.first
                panels, at = torch.unique(own // OUTPUTS, return_inverse=True)
                floats = unpack(part.panels[panels], part.format).floats()
                floats = floats.view(len(panels), OUTPUTS, -1)
                result[here] = floats[at, own % OUTPUTS, :width]
            return result
        ids = ids.long().contiguous()
        table = part_table(self.panels, parts, width)
        self._code.look_up(
            ids.data_ptr(), len(ids), width, table.data_ptr(), len(parts), result.data_ptr(),
            self.functions,
        )  # fmt: skip
        return result

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


def part_table(tiles: Panels | None, parts: Sequence[Part], width: int) -> Tensor:
    """What product.py wants to know of the parts: (parts, HEIGHT + 1).

    Raises ValueError if they do not make up a matrix of that width.
    """
    assert tiles is not None
    blocks = -(-width // BLOCK)
    found = []
    rows = 0
    for part in parts:
        size = part.format.panel_bytes(blocks * BLOCK)
        shape = (-(-part.rows // OUTPUTS), size)
        if part.panels.shape != shape or not part.panels.is_contiguous() or part.first != rows:
            raise ValueError(f"{part.panels.shape} is not {shape}, for {width} columns")
        if part.format.two_level and blocks % SUPER:
            raise ValueError(f"{width} columns of {part.format.name} are no whole super-blocks")
        rows += part.rows
        number, kind = tiles.numbers_of(part.format)
        found.append((part.panels.data_ptr(), size, number, kind, part.first, part.rows))
    return torch.tensor(found, dtype=torch.int64)


def round_activations(x: Tensor) -> Tensor:
    """x (rows, width) -> (rows, width in whole blocks), as the product takes them."""
    x = F.pad(x, (0, -x.shape[1] % BLOCK))
    blocks = x.view(len(x), -1, BLOCK)
    most = blocks.abs().amax(-1, True).clamp_min_(SMALLEST)
    step = most * (1 / LARGEST)
    inverse = torch.full_like(most, LARGEST).div_(most)
    return (torch.round(blocks * inverse) * step).view_as(x)


PRODUCT = BlockProduct()
