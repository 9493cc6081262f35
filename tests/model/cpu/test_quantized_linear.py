"""int8 weights: close to the floats they stand for, the same along every path, loaded within their
memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model import LoadedModel, load_model
from model.cpu import kernels
from model.cpu.kernels import Plan
from model.cpu.quantized_linear import Int8Embedding, Int8Linear, quantize_rows
from model.cpu.torch_step import TorchStep
from model.errors import ModelError
from model.precision import devices
from tests.conftest import (
    GEMMA,
    GPT_BIGCODE,
    GRANITE,
    LLAMA,
    QWEN2,
    QWEN3,
    STABLELM,
    STARCODER2,
    write_model,
)
from tests.model.families.test_parity import CASES, LENGTH, WINDOW, logits_of, random_ids
from tests.model.toys import load

INTEGER = next(name for name in kernels.kernels() if name != "int8pack")  # for any number of rows
PLANS = {"one kernel": Plan(INTEGER, INTEGER, 16), "two kernels": Plan(INTEGER, "int8pack", 8)}
EXACT = INTEGER != "widened"


def load_int8(folder: Path, monkeypatch: pytest.MonkeyPatch, plan: Plan) -> LoadedModel:
    monkeypatch.setattr("model.cpu.quantized_linear.make_plan", lambda small: plan)
    return load_model(folder, "cpu", quantization="int8")


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("config", CASES)
def test_int8_is_close_to_float32(
    config: dict[str, Any], plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path, config)
    ids = random_ids(LENGTH)
    expected = logits_of(load(folder), ids)
    m = load_int8(folder, monkeypatch, plan)
    assert (
        distance(logits_of(m, ids), expected) < 0.12
    )  # random weights of 32 dimensions: rounding averages out little
    # The step, from one row to several, after a prefill.
    with torch.inference_mode():
        cache = m.decoder.new_cache()
        m.decoder(torch.tensor([ids[:20]]), cache=cache)
        logits = [
            m.decoder(torch.tensor([ids[a:b]]), cache=cache).logits[0]
            for a, b in ((20, 21), (21, 24), (24, 32), (32, LENGTH))
        ]
    assert distance(torch.cat(logits), expected[20:]) < 0.12


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize(
    "config",
    [
        STARCODER2,
        STARCODER2 | {"sliding_window": WINDOW},
        STABLELM | {"qk_layernorm": True},
        QWEN2,
        LLAMA | {"head_dim": 16},
        QWEN3,
        GRANITE,
        GEMMA,
        GPT_BIGCODE,
    ],
    ids=[
        "starcoder2",
        "window",
        "stablelm",
        "qwen2",
        "llama",
        "qwen3",
        "granite",
        "gemma",
        "gpt_bigcode",
    ],
)
def test_a_row_of_a_step_comes_out_as_it_does_alone(
    config: dict[str, Any], plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, in logits and cache: speculative decoding then says what plain decoding says."""
    m = load_int8(write_model(tmp_path, config), monkeypatch, plan)
    ids = random_ids(LENGTH)

    @torch.inference_mode()
    def in_steps_of(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        cache = m.decoder.new_cache()
        logits = [
            m.decoder(torch.tensor([ids[i : i + rows]]), cache=cache).logits[0]
            for i in range(0, LENGTH, rows)
        ]
        return torch.cat(logits), torch.stack(
            (cache.keys[:, :, :LENGTH], cache.values[:, :, :LENGTH])
        )

    logits, cached = in_steps_of(1)
    for rows in range(2, plan.few_rows + 1):
        for ours, alone in zip(in_steps_of(rows), (logits, cached), strict=True):
            if EXACT or plan.few == "int8pack":
                assert torch.equal(ours, alone)
            torch.testing.assert_close(ours, alone)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_warm_cache_gives_nearly_what_a_cold_one_gives(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every split. Not bit for bit: attention over many positions sums floats in another order
    than a step, and an activation that then rounds to the other side is off by one in 127; two
    kernels round activations differently."""
    m = load_int8(write_model(tmp_path, STARCODER2), monkeypatch, plan)
    ids = random_ids(LENGTH)
    cold = logits_of(m, ids)
    for split in range(1, LENGTH):
        with torch.inference_mode():
            cache = m.decoder.new_cache()
            m.decoder(torch.tensor([ids[:split]]), cache=cache)
            warm = m.decoder(torch.tensor([ids[split:]]), cache=cache).logits[0]
        assert distance(warm, cold[split:]) < 0.1


def test_float32_and_int8_keep_their_promise_of_weights() -> None:
    w = (
        torch.randn(50, 70, generator=torch.Generator().manual_seed(1))
        * torch.logspace(-4, 4, 50)[:, None]
    )
    w[7] = 0
    rows, scale = quantize_rows(w)
    assert ((rows * scale[:, None] - w).abs() <= scale[:, None] * 0.5001).all()
    again, scale_again = quantize_rows(
        rows * scale[:, None]
    )  # as a checkpoint of int8 rows is read
    assert torch.equal(again, rows)
    torch.testing.assert_close(scale_again[w.any(-1)], scale[w.any(-1)])


def test_a_packed_matrix_is_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path, STARCODER2)
    for plan in PLANS.values():
        m = load_int8(folder, monkeypatch, plan)
        raw = any(kernels.kernels()[name].raw for name in plan.names)
        for module in m.decoder.layers.modules():
            if isinstance(module, Int8Linear):
                assert bool(module.matrix.numel()) == raw
        assert isinstance(m.decoder.embed_tokens, Int8Embedding)
        assert m.decoder.embed_tokens.linear.matrix.numel()  # embeddings are read by rows


def test_a_step_multiplies_with_all_matrices(tmp_path: Path) -> None:
    for config in (STARCODER2, STABLELM, QWEN2, LLAMA | {"head_dim": 16}):
        m = load(write_model(tmp_path / config["model_type"], config))
        linears = [
            p
            for n, p in m.decoder.named_parameters()
            if p.dim() == 2 and "embed" not in n and "_norm" not in n
        ]
        head = m.decoder.embed_tokens.weight.numel() if m.decoder.config.tie_embeddings else 0
        assert m.decoder.config.step_weights == sum(p.numel() for p in linears) + head


def test_a_small_models_step_takes_one_thread_and_tells_its_costs(tmp_path: Path) -> None:
    decoder = load_model(write_model(tmp_path, STARCODER2), "cpu", quantization="int8").decoder
    assert isinstance(decoder.step, TorchStep)
    assert decoder.step.threads == 1
    assert decoder.row_costs is not None
    assert decoder.row_costs[1] == 1
    assert max(decoder.row_costs) == decoder.step.max_rows


def test_quantization_is_left_to_us_or_asked_for(tmp_path: Path) -> None:
    folder = write_model(tmp_path, STARCODER2)
    assert load_model(folder, "cpu", quantization="auto").decoder.step is not None
    assert load_model(folder, "cpu", quantization="none").decoder.step is None
    assert load_model(folder, "cpu").decoder.step is None
    assert load_model(folder, "cpu", "float32", quantization="auto").decoder.step is None
    with pytest.raises(ModelError, match=r"unknown\. Use one of 'auto'"):
        load_model(folder, "cpu", quantization="int3")
    with pytest.raises(ModelError, match="Set the dtype to 'auto'"):
        load_model(folder, "cpu", "bfloat16", quantization="int8")


def test_a_tied_head_written_out_again_is_the_same_or_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_model(tmp_path, STARCODER2)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    embeddings = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embeddings.clone()}, file)
    load_model(folder, "cpu", quantization="int8")
    save_file(tensors | {"lm_head.weight": embeddings * 1.5}, file)
    with pytest.raises(ModelError, match="differs from the embeddings"):
        load_model(folder, "cpu", quantization="int8")


@pytest.mark.parametrize(
    ("quantization", "remedy"),
    [
        ("none", "Set the quantization to 'int8', use a smaller model"),
        ("int8", "Use a smaller model"),
    ],
)
def test_a_model_larger_than_memory_is_refused_with_figures(
    quantization: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path, STARCODER2)
    monkeypatch.setattr(devices, "available_memory", lambda: 10_000)
    with pytest.raises(ModelError) as error:
        load_model(folder, "cpu", "auto", quantization=quantization)
    assert "needs 0.0 GB" in str(error.value)
    assert remedy in str(error.value)
    monkeypatch.setattr(devices, "available_memory", lambda: None)  # the system does not tell
    load_model(folder, "cpu", "auto", quantization=quantization)
