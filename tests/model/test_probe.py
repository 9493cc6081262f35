"""The probe takes the best kernel for one row and the best for many."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model import probe
from model.cpu.kernels import Product, Widened

now = [0.0]


class Steady(Widened):
    """Takes the same time for any number of rows."""

    name = "steady"

    def product(self, x: Tensor, packed: Any) -> Product:
        now[0] += 0.05
        return torch.zeros(1, 1), None


class Quick(Widened):
    name = "quick"

    def product(self, x: Tensor, packed: Any) -> Product:
        now[0] += 0.01 * len(x) ** 0.5
        return torch.zeros(1, 1), None


def test_each_figure_is_that_of_its_best_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {kernel.name: kernel for kernel in (Steady(), Quick())}
    monkeypatch.setattr(probe, "kernels", lambda: found)
    monkeypatch.setattr(probe.PRODUCT, "_code", None)  # no machine code
    monkeypatch.setattr(probe.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(probe, "OUT", 8)
    monkeypatch.setattr(probe, "WIDTH", 8)
    one, many = probe.on_cpu()
    assert one == pytest.approx(0.01)
    assert many == pytest.approx(0.05)
