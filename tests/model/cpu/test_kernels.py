"""The kernels for int8 weights: right, each row by itself, chosen by what was measured."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from model.cpu import kernel_choice, kernels, measurements
from model.cpu.kernel_choice import Plan, by_thumb, choose, make_plan
from model.cpu.kernels import FEW, MANY, ROWS, Kernel

SHAPES = {(96, 64): 2, (64, 96): 1}


@pytest.fixture(autouse=True)
def at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else the machine does: what is measured is not looked at here."""
    monkeypatch.setattr(measurements, "is_quiet", lambda: True)


def weights(out: int = 96, width: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    q = torch.randint(-127, 128, (out, width), generator=generator, dtype=torch.int8)
    return q, torch.rand(out, generator=generator) + 0.1


def result(kernel: Kernel, packed: Any, x: torch.Tensor) -> torch.Tensor:
    y, factor = kernel.product(x.to(kernel.takes), packed)
    return y.float() if factor is None else y * factor


@pytest.mark.parametrize("width", [64, 24])
@pytest.mark.parametrize("name", kernels.kernels())
def test_a_kernel_multiplies(name: str, width: int) -> None:
    q, scale = weights(width=width)
    kernel = kernels.kernels()[name]
    x = (
        torch.randn(40, width, generator=torch.Generator().manual_seed(4))
        * torch.logspace(-3, 3, 40)[:, None]
    )
    wanted = x @ (q * scale[:, None]).T
    got = result(kernel, kernel.pack(q, scale), x)
    assert (((got - wanted).norm(dim=-1) / wanted.norm(dim=-1)) < 0.03).all()


@pytest.mark.parametrize("name", kernels.kernels())
def test_other_rows_change_no_bit_of_a_row(name: str) -> None:
    q, scale = weights()
    kernel = kernels.kernels()[name]
    packed = kernel.pack(q, scale)
    x = torch.randn(33, 64, generator=torch.Generator().manual_seed(5))
    x[7] *= 1000
    together = result(kernel, packed, x)
    alone = torch.cat([result(kernel, packed, row[None]) for row in x])
    if name != "widened":  # a float32 product: the order of its sums follows the number of rows
        assert torch.equal(together, alone)
    torch.testing.assert_close(together, alone)


def test_rows_of_zeros_stay_zeros() -> None:
    q, scale = weights()
    for kernel in kernels.kernels().values():
        assert not result(kernel, kernel.pack(q, scale), torch.zeros(3, 64)).any()


def test_one_kernel_at_least_takes_any_number_of_rows() -> None:
    assert any(kernel.counts == ROWS for kernel in kernels.kernels().values())


class Overflowing(kernels.Widened):
    """Sums that wrap at 16 bits, as on CPUs without VNNI."""

    def product(self, x: torch.Tensor, packed: Any) -> kernels.Product:
        q, scale = packed
        y = (x / x.abs().amax(-1, True).clamp_min(1e-9) * 127).round() @ q.float().T
        return y.clamp(-32768, 32767) / 127 * x.abs().amax(-1, True), scale


class Missing(kernels.Widened):
    def pack(self, q: torch.Tensor, scale: torch.Tensor) -> Any:
        raise RuntimeError("Didn't find engine for operation")


def test_a_kernel_that_overflows_or_is_missing_is_not_used() -> None:
    assert not kernels.is_right(Overflowing())
    assert not kernels.is_right(Missing())
    assert kernels.is_right(kernels.Widened())


def times(**one_row_to_many: tuple[float, ...]) -> dict[str, Mapping[int, float]]:
    return {name: dict(zip(ROWS, row, strict=False)) for name, row in one_row_to_many.items()}


def test_the_plan_takes_what_is_fastest_for_few_and_for_many_rows() -> None:
    measured = times(rows=(1, 1.1, 2, 4, 8), whole=(5, 5, 5, 5, 6, 40), other=(4, 6, 8, 9, 9, 60))
    plan = choose(measured, small=True)
    assert (plan.many, plan.few, plan.few_rows) == ("whole", "rows", 8)


def test_large_weights_are_kept_once() -> None:
    measured = times(rows=(1, 1.1, 2, 4, 8), whole=(5, 5, 5, 5, 6, 40), other=(4, 6, 8, 9, 9, 60))
    plan = choose(measured, small=False)
    assert plan.many == plan.few == "whole"
    assert plan.few_rows == FEW[-1]


def test_large_weights_are_mapped_where_that_costs_little() -> None:
    measured = times(whole=(5, 5, 5, 5, 6, 40), other=(5.5, 5.5, 5.5, 5.5, 6.6, 44))
    assert choose(measured, small=False).many == "whole"
    assert choose(measured, small=False, mappable=["other"]).many == "other"
    slow = times(whole=(5, 5, 5, 5, 6, 40), other=(7, 7, 7, 7, 9, 60))
    assert choose(slow, small=False, mappable=["other"]).many == "whole"


def test_a_prefill_goes_in_pieces_that_cost_no_more() -> None:
    bound_by_sums = times(whole=(5, 5, 6, 8, 15, 118))
    bound_by_memory = times(whole=(5, 5, 5, 5, 6, 20))
    assert choose(bound_by_sums, small=False).prefill_chunk == 32
    assert choose(bound_by_memory, small=False).prefill_chunk == MANY


def test_a_second_form_has_to_be_clearly_faster() -> None:
    plan = choose(times(rows=(4.5, 5, 8, 9, 9), whole=(5, 5, 5, 5, 6, 40)), small=True)
    assert plan.few == plan.many == "whole"


def test_what_was_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_plan(SHAPES, tmp_path)
    monkeypatch.setattr(kernel_choice, "product_us", lambda shape: pytest.fail("measured again"))
    assert make_plan(SHAPES, tmp_path) == first
    assert (tmp_path / "kernels.json").stat().st_mode & 0o777 == 0o600


GARBAGE = {
    "empty": b"",
    "no JSON": b"\xff\x00garbage",
    "a list": b"[]",
    "nesting": b"[" * 100_000,
    "a machine that is none": json.dumps({"PDP-11": 11}).encode(),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_a_file_in_doubt_is_measured_over(garbage: bytes, tmp_path: Path) -> None:
    (tmp_path / "kernels.json").write_bytes(garbage)
    plan = make_plan(SHAPES, tmp_path)
    assert isinstance(plan, Plan)
    assert len(json.loads((tmp_path / "kernels.json").read_bytes())) == 1


def test_other_machines_of_a_shared_home_keep_their_figures(tmp_path: Path) -> None:
    (tmp_path / "kernels.json").write_text(json.dumps({"PDP-11": {"1x1": {}}}))
    make_plan(SHAPES, tmp_path)
    assert len(json.loads((tmp_path / "kernels.json").read_bytes())) == 2


@pytest.mark.parametrize("wrong", [0, -1, "fast", None, float("inf"), float("nan")])
def test_an_impossible_time_is_measured_over(wrong: object, tmp_path: Path) -> None:
    make_plan(SHAPES, tmp_path)
    file = tmp_path / "kernels.json"
    content = json.loads(file.read_text())
    for by_shape in content.values():
        for by_kernel in by_shape["96x64"].values():
            by_kernel["1"] = wrong
    file.write_text(json.dumps(content))
    make_plan(SHAPES, tmp_path)
    mended = json.loads(file.read_text())
    assert all(
        isinstance(t, float) and 0 < t < 1e9
        for shapes in mended.values()
        for times in shapes["96x64"].values()
        for t in times.values()
    )


def test_a_folder_that_cannot_be_written_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert isinstance(make_plan(SHAPES, tmp_path / "file" / "below"), Plan)


def test_a_busy_machine_is_judged_by_rules_of_thumb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurements, "is_quiet", lambda: False)
    assert make_plan(SHAPES, tmp_path) == by_thumb(small=True)
    assert not list(tmp_path.iterdir())  # what was not measured is not written down


def test_rules_of_thumb_name_kernels_that_are_here() -> None:
    for small in (False, True):
        plan = by_thumb(small=small)
        assert plan.names <= kernels.kernels().keys()
        assert kernels.kernels()[plan.many].counts[-1] == MANY


class Reference(kernels.Widened):
    """Right, and a thousand times slower, as reference code is."""

    name = "reference"

    def product(self, inputs: torch.Tensor, packed: Any) -> kernels.Product:
        time.sleep(0.05)
        return super().product(inputs, packed)


def test_reference_code_is_no_kernel() -> None:
    assert kernels.is_right(Reference())
    assert kernels.is_reference_code(Reference())
    assert not any(kernels.is_reference_code(kernel) for kernel in kernels.kernels().values())
