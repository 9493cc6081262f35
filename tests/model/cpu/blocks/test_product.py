"""The product with weights in blocks as machine code: what torch computes, each row as it is alone,
whatever the threads."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from model.cpu.blocks.kernel import BlockProduct, round_activations
from model.cpu.blocks.layout import BY_NAME, FORMATS, Format
from model.cpu.blocks.packing import pack
from model.cpu.measurements import threads
from model.ggml import Quantized
from tests.model.cpu.blocks.matrices import activations, floats_of, matrix

pytestmark = pytest.mark.xdist_group("compiled")  # one process compiles, for all of them

WIDTHS = (32, 96, 256, 1024)
FEW = (1, 2, 3, 4, 5, 6, 7, 12)
MANY = (13, 16, 41)


@pytest.fixture(scope="module")
def fast(code: Path) -> BlockProduct:
    product = BlockProduct()
    product.load(code)
    if not product.ready:
        pytest.skip("not on this CPU")
    return product


def distance(y: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest of a row, by the row's largest number."""
    most = expected.abs().amax(-1).clamp_min(1e-30)
    return float(((y - expected).abs().amax(-1) / most).max())


def cases() -> list[tuple[Format, int]]:
    return [(f, width) for f in FORMATS for width in WIDTHS if width % f.columns == 0]


@pytest.mark.parametrize("format_,width", cases(), ids=lambda case: getattr(case, "name", case))
def test_the_product_is_that_of_the_rounded_numbers(
    format_: Format, width: int, fast: BlockProduct
) -> None:
    parts = matrix([(format_, 71)], width)
    weights = floats_of(parts).double()
    for rows in FEW + MANY:
        x = activations(rows, width)
        expected = round_activations(x).double() @ weights.T
        y = fast.multiply(x, parts, 71)
        assert distance(y.double(), expected) < 2e-6
        assert distance(y, BlockProduct().multiply(x, parts, 71)) < 2e-6


@pytest.mark.parametrize("format_", FORMATS, ids=lambda f: f.name)
def test_other_rows_and_threads_change_no_bit(format_: Format, fast: BlockProduct) -> None:
    """Also where sums are kept for fewer rows than there are."""
    parts = matrix([(format_, 230)], 512)
    x = torch.randn(600, 512, generator=torch.Generator().manual_seed(1))
    expected = fast.multiply(x, parts, 230)
    for count in (1, 2, 3):
        with threads(count):
            assert torch.equal(fast.multiply(x, parts, 230), expected)
            for first, last in ((0, 1), (1, 3), (3, 9), (9, 21), (21, 34), (34, 99), (99, 599)):
                alone = fast.multiply(x[first:last], parts, 230)
                assert torch.equal(alone, expected[first:last])


@pytest.mark.parametrize("rows", [1, 7, 30])
def test_parts_of_several_formats_and_a_bias(rows: int, fast: BlockProduct) -> None:
    parts = matrix([(BY_NAME["q5_0"], 70), (BY_NAME["q6_k"], 1), (BY_NAME["q8_0"], 33)], 256)
    x = activations(rows, 256)
    bias = torch.randn(104)
    y = fast.multiply(x, parts, 104, bias)
    assert distance(y, BlockProduct().multiply(x, parts, 104, bias)) < 2e-6
    assert torch.equal(y, fast.multiply(x, parts, 104) + bias)
    first = 0
    for part in parts:
        alone = fast.multiply(x, [part._replace(first=0)], part.rows)
        assert torch.equal(fast.multiply(x, parts, 104)[:, first : first + part.rows], alone)
        first += part.rows


