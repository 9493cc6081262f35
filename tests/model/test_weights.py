"""What a model folder may hold, and what is said of one that cannot be used: the fault by name, and the remedy."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import LoadedModel, load_model
from model.errors import ModelError
from model.hub import find_model
from model.weights import FAMILIES
from tests.conftest import STABLELM, STARCODER2, write_model, write_tokenizer
from tests.model.toys import load

IDS = torch.tensor([[80, 90, 100, 110, 120]])
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Weights = dict[str, torch.Tensor]


@pytest.fixture
def folder(starcoder2_folder: Path, tmp_path: Path) -> Path:
    """A whole model, tied, to be broken."""
    return shutil.copytree(starcoder2_folder, tmp_path / "toy")


def logits(m: LoadedModel) -> torch.Tensor:
    with torch.inference_mode():
        return m.decoder(IDS).logits.float()


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def rewrite(folder: Path, change: Callable[[Weights], Any]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


def split(folder: Path, *, index: bool = True) -> None:
    """Into two shards, the odd names and the even."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    shards = {f"model-0000{i + 1}-of-00002.safetensors": sorted(weights)[i::2] for i in (0, 1)}
    for file, names in shards.items():
        save_file({name: weights[name] for name in names}, folder / file)
    if index:
        write_index(folder, {name: file for file, names in shards.items() for name in names})


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def quantize(folder: Path) -> Weights:
    """Turns a folder's matrices into int8 rows with scales; returns the float weights that these stand for."""
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


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load(folder)
    return str(caught.value)


# What is consumed.

FAMILY_CASES = [
    pytest.param(STARCODER2 | {"tie_word_embeddings": False}, id="starcoder2 untied"),
    pytest.param(STARCODER2 | {"use_bias": False}, id="starcoder2 tied, no bias"),
    pytest.param(STABLELM | {"qk_layernorm": True, "use_qkv_bias": True}, id="stablelm qk norm, bias"),
    pytest.param(STABLELM | {"use_parallel_residual": True, "tie_word_embeddings": True}, id="stablelm parallel, tied"),
]


@pytest.mark.parametrize("config", FAMILY_CASES)
def test_every_tensor_counts_and_every_parameter_is_filled_once(config: dict[str, Any], tmp_path: Path) -> None:
    write_model(tmp_path, config)
    m = load(tmp_path)
    whole, weights = logits(m), load_file(tmp_path / WEIGHTS)
    table = FAMILIES[config["model_type"]].weight_table(m.decoder.config)
    assert set(table) == set(weights)
    assert sum(w.numel() for w in weights.values()) == sum(p.numel() for p in m.decoder.parameters())
    for name, weight in weights.items():
        save_file(weights | {name: weight + torch.linspace(0, 1, weight.numel()).view_as(weight)}, tmp_path / WEIGHTS)
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
def test_half_precision_checkpoints_are_their_rounded_floats(folder: Path, dtype: torch.dtype) -> None:
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
    rewrite(folder, lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    load(folder)


@pytest.mark.parametrize("config", [STARCODER2, STABLELM], ids=["starcoder2", "stablelm"])
def test_what_transformers_saves_loads(config: dict[str, Any], tmp_path: Path) -> None:
    import transformers

    transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config)).save_pretrained(tmp_path)
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
    "missing": (lambda w: w.pop("model.norm.bias"), ["lacks the tensors model.norm.bias.", "Download"]),
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
        lambda w: w.update({"model.norm.weight": torch.ones(1, 32)}), ["model.norm.weight is (1, 32)", "Check"]
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
    message = refusal(folder)
    assert all(w in message for w in [str(folder), *words]), message


def test_a_tensor_in_two_shards_is_named(folder: Path) -> None:
    split(folder)
    second = folder / "model-00002-of-00002.safetensors"
    save_file(load_file(second) | {"model.embed_tokens.weight": torch.ones(320, 32)}, second)
    message = refusal(folder)
    assert "00002-of-00002.safetensors: model.embed_tokens.weight comes a second time" in message
    assert "Download" in message


INT8_FAULTS: dict[str, tuple[Callable[[Weights], Any], list[str]]] = {
    "no scale": (lambda w: w.pop("model.embed_tokens.weight_scale"), ["embed_tokens.weight is torch.int8"]),
    "too few scales": (
        lambda w: w.update({"model.embed_tokens.weight_scale": torch.ones(319)}),
        ["model.embed_tokens.weight is torch.int8 (320, 32)", "model.embed_tokens.weight_scale of (319,)"],
    ),
    "a scale for floats": (
        lambda w: w.update({"model.norm.bias_scale": torch.ones(32)}), ["model.norm.bias is torch.float32"]
    ),
    "a scale for nothing": (
        lambda w: w.update({"model.nothing_scale": torch.ones(3)}), ["model.nothing_scale has no place"]
    ),
}


@pytest.mark.parametrize("fault", INT8_FAULTS)
def test_int8_rows_that_do_not_fit_are_named(folder: Path, fault: str) -> None:
    change, words = INT8_FAULTS[fault]
    quantize(folder)
    rewrite(folder, change)
    message = refusal(folder)
    assert all(w in message for w in [str(folder), *words]), message


