"""Devices and types by their names, on machines of which this one is none."""

from __future__ import annotations

import pytest
import torch

from model.errors import ModelError
from model.precision.devices import choose_device, choose_dtype, free_memory

MPS = torch.device("mps")


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, False, "cuda"), (True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_is_a_gpu_where_there_is_one(
    cuda: bool, mps: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "empty", lambda *shape, device: None)
    assert choose_device("auto") == torch.device(chosen)


@pytest.mark.parametrize("name", ["mps", "cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"cannot be used .*Set the device to 'auto'"):
        choose_device(name)


@pytest.mark.parametrize("new", [True, False])
def test_mps_computes_in_bfloat16_where_its_system_can(
    new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: new)
    assert choose_dtype("auto", MPS) == (torch.bfloat16 if new else torch.float16)
    assert choose_dtype("float32", MPS) == torch.float32


@pytest.mark.parametrize("fast", [True, False])
def test_other_devices_compute_in_bfloat16_where_they_are_fast_in_it(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast)
    on_gpu = choose_dtype("auto", torch.device("cuda"))
    on_cpu = choose_dtype("auto", torch.device("cpu"))
    assert on_gpu == (torch.bfloat16 if fast else torch.float16)
    assert on_cpu == (torch.bfloat16 if fast else torch.float32)


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'int9' is unknown\. Use 'auto', 'float32', 'float16'"):
        choose_dtype("int9", torch.device("cpu"))


def test_memory_that_is_free_on_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 10)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 3)
    assert free_memory(MPS) == 7
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 8))
    assert free_memory(torch.device("cuda", 0)) == 5
