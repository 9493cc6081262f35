"""Numbers and scales in panels: where the layout says, and out again as they went in."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from model.cpu.blocks.layout import (
    BLOCK,
    BY_NAME,
    FORMATS,
    OUTPUTS,
    PLANE,
    QUAD,
    SUPER,
    Format,
)
from model.cpu.blocks.packing import pack, quantize, unpack
from model.ggml import KINDS, Quantized, quantized
from tests.model.weights.gguf_files import random_blocks

WIDTH = 512
by_format = pytest.mark.parametrize("format_", FORMATS, ids=lambda each: each.name)


def any_numbers(format_: Format, rows: int) -> Quantized:
    """Of every value that the format has room for."""
    generator = torch.Generator().manual_seed(0)

    def whole(least: int, above: int, columns: int, dtype: torch.dtype) -> Tensor:
        return torch.randint(least, above, (rows, columns), generator=generator).to(dtype)

    numbers = whole(0, 2**format_.bits, WIDTH, torch.uint8)
    blocks = WIDTH // BLOCK
    halves = torch.randn(rows, 2, blocks // (SUPER if format_.two_level else 1)).half()
    scale = halves[:, 0].contiguous()
    minimum = halves[:, 1].contiguous() if format_.minimum else None
    if not format_.two_level:
        return Quantized(numbers, scale, minimum, offset=format_.offset)
    inner = whole(-128, 128, blocks * format_.scales, torch.int8)
    least = whole(0, 256, blocks, torch.uint8) if format_.minimum else None
    return Quantized(numbers, scale, minimum, inner, least, format_.offset)


@by_format
@pytest.mark.parametrize("rows", [1, 33, 64])
def test_what_is_packed_comes_out_again(format_: Format, rows: int) -> None:
    before = any_numbers(format_, rows)
    packed = pack(before, format_)
    assert packed.shape == (-(-rows // OUTPUTS), format_.panel_bytes(WIDTH))
    after = unpack(packed, format_)
    assert after.offset == before.offset
    for one, other in zip(before[:5], after[:5], strict=True):
        assert (one is None) == (other is None)
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            assert torch.equal(other[:rows], one)
            assert not other[rows:].any()
    again = torch.empty_like(packed)
    pack(before, format_, again)
    assert torch.equal(again, packed)


@by_format
def test_every_bit_stands_where_the_layout_says(format_: Format) -> None:
    rows = any_numbers(format_, OUTPUTS)
    panel = pack(rows, format_)[0].tolist()
    for column in range(0, WIDTH, 5):
        block, within = divmod(column, BLOCK)
        quad, place = divmod(within, QUAD)
        supers = block // SUPER + 1 if format_.two_level else 0
        start = block * format_.block_bytes + supers * format_.header_bytes
        for output in range(OUTPUTS):
            if format_.bits == 8:
                number = panel[start + QUAD * OUTPUTS * quad + QUAD * output + place]
            else:
                at = start + QUAD * OUTPUTS * (quad // 2) + QUAD * output + place
                number = panel[at] >> 4 * (quad % 2) & 15
                for bit in range(4, format_.bits):
                    which = QUAD * OUTPUTS * quad + QUAD * output + place
                    plane = panel[start + bit * PLANE + which // 8]
                    number |= (plane >> which % 8 & 1) << bit
            assert number == rows.numbers[output, column]


@pytest.mark.parametrize("kind", KINDS)
def test_a_files_blocks_in_panels_stand_for_what_the_gguf_library_makes_of_them(kind: str) -> None:
    raw = random_blocks(kind.upper(), (70, WIDTH), 0)
    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind.upper()])
    format_ = BY_NAME[kind]
    packed = pack(quantized(kind, torch.from_numpy(raw)), format_)
    ours = unpack(packed, format_).floats()[:70]
    np.testing.assert_array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize("name", ["q4_0", "q5_0", "q8_0"])
def test_rounding_loses_less_than_by_the_largest_number_alone(name: str) -> None:
    format_ = BY_NAME[name]
    weights = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0))
    lost = quantize(weights, format_).floats() - weights
    blocks = weights.view(64, -1, BLOCK)
    most = blocks.abs().amax(-1, keepdim=True)
    largest = format_.offset - 1
    plain = torch.round(blocks * largest / most) * most / largest - blocks
    share = float(lost.square().sum() / plain.square().sum())
    # 8 bits are rounded as plainly, but for the scale's half precision
    assert share < (1.01 if name == "q8_0" else 0.85)
    assert lost.view_as(blocks).abs().max() < (most / largest).max()


@pytest.mark.parametrize("value", [0.0, 1e-9, -3.0])
def test_blocks_of_one_number(value: float) -> None:
    weights = torch.full((1, BLOCK), value)
    for name in ("q4_0", "q8_0"):
        found = quantize(weights, BY_NAME[name]).floats()
        torch.testing.assert_close(found, weights, rtol=2**-10, atol=1e-7)


@by_format
def test_nothing_is_rounded_to_formats_with_minimums_or_super_blocks(format_: Format) -> None:
    if format_.minimum or format_.two_level:
        with pytest.raises(ValueError, match="nothing is rounded to it"):
            quantize(torch.zeros(1, WIDTH), format_)


def test_rows_of_int8_keep_their_numbers() -> None:
    """A second rounding, by blocks, would lose what the first one kept."""
    generator = torch.Generator().manual_seed(2)
    numbers = torch.randint(-127, 128, (70, 96), generator=generator)
    numbers[:, 50] = 127
    numbers[3] = 0
    scale = torch.rand(70, 1, generator=generator) + 0.5
    found = quantize(numbers * scale, BY_NAME["q8_0"])
    assert torch.equal(found.numbers.int() - 128, numbers.int())
    assert torch.allclose(found.floats(), numbers * scale, rtol=2**-11, atol=0)
    others = numbers * scale
    others[60, 7] += 0.3  # one row that is none
    assert not torch.equal(quantize(others, BY_NAME["q8_0"]).numbers.int() - 128, numbers.int())
