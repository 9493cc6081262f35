"""What the weights of a model folder may be, and what is said of tensors that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import load_model
from model.families.registry import FAMILIES
from model.weights.folder import find_model
from tests.conftest import STABLELM, STARCODER2, write_model, write_tokenizer
from tests.model.folders import (
    WEIGHTS,
    Weights,
    check_refused,
    configure,
    logits,
    rewrite,
    write_index,
)
from tests.model.toys import load


def split(folder: Path, *, index: bool = True) -> None:
    """Into two shards, the odd names and the even."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    shards = {f"model-0000{i + 1}-of-00002.safetensors": sorted(weights)[i::2] for i in (0, 1)}
    for file, names in shards.items():
        save_file({name: weights[name] for name in names}, folder / file)
    if index:
        write_index(folder, {name: file for file, names in shards.items() for name in names})


def quantize(folder: Path) -> Weights:
    """Turns a folder's matrices into int8 rows with scales; returns the float weights that these
    stand for."""
    weights, stored, meant = load_file(folder / WEIGHTS), {}, {}
    for name, weight in weights.items():
        stored[name] = meant[name] = weight
        if weight.dim() == 2:
            scale = weight.abs().amax(1) / 127
            stored[name] = (weight / scale[:, None]).round().to(torch.int8)
            stored[f"{name}_scale"] = scale
            meant[name] = stored[name].float() * scale[:, None]
    save_file(stored, folder / WEIGHTS)
    configure(folder, quantization_config={"quant_method": "fimls-int8-rows"})
    return meant


# What is consumed.

FAMILY_CASES = [
    pytest.param(STARCODER2 | {"tie_word_embeddings": False}, id="starcoder2 untied"),
    pytest.param(STARCODER2 | {"use_bias": False}, id="starcoder2 tied, no bias"),
    pytest.param(
        STABLELM | {"qk_layernorm": True, "use_qkv_bias": True}, id="stablelm qk norm, bias"
    ),
    pytest.param(
        STABLELM | {"use_parallel_residual": True, "tie_word_embeddings": True},
        id="stablelm parallel, tied",
    ),
]


@pytest.mark.parametrize("config", FAMILY_CASES)
def test_every_tensor_counts_and_every_parameter_is_filled_once(
    config: dict[str, Any], tmp_path: Path
) -> None:
    write_model(tmp_path, config)
    m = load(tmp_path)
    whole, weights = logits(m), load_file(tmp_path / WEIGHTS)
    table = FAMILIES[config["model_type"]].weight_table(m.decoder.config)
    assert set(table) == set(weights)
    assert sum(w.numel() for w in weights.values()) == sum(
        p.numel() for p in m.decoder.parameters()
    )
    for name, weight in weights.items():
        save_file(
            weights | {name: weight + torch.linspace(0, 1, weight.numel()).view_as(weight)},
            tmp_path / WEIGHTS,
        )
        assert not torch.allclose(logits(load(tmp_path)), whole, atol=1e-3), name


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_one_file(folder: Path, index: bool) -> None:
    whole = logits(load(folder))
    split(folder, index=index)
    assert len(find_model(folder).weight_files) == 2
    assert torch.equal(logits(load(folder)), whole)


def test_an_index_leaves_other_files_alone(folder: Path) -> None:
    split(folder)
    save_file({"adapter": torch.ones(1)}, folder / "adapter.safetensors")
    load(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_are_their_rounded_floats(
    folder: Path, dtype: torch.dtype
) -> None:
    rewrite(folder, lambda w: w.update({name: t.to(dtype) for name, t in w.items()}))
    halves = load(folder)
    rewrite(folder, lambda w: w.update({name: t.float() for name, t in w.items()}))
    assert halves.decoder.dtype == torch.float32
    assert torch.equal(logits(halves), logits(load(folder)))


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_a_model_runs_in_half_precision(folder: Path, name: str) -> None:
    m = load_model(folder, device="cpu", dtype=name)
    assert m.decoder.dtype == getattr(torch, name)
    torch.testing.assert_close(logits(m), logits(load(folder)), atol=0.3, rtol=0.1)


def test_int8_rows_are_the_floats_that_they_stand_for(folder: Path) -> None:
    exact = logits(load(folder))
    meant = quantize(folder)
    ours = logits(load(folder))
    configure(folder, quantization_config=None)
    save_file(meant, folder / WEIGHTS)
    assert torch.equal(ours, logits(load(folder)))
    assert not torch.equal(ours, exact)
    torch.testing.assert_close(ours, exact, atol=0.1, rtol=0.1)


def test_a_tied_checkpoint_may_carry_its_head_as_a_copy(folder: Path) -> None:
    whole = logits(load(folder))
    rewrite(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    assert torch.equal(logits(load(folder)), whole)


def test_computed_buffers_of_older_checkpoints_are_passed_over(folder: Path) -> None:
    rewrite(
        folder, lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    )
    load(folder)


@pytest.mark.parametrize("config", [STARCODER2, STABLELM], ids=["starcoder2", "stablelm"])
def test_what_transformers_saves_loads(config: dict[str, Any], tmp_path: Path) -> None:
    import transformers

    transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config)
    ).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    assert load(tmp_path).decoder.config.num_kv_heads == config["num_key_value_heads"]


