"""bitsandbytes' weights, on the CPU, where it is slow but right; and who may ask for them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model import LoadedModel, load_model, loading
from model.decoder.decoder import Decoder
from model.errors import ModelError
from model.gpu.bitsandbytes_linear import BITS, BitsFactory, BitsLinear
from model.loading import choose_quantization
from tests.conftest import STABLELM, STARCODER2, write_model
from tests.model.families.test_parity import LENGTH, logits_of, random_ids
from tests.model.toys import CPU, load

SHAPES = {
    "starcoder2": STARCODER2,
    "untied": STARCODER2 | {"use_bias": False, "tie_word_embeddings": False},
    "stablelm": STABLELM | {"qk_layernorm": True, "use_parallel_residual": True},
}
# Of random weights of 32 dimensions, where rounding averages out little.
FAR = {"int8": 0.05, "int4": 0.5}


def load_bits(folder: Path, quantization: str, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """As on a GPU, on the CPU: what a GPU would be asked to do is told apart by the device in only
    this place."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(
        loading.Int8Factory,
        "for_cpu",
        lambda config, measured: BitsFactory(CPU, torch.float32, BITS[quantization]),
    )
    monkeypatch.setattr("model.loading.choose_quantization", lambda *_: quantization)
    return load_model(folder, "cpu", "float32", quantization=quantization)


@pytest.mark.parametrize("quantization", BITS)
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_logits_are_close_to_float32(
    config: dict[str, Any], quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path, config)
    ids = random_ids(LENGTH)
    expected = logits_of(load(folder), ids)
    m = load_bits(folder, quantization, monkeypatch)
    found = logits_of(m, ids)
    assert float((found - expected).norm() / expected.norm()) < FAR[quantization]
    assert m.decoder.scheme == f"bitsandbytes {BITS[quantization]} bits, float32"
    with torch.inference_mode():
        cache = m.decoder.new_cache()
        steps = [
            m.decoder(torch.tensor([ids[a:b]]), cache=cache).logits[0]
            for a, b in ((0, 20), (20, 21), (21, LENGTH))
        ]
    torch.testing.assert_close(torch.cat(steps), found, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("quantization", BITS)
def test_the_matrices_have_so_many_bits(
    quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = load_bits(write_model(tmp_path, STARCODER2), quantization, monkeypatch)
    matrices = [module for module in m.decoder.modules() if isinstance(module, BitsLinear)]
    assert len(matrices) == 4 * m.decoder.config.num_layers
    floats = dict(m.decoder.named_parameters())
    assert not [name for name, p in floats.items() if p.dim() == 2 and not name.startswith("embed")]
    parameters = m.folder.parameters - sum(p.numel() for p in floats.values())
    plain = parameters * BITS[quantization] / 8
    assert (
        plain < sum(matrix.nbytes for matrix in matrices) < plain * 1.4
    )  # small matrices: the scales weigh much


def test_rows_come_in_any_order_and_pieces() -> None:
    pytest.importorskip("bitsandbytes")
    whole, pieces = (
        BitsLinear(64, 96, False, 4, BitsFactory(CPU, torch.float32, 4)) for _ in range(2)
    )
    rows = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
    whole.fill(0, rows)
    for first, last in ((80, 96), (0, 80)):
        pieces.fill(first, rows[first:last])
    whole.finish()
    pieces.finish()
    assert torch.equal(whole.packed, pieces.packed)


def test_no_room_on_the_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    linear = BitsLinear(64, 96, False, 8, BitsFactory(CPU, torch.float32, 8))
    linear.fill(0, torch.zeros(96, 64))

    def full(rows: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr(linear, "_quantize", full)
    with pytest.raises(
        ModelError, match=r"8 bits do not fit .* 2 GiB\)\. Set the quantization to 'int4'"
    ):
        linear.finish()


@pytest.mark.parametrize(
    ("quantization", "dtype", "device", "chosen"),
    [
        ("auto", "auto", "cpu", "int8"),
        ("auto", "float32", "cpu", None),
        ("auto", "auto", "cuda", None),
        ("none", "auto", "cuda", None),
        (None, "auto", "cpu", None),
        ("int8", "auto", "cpu", "int8"),
        ("int8", "bfloat16", "cuda", "int8"),
        ("int4", "auto", "cuda", "int4"),
    ],
)
def test_what_is_asked_for_on_each_device(
    quantization: str | None,
    dtype: str,
    device: str,
    chosen: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("model.loading.library", lambda: None)
    assert choose_quantization(quantization, dtype, torch.device(device)) == chosen


@pytest.mark.parametrize(
    ("quantization", "device", "remedy"),
    [
        ("int4", "cpu", "not on a CPU. Set the quantization to 'int8'."),
        ("int8", "mps", "do not run on mps. Set the quantization to 'none'."),
        ("int4", "mps", "do not run on mps. Set the quantization to 'none'."),
        ("int3", "cuda", "Use 'auto', 'int8', 'int4' or 'none'."),
    ],
)
def test_what_a_device_does_not_have_is_refused(
    quantization: str, device: str, remedy: str
) -> None:
    with pytest.raises(ModelError) as error:
        choose_quantization(quantization, "auto", torch.device(device))
    assert str(error.value).endswith(remedy)


def test_without_bitsandbytes_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(
        ModelError,
        match=r"No module named 'bitsandbytes'\)\. Install it \(pip install 'fimls\[gpu\]'",
    ):
        choose_quantization("int8", "auto", torch.device("cuda"))


def test_a_decoder_of_floats_needs_no_bitsandbytes(
    starcoder2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert isinstance(load(starcoder2_folder).decoder, Decoder)
