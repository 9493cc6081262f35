"""Model folders whose files or configuration cannot be used: the fault by name, and the remedy."""

from __future__ import annotations

import json
import math
import pickle
import random
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import load_model
from model.errors import ModelError
from model.generation.sampling import Sampling
from model.weights.folder import find_model
from tests.conftest import write_tokenizer
from tests.model.folders import INDEX, WEIGHTS, check_refused, configure, logits, write_index
from tests.model.toys import load

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
    "no tokenizer": (
        remove("tokenizer.json"),
        ["tokenizer.json is missing", "Use a model folder that has one"],
    ),
    "no weights": (remove(WEIGHTS), ["has no *.safetensors", AGAIN]),
    "config is no JSON": (write("config.json", "{"), ["config.json cannot be read", AGAIN]),
    "config is no text": (
        write("config.json", b"\xff\xfe\x00"),
        ["config.json cannot be read", AGAIN],
    ),
    "config is no object": (
        write("config.json", "[]"),
        ["config.json holds no JSON object", AGAIN],
    ),
    "config is bottomless": (
        write("config.json", "[" * 100_000),
        ["config.json cannot be read", AGAIN],
    ),
    "weights are empty": (write(WEIGHTS, ""), [f"{WEIGHTS} cannot be read", AGAIN]),
    "weights end in the header": (truncate(100), [f"{WEIGHTS} cannot be read", AGAIN]),
    "weights end in a tensor": (truncate(-1), [f"{WEIGHTS} cannot be read", AGAIN]),
    "header of 16 exabytes": (
        write(WEIGHTS, struct.pack("<Q", 2**64 - 1) + b"{}"),
        [f"{WEIGHTS} cannot be", AGAIN],
    ),
    "header of 3 gigabytes": (
        write(WEIGHTS, struct.pack("<Q", 3 * 2**30) + b"{}"),
        [f"{WEIGHTS} cannot be", AGAIN],
    ),
    "index without a map": (index(None), ["has no weight_map", AGAIN]),
    "index of nothing": (index({}), ["has no weight_map", AGAIN]),
    "index of a lost file": (
        index({"a": WEIGHTS, "b": "lost.safetensors"}),
        ["lacks lost.safetensors", AGAIN],
    ),
    "index out of the folder": (
        index({"a": "../other/model.safetensors"}),
        [INDEX, "not safetensors beside it"],
    ),
    "index to a place of its own": (
        index({"a": "/model.safetensors"}),
        [INDEX, "not safetensors beside it"],
    ),
    "index of a pickle": (
        index({"a": "pytorch_model.bin"}),
        [INDEX, "not safetensors beside it", AGAIN],
    ),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_a_broken_folder_is_refused_with_the_remedy(folder: Path, fault: str) -> None:
    change, words = FILE_FAULTS[fault]
    change(folder)
    check_refused(folder, *words)


@pytest.mark.parametrize(
    "name", ["/nowhere", "~nobody-by-this-name/model", "a\0b", "x" * 5000, __file__, ""]
)
def test_a_name_that_leads_nowhere_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    check_refused(folder, f"only pickled weights ({name})", "Use the model's safetensors")
    assert not (folder / "exploded").exists()


def test_code_in_a_folder_is_never_run(folder: Path) -> None:
    (folder / "modeling_toy.py").write_text(f"open({str(folder / 'exploded')!r}, 'w')")
    load(folder)
    configure(folder, auto_map={"AutoModelForCausalLM": "modeling_toy.Toy"})
    with pytest.raises(
        ModelError, match=r"auto_map.*never does.*Use a checkpoint in one of the native"
    ):
        find_model(folder)
    assert not (folder / "exploded").exists()


# Configurations that cannot be run.


def longrope(**fields: Any) -> dict[str, Any]:
    return {"rope_scaling": {"type": "longrope"} | fields}


def yarn(**fields: Any) -> dict[str, Any]:
    return {"rope_scaling": {"type": "yarn", "factor": 2.0} | fields}