# Files that are broken or not there.


def remove(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: str | bytes) -> Callable[[Path], Any]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw)


def index(weight_map: object) -> Callable[[Path], Any]:
    return lambda folder: write_index(folder, weight_map)


def truncate(at: int) -> Callable[[Path], Any]:
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:at])


AGAIN = "Download"
FILE_FAULTS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "empty folder": (lambda folder: [f.unlink() for f in folder.iterdir()], ["is empty", AGAIN]),
    "no folder": (shutil.rmtree, ["There is no model folder", "Use 'bundled'"]),
    "no config": (remove("config.json"), ["config.json is missing", "whole model folder"]),
    "no tokenizer": (remove("tokenizer.json"), ["tokenizer.json is missing", "Use a model folder that has one"]),
    "no weights": (remove(WEIGHTS), ["has no *.safetensors", AGAIN]),
    "config is no JSON": (write("config.json", "{"), ["config.json cannot be read", AGAIN]),
    "config is no text": (write("config.json", b"\xff\xfe\x00"), ["config.json cannot be read", AGAIN]),
    "config is no object": (write("config.json", "[]"), ["config.json holds no JSON object", AGAIN]),
    "config is bottomless": (write("config.json", "[" * 100_000), ["config.json cannot be read", AGAIN]),
    "weights are empty": (write(WEIGHTS, ""), [f"{WEIGHTS} cannot be read", AGAIN]),
    "weights end in the header": (truncate(100), [f"{WEIGHTS} cannot be read", AGAIN]),
    "weights end in a tensor": (truncate(-1), [f"{WEIGHTS} cannot be read", AGAIN]),
    "header of 16 exabytes": (write(WEIGHTS, struct.pack("<Q", 2**64 - 1) + b"{}"), [f"{WEIGHTS} cannot be", AGAIN]),
    "header of 3 gigabytes": (write(WEIGHTS, struct.pack("<Q", 3 * 2**30) + b"{}"), [f"{WEIGHTS} cannot be", AGAIN]),
    "index without a map": (index(None), ["has no weight_map", AGAIN]),
    "index of nothing": (index({}), ["has no weight_map", AGAIN]),
    "index of a lost file": (index({"a": WEIGHTS, "b": "lost.safetensors"}), ["lacks lost.safetensors", AGAIN]),
    "index out of the folder": (index({"a": "../other/model.safetensors"}), [INDEX, "not safetensors beside it"]),
    "index to a place of its own": (index({"a": "/model.safetensors"}), [INDEX, "not safetensors beside it"]),
    "index of a pickle": (index({"a": "pytorch_model.bin"}), [INDEX, "not safetensors beside it", AGAIN]),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_a_broken_folder_is_refused_with_the_remedy(folder: Path, fault: str) -> None:
    change, words = FILE_FAULTS[fault]
    change(folder)
    message = refusal(folder)
    assert all(w in message for w in [str(folder), *words]), message


@pytest.mark.parametrize("name", ["/nowhere", "~nobody-by-this-name/model", "a\0b", "x" * 5000, __file__, ""])
def test_a_name_that_leads_nowhere_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"(There is no model folder|is empty)"):
        find_model(name)


def test_a_flipped_bit_in_the_header_is_noticed_or_changes_nothing(folder: Path) -> None:
    whole, raw = logits(load(folder)), (folder / WEIGHTS).read_bytes()
    size = 8 + struct.unpack("<Q", raw[:8])[0]
    rng = random.Random(0)
    refused = 0
    for _ in range(150):
        flipped = bytearray(raw)
        flipped[rng.randrange(size)] ^= 1 << rng.randrange(8)
        (folder / WEIGHTS).write_bytes(flipped)
        try:
            assert torch.equal(logits(load(folder)), whole)
        except ModelError:
            refused += 1
    assert refused > 100


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickled_weights_are_refused_and_never_opened(folder: Path, name: str) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(folder / "exploded")))
    message = refusal(folder)
    assert f"only pickled weights ({name})" in message
    assert "Use the model's safetensors" in message
    assert not (folder / "exploded").exists()


def test_code_in_a_folder_is_never_run(folder: Path) -> None:
    (folder / "modeling_toy.py").write_text(f"open({str(folder / 'exploded')!r}, 'w')")
    load(folder)
    configure(folder, auto_map={"AutoModelForCausalLM": "modeling_toy.Toy"})
    with pytest.raises(ModelError, match=r"auto_map.*never does.*Use a checkpoint in one of the native"):
        find_model(folder)
    assert not (folder / "exploded").exists()


# Configurations that cannot be run.