@pytest.mark.parametrize("width", [1, 31, 33, 250])
def test_widths_that_are_no_whole_blocks(width: int, fast: BlockProduct) -> None:
    """The padding of the weights has numbers that would be seen."""
    whole = -(-width // 32) * 32
    parts = matrix([(BY_NAME["q4_0"], 40)], whole)
    for rows in (1, 5, 20):
        x = activations(rows, width)
        padded = torch.nn.functional.pad(x, (0, whole - width))
        assert torch.equal(fast.multiply(x, parts, 40), fast.multiply(padded, parts, 40))


@pytest.mark.parametrize("rows", [4, 30])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_stays_in_its_row(bad: float, rows: int, fast: BlockProduct) -> None:
    parts = matrix([(BY_NAME["q4_k"], 40)], 256)
    x = activations(rows, 256)
    expected = fast.multiply(x, parts, 40)
    x[2, 77] = bad
    y = fast.multiply(x, parts, 40)
    assert y[2].isnan().all()
    rest = [r for r in range(rows) if r != 2]
    assert torch.equal(y[rest], expected[rest])


def test_activations_are_rounded_as_in_torch(fast: BlockProduct) -> None:
    """Numbers in the middle between two whole ones, too, which a quotient would round otherwise."""
    format_ = BY_NAME["q8_0"]
    ones = torch.full((32, 32), format_.offset, dtype=torch.uint8)
    ones += torch.eye(32, dtype=torch.uint8)
    one = Quantized(ones, torch.ones(32, 1).half(), offset=format_.offset)
    parts = matrix([(format_, 32)], 32)
    parts = [parts[0]._replace(panels=pack(one, format_))]
    x = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    x[7] = 0
    x[7, 0] = 2.341780662536621
    x[7, 21] = -1.0049374103546143  # times 127 / most: -54.5; times 127, then by most: below
    expected = round_activations(x)
    assert torch.equal(fast.multiply(x, parts, 32), expected)
    few = torch.cat([fast.multiply(x[r : r + 10], parts, 32) for r in range(0, 2000, 10)])
    assert torch.equal(few, expected)


def test_callers_do_not_disturb_each_other(fast: BlockProduct) -> None:
    parts = matrix([(BY_NAME["q5_0"], 640)], 960)
    inputs = [activations(rows, 960) for rows in (1, 3, 17)]
    expected = [fast.multiply(x, parts, 640) for x in inputs]
    wrong = []

    def multiply() -> None:
        for n in range(100):
            if not torch.equal(fast.multiply(inputs[n % 3], parts, 640), expected[n % 3]):
                wrong.append(n)

    callers = [threading.Thread(target=multiply) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


@pytest.mark.parametrize("format_", FORMATS, ids=lambda f: f.name)
def test_rows_are_looked_up(format_: Format, fast: BlockProduct) -> None:
    parts = matrix([(format_, 70), (BY_NAME["q8_0"], 40)], 512)
    weights = floats_of(parts)
    ids = torch.tensor([109, 0, 69, 70, 33, 33])
    for product in (fast, BlockProduct()):
        assert torch.equal(product.look_up(ids, parts, 512), weights[ids])
        assert torch.equal(product.look_up(ids[:0], parts, 512), weights[:0])
        for wrong in (-1, 110):
            with pytest.raises(IndexError, match="110 rows"):
                product.look_up(torch.tensor([wrong]), parts, 512)


def test_a_row_that_is_no_whole_block_is_looked_up(fast: BlockProduct) -> None:
    parts = matrix([(BY_NAME["q4_1"], 40)], 96)
    ids = torch.arange(40)
    for width in (65, 90, 96):
        assert torch.equal(fast.look_up(ids, parts, width), floats_of(parts)[:, :width])


def test_views_and_wrong_sizes(fast: BlockProduct) -> None:
    parts = matrix([(BY_NAME["q4_0"], 40)], 64)
    wide = activations(6, 128)
    x = wide[::2, 1::2]
    assert torch.equal(fast.multiply(x, parts, 40), fast.multiply(x.contiguous(), parts, 40))
    with pytest.raises(ValueError, match="do not go with"):
        fast.multiply(torch.ones(1, 64, dtype=torch.float64), parts, 40)
    with pytest.raises(ValueError, match="do not go with"):
        fast.multiply(torch.ones(1, 64), parts, 41)
    with pytest.raises(ValueError, match="a bias"):
        fast.multiply(torch.ones(1, 64), parts, 40, torch.ones(39))
    with pytest.raises(ValueError, match="is not"):
        fast.multiply(torch.ones(1, 65), parts, 40)
    half = [parts[0]._replace(panels=parts[0].panels[:1])]
    with pytest.raises(ValueError, match="is not"):
        fast.multiply(torch.ones(1, 64), half, 40)