def test_progress_grows_to_one(folder: Path) -> None:
    shares: list[float] = []
    load_model(folder, device="cpu", dtype="float32", progress=shares.append)
    assert shares == sorted(shares) and shares[0] < 0.1 and shares[-1] == 1


def test_a_folder_is_known_by_its_files(folder: Path) -> None:
    before = find_model(folder).identity
    assert find_model(str(folder)).identity == before
    rewrite(folder, lambda w: w.pop("model.norm.bias"))
    assert find_model(folder).identity != before


# Tensors that do not fit.

TENSOR_FAULTS: dict[str, tuple[Callable[[Weights], Any], list[str]]] = {
    "missing": (
        lambda w: w.pop("model.norm.bias"),
        ["lacks the tensors model.norm.bias.", "Download"],
    ),
    "most missing": (
        lambda w: [w.pop(name) for name in list(w) if name != "model.norm.bias"],
        ["model.embed_tokens.weight, ", " and 30 more", "Download"],
    ),
    "surplus": (
        lambda w: w.update({"model.layers.2.mlp.c_fc.bias": torch.ones(64)}),
        ["model.layers.2.mlp.c_fc.bias has no place", "Check"],
    ),
    "misshapen": (
        lambda w: w.update({"model.norm.weight": torch.ones(31)}),
        ["model.norm.weight is (31,)", "asks for (32,)", "Check"],
    ),
    "transposed": (
        lambda w: w.update({"model.layers.0.mlp.c_fc.weight": torch.ones(32, 64)}),
        ["model.layers.0.mlp.c_fc.weight is (32, 64)", "asks for (64, 32)", "Check"],
    ),
    "a matrix for a vector": (
        lambda w: w.update({"model.norm.weight": torch.ones(1, 32)}),
        ["model.norm.weight is (1, 32)", "Check"],
    ),
    "integers": (
        lambda w: w.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}),
        ["model.norm.weight is torch.int8", "Download"],
    ),
    "a head that is no copy": (
        lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"] + 1}),
        ["lm_head.weight differs from the embeddings", "tie_word_embeddings to false"],
    ),
}


@pytest.mark.parametrize("fault", TENSOR_FAULTS)
def test_a_tensor_that_does_not_fit_is_named(folder: Path, fault: str) -> None:
    change, words = TENSOR_FAULTS[fault]
    rewrite(folder, change)
    check_refused(folder, *words)


def test_a_tensor_in_two_shards_is_named(folder: Path) -> None:
    split(folder)
    second = folder / "model-00002-of-00002.safetensors"
    save_file(load_file(second) | {"model.embed_tokens.weight": torch.ones(320, 32)}, second)
    fault = "00002-of-00002.safetensors: model.embed_tokens.weight comes a second time"
    check_refused(folder, fault, "Download")


INT8_FAULTS: dict[str, tuple[Callable[[Weights], Any], list[str]]] = {
    "no scale": (
        lambda w: w.pop("model.embed_tokens.weight_scale"),
        ["embed_tokens.weight is torch.int8"],
    ),
    "too few scales": (
        lambda w: w.update({"model.embed_tokens.weight_scale": torch.ones(319)}),
        [
            "model.embed_tokens.weight is torch.int8 (320, 32)",
            "model.embed_tokens.weight_scale of (319,)",
        ],
    ),
    "a scale for floats": (
        lambda w: w.update({"model.norm.bias_scale": torch.ones(32)}),
        ["model.norm.bias is torch.float32"],
    ),
    "a scale for nothing": (
        lambda w: w.update({"model.nothing_scale": torch.ones(3)}),
        ["model.nothing_scale has no place"],
    ),
}


@pytest.mark.parametrize("fault", INT8_FAULTS)
def test_int8_rows_that_do_not_fit_are_named(folder: Path, fault: str) -> None:
    change, words = INT8_FAULTS[fault]
    quantize(folder)
    rewrite(folder, change)
    check_refused(folder, *words)