CONFIG_FAULTS: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"model_type": "gpt2"},
        ["lacks the tensors lm_head.weight, transformer.h", "Download the model again"],
    ),
    ({"model_type": None}, ["model_type 'None'", "transformers cannot load it", "Use a native"]),
    (
        {"attention_bias": True, "new_switch": 1},
        ["does not know", "change the result: attention_bias, new_switch"],
    ),
    ({"head_dim": 16}, ["change the result: head_dim"]),
    ({"hidden_act": "relu"}, ["hidden_act 'relu'", "known are gelu_pytorch_tanh, "]),
    ({"hidden_act": 3}, ["hidden_act is 3, which is not of the expected type"]),
    ({"hidden_size": "32"}, ["hidden_size is '32', which is not of the expected type"]),
    ({"hidden_size": True}, ["hidden_size is True, which is not"]),
    ({"hidden_size": 32.5}, ["hidden_size is 32.5, which is not"]),
    ({"hidden_size": [32]}, ["hidden_size is [32], which is not"]),
    ({"hidden_size": 0}, ["hidden_size is 0, but must be positive"]),
    (
        {"hidden_size": None},
        ["(320, 32)", "asks for (320, 3072)"],
    ),  # null is absent: the family's default
    ({"num_hidden_layers": 2**40}, ["1099511627776 layers are more than any model has"]),
    ({"num_hidden_layers": 0}, ["num_layers is 0, but must be positive"]),
    ({"num_attention_heads": -4}, ["num_heads is -4, but must be positive"]),
    (
        {"num_attention_heads": 3},
        ["32 dimensions, 3 heads and 2 key/value heads do not divide evenly"],
    ),
    (
        {"num_key_value_heads": 3},
        ["32 dimensions, 4 heads and 3 key/value heads do not divide evenly"],
    ),
    ({"max_position_embeddings": "many"}, ["max_position_embeddings is 'many', which is not"]),
    ({"use_bias": "yes"}, ["use_bias is 'yes', which is not"]),
    ({"use_bias": 1}, ["use_bias is 1, which is not"]),
    ({"norm_epsilon": "tiny"}, ["norm_epsilon is 'tiny', which is not"]),
    *[
        ({key: value}, [f"config.json: {key} is no finite number", "Download the model again"])
        for key in ("norm_epsilon", "rope_theta")
        for value in (math.nan, math.inf, 10**400)
    ],
    ({"norm_epsilon": -1e-5}, ["epsilon of the norms is -1e-05, but must be from 0 to 0.1"]),
    ({"norm_epsilon": 1e30}, ["epsilon of the norms is 1e+30, but must be from 0 to 0.1"]),
    (longrope(short_factor=[math.nan] * 4, long_factor=[2.0] * 4), ["short_factor is no finite"]),
    ({"rope_scaling": {"type": "linear", "factor": math.nan}}, ["factor is no finite number"]),
    ({"max_position_embeddings": 2**31}, ["2,147,483,648 positions are more than any model has"]),
    *(
        ({key: 10**400}, [f"config.json: {key} is larger than it is in any model"])
        for key in ("hidden_size", "intermediate_size", "vocab_size")
    ),
    ({"partial_rotary_factor": 1e308}, ["of 8 head dimensions cannot be rotated"]),
    (yarn(beta_fast=1e308), ["beta_fast is 1e+308, but must be from 0 to 1000000"]),
    (yarn(beta_slow=1e308), ["beta_slow is 1e+308"]),
    (yarn(rope_theta=1), ["rope_theta is 1.0, but must be above 1 for yarn"]),
    (
        {"rope_scaling": {"type": "dynamic", "factor": 900.0}, "max_position_embeddings": 2**23},
        ["positions are more than any model has"],
    ),
    ({"sliding_window": 0}, ["sliding_window is 0, but must be positive or null"]),
    ({"eos_token_id": "<eos>"}, ["eos_token_id is '<eos>', but must be a token id"]),
    ({"eos_token_id": [0, None]}, ["eos_token_id is [0, None], but must be a token id"]),
    (
        {"rope_scaling": {"type": "spiral", "factor": 2.0}},
        ["rope type 'spiral'", "supported are default, linear, dynamic, yarn, longrope, llama3"],
    ),
    *[
        ({"rope_parameters": {"rope_type": kind}}, [f"rope type {kind} lacks {lacks}", "Add"])
        for kind, lacks in {
            "linear": "factor",
            "dynamic": "factor",
            "yarn": "factor",
            "longrope": "short_factor, long_factor",
            "llama3": "factor, low_freq_factor, high_freq_factor",
        }.items()
    ],
    ({"rope_scaling": {"type": "dynamic", "factor": 0.5}}, ["factor is 0.5", "from 1 to 1000"]),
    (
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "partial_rotary_factor": 0.25},
        ["dynamic needs more than one rotated pair"],
    ),
    (
        longrope(short_factor=[1.0], long_factor=[2.0] * 4),
        ["short_factor has 1 numbers", "each of the 4 rotated pairs"],
    ),
    (
        longrope(short_factor=[1.0] * 4, long_factor=[2.0, 2.0, 0.0, 2.0]),
        ["long_factor", "not pos"],
    ),
    (longrope(short_factor=["1"] * 4, long_factor=[2.0] * 4), ["short_factor must be a list of"]),
    (
        longrope(short_factor=[1.0] * 4, long_factor=[2.0] * 4, original_max_position_embeddings=1),
        ["original_max_position_embeddings is 1, but must be at least 2"],
    ),
    (
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "warp": 0.7}},
        ["change the result: warp"],
    ),
    ({"rope_parameters": {"rope_theta": 0}}, ["rotary embedding's theta is 0.0, not positive"]),
    (
        {"rope_scaling": {"type": "linear", "factor": 0}},
        ["rotary embedding's factor is 0.0, not positive"],
    ),
    ({"rope_parameters": 5}, ["rope_parameters is 5, which is not"]),
    ({"partial_rotary_factor": 2.0}, ["16 of 8 head dimensions cannot be rotated"]),
    ({"partial_rotary_factor": 0.4}, ["3 of 8 head dimensions cannot be rotated"]),
    (
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        ["quantized with 'bitsandbytes'", "Use the model's"],
    ),
    ({"quantization_config": {}}, ["quantized with None", "Use the model's float16 or bfloat16"]),
    (
        {"vocab_size": 10**13},
        ["needs 1280000.0 GB for its weights", "memory of cpu", "a smaller model"],
    ),
    (
        {"vocab_size": 200},
        ["model.embed_tokens.weight is (320, 32)", "asks for (200, 32)", "Check"],
    ),
]


