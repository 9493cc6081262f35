"""bitsandbytes' weights on the CPU, where they are slow but right."""

from __future__ import annotations

import copy
import importlib
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model import load_model
from model.decoder.decoder import Decoder
from model.errors import ModelError
from model.precision.bitsandbytes_linear import KINDS, BitsFactory, BitsLinear
from tests.conftest import STABLELM, STARCODER2, write_model
from tests.model.export.exports import exported, toy
from tests.model.families.test_parity import LENGTH, logits_of, random_ids
from tests.model.toys import CPU, load

WIDE = {"hidden_size": 128, "intermediate_size": 256}  # rounding averages out a little
SHAPES = {
    "starcoder2": STARCODER2,
    "untied": STARCODER2 | {"use_bias": False, "tie_word_embeddings": False},
    "stablelm": STABLELM | {"qk_layernorm": True, "use_parallel_residual": True},
}
BYTES = {"llm.int8": 1, "nf4": 1 / 2 + 4 / 64, "nf4-double": 1 / 2 + 1 / 64}  # a weight
FAR = {"llm.int8": 0.04, "nf4": 0.3, "nf4-double": 0.3}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_logits_are_close_to_float32(config: dict[str, Any], kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path, config | WIDE, scale=0.08)
    ids = random_ids(LENGTH)
    expected = logits_of(load(folder), ids)
    m = load_model(folder, "cpu", "float32", kind)
    found = logits_of(m, ids)
    assert float((found - expected).norm() / expected.norm()) < FAR[kind]
    assert m.decoder.scheme == f"{kind} by bitsandbytes, float32"
    with torch.inference_mode():
        cache = m.decoder.new_cache()
        steps = [
            m.decoder(torch.tensor([ids[a:b]]), cache=cache).logits[0]
            for a, b in ((0, 20), (20, 21), (21, LENGTH))
        ]
    torch.testing.assert_close(torch.cat(steps), found, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_between_the_matrices_any_float_will_do(
    kind: str, dtype: str, starcoder2_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exact = logits_of(load_model(starcoder2_folder, "cpu", "float32", kind), random_ids(LENGTH))
    m = load_model(starcoder2_folder, "cpu", dtype, kind)
    assert m.decoder.dtype == getattr(torch, dtype)
    found = logits_of(m, random_ids(LENGTH)).float()
    assert float((found - exact).norm() / exact.norm()) < 0.1
    assert len(list(m.generate(random_ids(LENGTH), max_new_tokens=5))) <= 5
    assert not [r for r in caplog.records if r.name.startswith("bitsandbytes")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_matrices_of_layers_have_so_many_bits(kind: str, tmp_path: Path) -> None:
    config = STARCODER2 | {"tie_word_embeddings": False}
    m = load_model(write_model(tmp_path, config), "cpu", "float32", kind)
    matrices = [module for module in m.decoder.modules() if isinstance(module, BitsLinear)]
    assert len(matrices) == 4 * m.decoder.config.num_layers
    floats = dict(m.decoder.named_parameters())
    large = [name for name, p in floats.items() if p.dim() == 2]
    assert large == ["embed_tokens.weight", "head.weight"]
    parameters = m.folder.parameters - sum(p.numel() for p in floats.values())
    plain = parameters * BYTES[kind]
    # Small matrices: a row's scale, and the scales' own, weigh much.
    assert plain <= sum(matrix.nbytes for matrix in matrices) < plain * 1.4


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_go_through_to_the_inputs(kind: str) -> None:
    linear = BitsLinear(64, 96, True, BitsFactory(CPU, torch.float32, kind))
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(96, 64, generator=generator)
    linear.fill(0, weights)
    linear.finish()
    assert linear.bias is not None
    x = torch.randn(2, 5, 64, generator=generator, requires_grad=True)
    upper = torch.randn(2, 5, 96, generator=generator)
    linear(x).backward(upper)
    assert x.grad is not None and linear.bias.grad is not None
    expected = upper @ weights
    assert float((x.grad - expected).norm() / expected.norm()) < (
        0.01 if kind == "llm.int8" else 0.12
    )
    torch.testing.assert_close(linear.bias.grad, upper.sum((0, 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros_are_zeros(kind: str) -> None:
    linear = BitsLinear(64, 96, False, BitsFactory(CPU, torch.float32, kind))
    linear.fill(0, torch.zeros(96, 64))
    linear.finish()
    assert torch.equal(linear(torch.ones(3, 64)), torch.zeros(3, 96))
    assert torch.equal(linear(torch.zeros(1, 64)), torch.zeros(1, 96))


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_can_be_copied_cast_and_moved(kind: str, starcoder2_folder: Path) -> None:
    decoder = load_model(starcoder2_folder, "cpu", "float32", kind).decoder
    ids = torch.tensor([random_ids(LENGTH)])
    with torch.inference_mode():
        expected = decoder(ids).logits
        assert torch.equal(copy.deepcopy(decoder)(ids).logits, expected)
        halves = copy.deepcopy(decoder).to(torch.bfloat16)(ids).logits
    assert halves.dtype == torch.bfloat16
    assert float((halves.float() - expected).norm() / expected.norm()) < 0.1
    moved = decoder.to("meta")
    tensors = [module for module in moved.modules() if isinstance(module, BitsLinear)]
    assert {scales.device.type for m in tensors for scales in (m.packed, scales_of(m))} == {"meta"}


def scales_of(matrix: BitsLinear) -> torch.Tensor:
    state = matrix._state
    found = state.SCB if hasattr(state, "SCB") else state.absmax
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_gguf_file_has_the_same_bits_as_its_folder(kind: str, tmp_path: Path) -> None:
    folder = toy(tmp_path, "qwen2")
    (file,) = exported(folder, tmp_path, "gguf").glob("*.gguf")
    ids = random_ids(LENGTH)
    expected = logits_of(load_model(folder.path, "cpu", "float32", kind), ids)
    assert torch.equal(logits_of(load_model(file, "cpu", "float32", kind), ids), expected)


def test_rows_come_in_any_order_and_pieces() -> None:
    whole, pieces = (
        BitsLinear(64, 96, False, BitsFactory(CPU, torch.float32, "nf4")) for _ in range(2)
    )
    rows = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
    whole.fill(0, rows)
    for first, last in ((80, 96), (0, 80)):
        pieces.fill(first, rows[first:last])
    whole.finish()
    pieces.finish()
    assert torch.equal(whole.packed, pieces.packed)


def test_no_room_on_the_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = BitsLinear(64, 96, False, BitsFactory(CPU, torch.float32, "llm.int8"))
    linear.fill(0, torch.zeros(96, 64))

    def full(rows: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

    monkeypatch.setattr(linear, "_quantize", full)
    with pytest.raises(
        ModelError, match=r"int8 weights do not fit .* 2 GiB\)\. Set the quantization to 'int4'"
    ):
        linear.finish()


def test_without_bitsandbytes_the_remedy_is_said(
    starcoder2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(
        ModelError,
        match=r"No module named 'bitsandbytes'\)\. Install it \(pip install 'fimls\[gpu\]'",
    ):
        load_model(starcoder2_folder, "cpu", quantization="nf4")


def test_a_decoder_of_floats_needs_no_bitsandbytes(
    starcoder2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert isinstance(load(starcoder2_folder).decoder, Decoder)


def test_users_see_nothing_of_the_library(starcoder2_folder: Path) -> None:
    """In a process of its own: the library speaks when it is imported first."""
    program = f"""
from model import load_model
from model.heads import CausalLM
from model.heads.lora import add_lora
add_lora(CausalLM.load({str(starcoder2_folder)!r}, device="cpu"))
for quantization in {KINDS!r}:
    m = load_model({str(starcoder2_folder)!r}, "cpu", "bfloat16", quantization)
    list(m.generate([5, 6, 7], max_new_tokens=2))
print("done")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("done\n", "")


def test_a_level_that_somebody_has_set_for_the_library_stays(
    starcoder2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("bitsandbytes")
    monkeypatch.setattr(logger, "level", logging.INFO)
    load_model(starcoder2_folder, "cpu", quantization="nf4")
    assert logger.level == logging.INFO
