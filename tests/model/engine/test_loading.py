"""Which device an engine's model runs on."""

from __future__ import annotations

import pytest
import torch

from model.engine.loading import device_for


@pytest.mark.parametrize(
    ("name", "cuda", "chosen"),
    [
        ("auto", True, "auto"),
        ("auto", False, "cpu"),
        ("mps", False, "mps"),
        ("cuda:1", False, "cuda:1"),
    ],
)
def test_a_gpu_of_a_mac_is_only_used_where_it_is_named(
    name: str, cuda: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_for(name) == chosen
