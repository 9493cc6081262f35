"""torch's kernels for int8 weights: right, and each row by itself."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from model.cpu import kernels
from model.cpu.kernels import Kernel


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


def test_a_plan_names_kernels_that_are_here() -> None:
    for small in (False, True):
        plan = kernels.make_plan(small=small)
        assert plan.names <= kernels.kernels().keys()
        assert plan.many != "int8pack"
        assert small or plan.few == plan.many or kernels.kernels()[plan.many].raw


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
