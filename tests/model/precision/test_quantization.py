"""Which kind of weights is chosen: by name, or by the memory that is free."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from model import load_model
from model.errors import ModelError
from model.loading import needs_of
from model.precision.quantization import (
    QUANTIZATIONS,
    ROOM,
    Choice,
    Needs,
    choose_quantization,
)
from model.weights.checkpoint import Checkpoint

GB = 10**9
SEVEN: dict[str | None, float] = {
    None: 14,
    "int8": 7,
    "llm.int8": 7.5,
    "nf4": 4.8,
    "nf4-double": 4.4,
}


def choose(
    quantization: str | None,
    device: str = "cpu",
    dtype: str = "auto",
    free: float | None = None,
    sizes: Mapping[str | None, float] = SEVEN,
) -> Choice:
    exact = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    room = None if free is None else int(free * GB)
    needs = Needs("m", {kind: int(size * GB) for kind, size in sizes.items()})
    return choose_quantization(quantization, dtype, exact, torch.device(device), needs, room)


@pytest.mark.parametrize(
    ("quantization", "dtype", "device", "kind"),
    [
        ("auto", "auto", "cpu", "int8"),
        ("auto", "float32", "cpu", None),
        ("auto", "auto", "cuda", None),
        ("auto", "auto", "mps", None),
        ("none", "auto", "cuda", None),
        ("none", "float16", "mps", None),
        (None, "auto", "cpu", None),
        ("int8", "auto", "cpu", "int8"),
        ("int8", "bfloat16", "cuda", "llm.int8"),
        ("int4", "auto", "cuda", "nf4-double"),
        ("int4", "bfloat16", "cpu", "nf4-double"),
        ("nf4", "float16", "cpu", "nf4"),
        ("nf4", "auto", "cuda", "nf4"),
        ("llm.int8", "bfloat16", "cpu", "llm.int8"),
    ],
)
def test_what_is_asked_for_on_each_device(
    quantization: str | None, dtype: str, device: str, kind: str | None
) -> None:
    assert choose(quantization, device, dtype).kind == kind


@pytest.mark.parametrize(
    ("quantization", "dtype", "free", "stored", "kind"),
    [
        ("auto", "auto", 20, True, "blocks"),
        ("auto", "auto", 20, False, "int8"),
        ("auto", "auto", 4.5, True, "int4"),
        ("auto", "auto", 6, False, "int4"),
        ("auto", "float32", 40, True, None),
        ("auto", "float32", 6, True, "int4"),
        ("int8", "auto", 20, True, "int8"),
        ("int4", "auto", 20, True, "int4"),
        ("int4", "float32", 20, False, "int4"),
        ("int4", "bfloat16", 20, True, "nf4-double"),
        ("nf4-double", "auto", 20, True, "nf4-double"),
    ],
)
def test_what_a_cpu_has_that_multiplies_in_blocks(
    quantization: str, dtype: str, free: float, stored: bool, kind: str | None
) -> None:
    """stored: the file holds blocks of its own."""
    sizes = SEVEN | {"int4": 4} | ({"blocks": 5} if stored else {})
    choice = choose(quantization, "cpu", dtype, free, sizes)
    assert choice.kind == kind
    if kind == "blocks":
        assert choice.reason.startswith("the file's own blocks, which need 5.0 GB of the 20.0 GB")


def test_a_kind_without_a_name_is_not_named_as_a_remedy() -> None:
    sizes = SEVEN | {"int4": 4, "blocks": 5}
    with pytest.raises(ModelError, match="Set the quantization to 'auto', use a smaller"):
        choose("int8", "cpu", "auto", 6, sizes)
    assert choose("auto", "cpu", "auto", 6, sizes).kind == "blocks"


@pytest.mark.parametrize(
    ("quantization", "device", "dtype", "remedy"),
    [
        ("int8", "mps", "auto", "do not run on mps. Set the quantization to 'none'."),
        ("nf4", "mps", "auto", "do not run on mps. Set the quantization to 'none'."),
        ("int3", "cuda", "auto", f"Use one of {', '.join(map(repr, QUANTIZATIONS))}."),
        (
            "int8",
            "cpu",
            "bfloat16",
            "Set the dtype to 'auto', or the quantization to 'llm.int8'.",
        ),
    ],
)
def test_what_a_device_does_not_have_is_refused(
    quantization: str, device: str, dtype: str, remedy: str
) -> None:
    with pytest.raises(ModelError) as error:
        choose(quantization, device, dtype)
    assert str(error.value).endswith(remedy)


@pytest.mark.parametrize(
    ("device", "dtype", "free", "kind", "reason"),
    [
        ("cuda", "auto", 80, None, "bfloat16, which need 14.0 GB of the 80.0 GB of memory that"),
        (
            "cuda",
            "auto",
            15,  # the weights alone would fit
            "llm.int8",
            "llm.int8, which need 7.5 GB of the 15.0 GB of memory that cuda has free; bfloat16 "
            "(14.0 GB) would not fit",
        ),
        (
            "cuda",
            "float32",
            6,
            "nf4-double",
            "float32 (14.0 GB), llm.int8 (7.5 GB) would not fit",
        ),
        ("cpu", "auto", 20, "int8", "int8, which need 7.0 GB of the 20.0 GB"),
        (
            "cpu",
            "auto",
            6,
            "nf4-double",
            "int8 (7.0 GB) would not fit. On a CPU these are slow: a smaller model in int8",
        ),
        ("cpu", "float32", 40, None, "float32, which need 14.0 GB"),
        ("cpu", "float32", 10, "int8", "float32 (14.0 GB) would not fit"),
        ("cpu", "bfloat16", 10, "llm.int8", "bfloat16 (14.0 GB) would not fit"),
        ("cpu", "auto", None, "int8", "int8, which need 7.0 GB"),
        ("mps", "auto", 14.5, None, "bfloat16, which need 14.0 GB"),
    ],
)
def test_auto_takes_the_first_kind_that_fits_and_says_why(
    device: str, dtype: str, free: float | None, kind: str | None, reason: str
) -> None:
    choice = choose("auto", device, dtype, free)
    assert choice.kind == kind
    assert reason in choice.reason


def test_without_bitsandbytes_a_cpu_has_floats_and_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose("auto", free=7.1).kind == "int8"
    with pytest.raises(ModelError, match=r"bitsandbytes .*pip install 'fimls\[gpu\]'"):
        choose("auto", free=6)
    with pytest.raises(ModelError, match=r"bitsandbytes .*pip install 'fimls\[gpu\]'"):
        choose("auto", "cuda", free=10)


@pytest.mark.parametrize("device", ["cuda", "cpu", "mps"])
def test_what_fits_in_no_way_is_refused_with_all_figures(device: str) -> None:
    with pytest.raises(ModelError) as error:
        choose("auto", device, "bfloat16", free=3)
    found = str(error.value)
    assert "14.0 GB as bfloat16" in found
    assert device == "mps" or "7.5 GB as llm.int8, 4.4 GB as nf4-double" in found
    assert f"but 3.0 GB of the memory of {device} are free. Use a smaller model" in found


def test_a_model_that_is_not_native_has_floats_only() -> None:
    with pytest.raises(ModelError, match=r"need 14\.0 GB as bfloat16, but"):
        choose("auto", "cuda", free=10, sizes={None: 14})
    assert choose("auto", free=20, sizes={None: 14}).kind is None


def test_a_loaded_model_says_what_it_has_and_why(
    starcoder2_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    m = load_model(starcoder2_folder, "cpu", quantization="auto")
    assert m.precision.startswith("int8, which need 0.0 GB of the ")
    assert f"{starcoder2_folder}: {m.precision}" in caplog.text
    assert load_model(starcoder2_folder, "cpu", "float32").precision == "float32 as asked for"
    needs = needs_of(m.folder, Checkpoint.open(m.folder), torch.float16).nbytes["llm.int8"]
    monkeypatch.setattr("model.loading.free_memory", lambda device: needs / ROOM + 1)
    m = load_model(starcoder2_folder, "cpu", "float16", quantization="auto")
    assert m.decoder.scheme == "llm.int8 by bitsandbytes, float16"
    assert "float16 (0.0 GB) would not fit" in m.precision
