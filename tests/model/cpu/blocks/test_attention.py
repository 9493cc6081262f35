"""The tile of attention, beside the same in double precision."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llvmlite import binding

from model.cpu.blocks import panels
from model.cpu.blocks.kernel import PRODUCT
from model.cpu.blocks.layout import POSITIONS, ROW, WIDTHS
from model.cpu.blocks.panels import Panels
from model.cpu.blocks.tiles import cpus
from model.cpu.blocks.tiles.attention import MASKED
from tests.model.cpu.blocks.test_tiles import PLAYED, X86, Chip, target_of

pytestmark = pytest.mark.xdist_group("compiled")

SEEN = 77  # positions, the last of which are no whole block


@pytest.fixture(scope="module")
def tiles(code: Path) -> Panels:
    PRODUCT.load(code)
    assert PRODUCT.panels is not None
    return PRODUCT.panels


def attend(
    tiles: Panels, q: Any, keys: Any, values: Any, first: Any, end: Any, start: int = 0
) -> Any:
    """q (dim, width), keys and values (positions, dim) float16, first and end (width,) -> (dim,
    width)."""
    widen = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 5)(tiles.widen_rows)
    add = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 12)(tiles.attend)
    dim, width = q.shape
    wide = np.zeros((2, POSITIONS, ROW // 4), np.float32)
    seen = np.stack([first, end]).astype(np.int32)
    scores = np.full((POSITIONS, width), np.nan, np.float32)
    most = np.full(width, MASKED, np.float32)
    total = np.zeros(width, np.float32)
    out = np.zeros((dim, width), np.float32)
    written = (wide[0], wide[1], q, seen, scores, most, total, out)
    for position in range(start, len(keys), POSITIONS):
        count = min(POSITIONS, len(keys) - position)
        for rows, into, numbers_only in ((keys, wide[0], 0), (values, wide[1], 1)):
            at = rows[position:].ctypes.data
            widen(at, count, dim, into.ctypes.data, numbers_only)
        kind = WIDTHS.index(width)
        add(kind, position, count, dim, *(array.ctypes.data for array in written))
    return out / total


def expected(q: Any, keys: Any, values: Any, first: Any, end: Any) -> Any:
    position = np.arange(len(keys))[:, None]
    sees = (position >= first) & (position < end)
    scores = np.where(sees, keys.astype(np.float64) @ q, -np.inf)
    shares = np.exp(scores - scores.max(0))
    return values.astype(np.float64).T @ (shares / shares.sum(0))


def case(dim: int, width: int) -> tuple[Any, ...]:
    random = np.random.default_rng(dim + width)
    q = random.standard_normal((dim, width)).astype(np.float32)
    keys = random.standard_normal((SEEN, dim)).astype(np.float16)
    values = random.standard_normal((SEEN, dim)).astype(np.float16)
    return q, keys, values, random.integers(0, 39, width), random.integers(40, SEEN + 1, width)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dim", [1, 20, 64, 256])
def test_it_is_attention(dim: int, width: int, tiles: Panels) -> None:
    given = case(dim, width)
    np.testing.assert_allclose(attend(tiles, *given), expected(*given), atol=1e-4)


def test_a_query_gets_the_same_beside_others(tiles: Panels) -> None:
    """Bit for bit: in tiles of all widths, and where a block that it does not see comes first."""
    q, keys, values, first, end = case(64, 32)
    first[:] = POSITIONS
    whole = attend(tiles, q, keys, values, first, end)
    for width in WIDTHS[:-1]:
        some = attend(tiles, q[:, :width].copy(), keys, values, first[:width], end[:width])
        np.testing.assert_array_equal(some, whole[:, :width])
    later = attend(tiles, q, keys, values, first, end, start=POSITIONS)
    np.testing.assert_array_equal(later, whole)


def test_scores_may_be_far_apart(tiles: Panels) -> None:
    q, keys, values, first, end = case(20, 8)
    q *= 1000
    found = attend(tiles, q, keys, values, first, end)
    np.testing.assert_allclose(found, expected(q, keys, values, first, end), atol=1e-3)


def test_what_is_no_number_is_of_those_who_see_it(tiles: Panels) -> None:
    q, keys, values, first, end = case(20, 4)
    end[:] = [40, 60, 77, 50]
    before = attend(tiles, q, keys, values, first, end)
    keys[55] = np.nan
    values[55] = np.nan
    found = attend(tiles, q, keys, values, first, end)
    np.testing.assert_array_equal(found[:, [0, 3]], before[:, [0, 3]])
    assert np.isnan(found[:, [1, 2]]).all()


@pytest.mark.slow  # the tiles of each CPU take seconds to compile
@pytest.mark.parametrize("cpu", PLAYED, ids=lambda cpu: f"{cpu.name}{' signed' * cpu.signed}")
def test_it_is_attention_on_other_cpus(cpu: cpus.Instructions) -> None:
    if not binding.get_process_triple().startswith("x86_64"):
        pytest.skip("not on this CPU")
    target = target_of(Chip(PLAYED[cpu], X86, set(), set()))
    played = panels.link(cpu, panels.compile_panels(cpu, target), target)
    for width in WIDTHS:
        given = case(64, width)
        np.testing.assert_allclose(attend(played, *given), expected(*given), atol=1e-4)