CONFIG_FAULTS: list[tuple[dict[str, Any], list[str]]] = [
    ({"model_type": "gpt2"}, ["model_type 'gpt2'", "It runs starcoder2, stablelm"]),
    ({"model_type": None}, ["model_type 'None'", "It runs starcoder2, stablelm"]),
    ({"attention_bias": True, "new_switch": 1}, ["does not know", "change the result: attention_bias, new_switch"]),
    ({"head_dim": 16}, ["change the result: head_dim"]),
    ({"hidden_act": "relu"}, ["hidden_act 'relu'", "known are gelu_pytorch_tanh, "]),
    ({"hidden_act": 3}, ["hidden_act is 3, which is not of the expected type"]),
    ({"hidden_size": "32"}, ["hidden_size is '32', which is not of the expected type"]),
    ({"hidden_size": True}, ["hidden_size is True, which is not"]),
    ({"hidden_size": 32.5}, ["hidden_size is 32.5, which is not"]),
    ({"hidden_size": [32]}, ["hidden_size is [32], which is not"]),
    ({"hidden_size": 0}, ["hidden_size is 0, but must be positive"]),
    ({"hidden_size": None}, ["(320, 32)", "asks for (320, 3072)"]),  # null is absent: the family's default
    ({"num_hidden_layers": 0}, ["num_layers is 0, but must be positive"]),
    ({"num_attention_heads": -4}, ["num_heads is -4, but must be positive"]),
    ({"num_attention_heads": 3}, ["32 dimensions, 3 heads and 2 key/value heads do not divide evenly"]),
    ({"num_key_value_heads": 3}, ["32 dimensions, 4 heads and 3 key/value heads do not divide evenly"]),
    ({"max_position_embeddings": "many"}, ["max_position_embeddings is 'many', which is not"]),
    ({"use_bias": "yes"}, ["use_bias is 'yes', which is not"]),
    ({"use_bias": 1}, ["use_bias is 1, which is not"]),
    ({"norm_epsilon": "tiny"}, ["norm_epsilon is 'tiny', which is not"]),
    ({"sliding_window": 0}, ["sliding_window is 0, but must be positive or null"]),
    ({"eos_token_id": "<eos>"}, ["eos_token_id is '<eos>', but must be a token id"]),
    ({"eos_token_id": [0, None]}, ["eos_token_id is [0, None], but must be a token id"]),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["rope type 'dynamic'", "supported are default, linear"]),
    ({"rope_parameters": {"rope_type": "longrope"}}, ["rope type 'longrope' is not supported"]),
    ({"rope_parameters": {"rope_type": "yarn", "mscale": 0.7}}, ["change the result: mscale"]),
    ({"rope_parameters": {"rope_theta": 0}}, ["rotary embedding's theta is 0.0, not positive"]),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, ["rotary embedding's factor is 0.0, not positive"]),
    ({"rope_parameters": 5}, ["rope_parameters is 5, which is not"]),
    ({"partial_rotary_factor": 2.0}, ["16 of 8 head dimensions cannot be rotated"]),
    ({"partial_rotary_factor": 0.4}, ["3 of 8 head dimensions cannot be rotated"]),
    ({"quantization_config": {"quant_method": "bitsandbytes"}}, ["quantized with 'bitsandbytes'", "Use the model's"]),
    ({"quantization_config": {}}, ["quantized with None", "Use the model's float16 or bfloat16"]),
    ({"vocab_size": 10**13}, ["needs 1280000.0 GB for its weights", "memory of cpu", "a smaller model"]),
    ({"vocab_size": 200}, ["model.embed_tokens.weight is (320, 32)", "asks for (200, 32)", "Check"]),
]


@pytest.mark.parametrize(("changes", "words"), CONFIG_FAULTS, ids=[json.dumps(c) for c, _ in CONFIG_FAULTS])
def test_a_configuration_that_cannot_be_run_is_refused(folder: Path, changes: dict[str, Any], words: list[str]) -> None:
    configure(folder, **changes)
    message = refusal(folder)
    assert all(w in message for w in [str(folder), *words]), message


@pytest.mark.parametrize(("given", "read"), [(512, 512), (None, 4096)])
def test_a_folder_knows_its_positions_without_torch(folder: Path, given: int | None, read: int) -> None:
    configure(folder, max_position_embeddings=given)
    assert find_model(folder).max_positions == read == load(folder).decoder.config.max_positions


def test_positions_that_are_no_number_are_refused_without_torch(folder: Path) -> None:
    configure(folder, max_position_embeddings="many")
    with pytest.raises(ModelError, match="max_position_embeddings is 'many'"):
        assert find_model(folder).max_positions


def test_harmless_keys_are_passed_over(folder: Path) -> None:
    whole = logits(load(folder))
    configure(folder, use_cache=False, torch_dtype="bfloat16", attention_dropout=0.1, transformers_version="4.40")
    assert torch.equal(logits(load(folder)), whole)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(folder: Path) -> None:
    write_tokenizer(folder, specials=[f"<{i}>" for i in range(100)])
    message = refusal(folder)
    assert "the tokenizer has 356 entries, the model 320" in message
    assert "Check that tokenizer.json and config.json belong together" in message


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"device": "abacus"}, ["'abacus'", "Set the device to 'auto'"]),
        ({"device": ""}, ["''", "Set the device to 'auto'"]),
        ({"dtype": "int3"}, ["'int3'", "Use 'auto', 'float32', 'float16', 'bfloat16'"]),
    ],
)
def test_a_device_or_dtype_that_is_none_is_refused(folder: Path, choice: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(folder, **choice)
    assert all(w in str(caught.value) for w in words)
