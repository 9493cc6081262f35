"""The probe measures what is slow once, and leaves out what is far slower than the best."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model import probe
from model.cpu.kernels import Product, Widened


class Slow(Widened):
    """Takes too long for one row, and must not be asked for more."""

    name = "slow"

    def product(self, x: Tensor, packed: Any) -> Product:
        assert len(x) == 1
        now[0] += 2 * probe.SLOW_S
        return torch.zeros(1, 1), None


class Quick(Widened):
    name = "quick"

    def product(self, x: Tensor, packed: Any) -> Product:
        now[0] += 0.01 * len(x) ** 0.5
        return torch.zeros(1, 1), None


now = [0.0]


@pytest.mark.parametrize("order", [(Slow(), Quick()), (Quick(), Slow())])
def test_a_kernel_that_is_far_slower_is_called_once(
    order: tuple[Widened, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "kernels", lambda: {kernel.name: kernel for kernel in order})
    monkeypatch.setattr(probe.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(probe, "OUT", 8)
    monkeypatch.setattr(probe, "WIDTH", 8)
    before = now[0]
    one, many = probe.on_cpu()
    assert one == pytest.approx(0.01)
    assert many == pytest.approx(0.01 * probe.ROWS**0.5)
    assert now[0] - before < 2 * probe.SLOW_S + 5