@pytest.mark.parametrize(
    ("changes", "words"), CONFIG_FAULTS, ids=[json.dumps(c) for c, _ in CONFIG_FAULTS]
)
def test_a_configuration_that_cannot_be_run_is_refused(
    folder: Path, changes: dict[str, Any], words: list[str]
) -> None:
    configure(folder, **changes)
    check_refused(folder, *words)


@pytest.mark.parametrize(("given", "read"), [(512, 512), (None, 4096)])
def test_a_folder_knows_its_positions_without_torch(
    folder: Path, given: int | None, read: int
) -> None:
    configure(folder, max_position_embeddings=given)
    assert find_model(folder).max_positions == read == load(folder).decoder.config.max_positions


def test_positions_that_are_no_number_are_refused_without_torch(folder: Path) -> None:
    configure(folder, max_position_embeddings="many")
    with pytest.raises(ModelError, match="max_position_embeddings is 'many'"):
        assert find_model(folder).max_positions


def test_a_header_of_a_million_tensors_is_refused_unread(folder: Path) -> None:
    row = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
    header = b"{" + b"".join(row % number for number in range(10**6))[:-1] + b"}"
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="longer than any model's"):
            _ = find_model(folder).parameters
        with pytest.raises(ModelError, match="longer than any model's"):
            load(folder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(header) / 4


@pytest.mark.parametrize(
    ("value", "words"),
    [(math.nan, "not finite"), (math.inf, "not finite"), (-3e38, "no training gives")],
)
@pytest.mark.parametrize("place", ["model.embed_tokens.weight", "model.norm.bias"])
def test_a_weight_that_cannot_be_is_refused(
    folder: Path, place: str, value: float, words: str
) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[place].view(-1)[-1] = value
    save_file(tensors, path)
    check_refused(folder, place, words, "Download the model again")


def test_a_model_that_computes_no_numbers_says_so(folder: Path) -> None:
    model = load(folder)
    for value in (math.nan, math.inf):
        next(model.decoder.norm.parameters()).fill_(value)
        for sampling in (None, Sampling(temperature=1.0)):
            with pytest.raises(ModelError, match=r"not finite. Download it again, or set the dt"):
                list(model.generate([1, 2, 3], max_new_tokens=2, sampling=sampling))


def test_harmless_keys_are_passed_over(folder: Path) -> None:
    whole = logits(load(folder))
    configure(
        folder,
        use_cache=False,
        torch_dtype="bfloat16",
        attention_dropout=0.1,
        transformers_version="4.40",
    )
    assert torch.equal(logits(load(folder)), whole)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(folder: Path) -> None:
    write_tokenizer(folder, specials=[f"<{i}>" for i in range(100)])
    remedy = "Check that tokenizer.json and config.json belong together"
    check_refused(folder, "the tokenizer has 356 entries, the model 320", remedy)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"device": "abacus"}, ["'abacus'", "Set the device to 'auto'"]),
        ({"device": ""}, ["''", "Set the device to 'auto'"]),
        ({"dtype": "int3"}, ["'int3'", "Use 'auto', 'float32', 'float16', 'bfloat16'"]),
    ],
)
def test_a_device_or_dtype_that_is_none_is_refused(
    folder: Path, choice: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(folder, **choice)
    assert all(w in str(caught.value) for w in words)
