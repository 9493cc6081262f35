"""GGUF files as models: equal to the folders that they were made from, in what they say in keys and
by their tensors, and in what they compute; split files."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from model.errors import ModelError
from model.ggml import Blocks
from model.weights.checkpoint import Checkpoint
from model.weights.files import BUNDLED
from model.weights.folder import find_model
from model.weights.gguf.header import TENSOR_TYPES, TensorInfo
from model.weights.gguf.tensors import read_tensor
from tests.model.export.exports import MODELS, TRICKY, exported, toy
from tests.model.folders import configure, logits
from tests.model.toys import load
from tests.model.weights.gguf_files import write_copy

WINDOWED = [name for name in MODELS if "window" in name]  # llama.cpp knows none


def gguf_of(folder: Path) -> Path:
    (file,) = folder.glob("*.gguf")
    return file


@pytest.mark.parametrize("kind", [name for name in MODELS if name not in WINDOWED])
def test_a_gguf_file_computes_what_its_folder_does(kind: str, tmp_path: Path) -> None:
    source = toy(tmp_path, kind)
    (file,) = exported(source, tmp_path, "gguf").glob("*.gguf")
    theirs = load(source.path)
    ours = load(file)
    assert ours.decoder.config.max_positions == theirs.decoder.config.max_positions
    assert ours.decoder.config.stop_ids == theirs.decoder.config.stop_ids
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-5)
    for text in TRICKY[:4]:
        assert ours.tokenizer.decode(ours.tokenizer.encode(text)) == text
        assert ours.tokenizer.encode_prompt(text) == theirs.tokenizer.encode_prompt(text)


def test_the_types_have_the_sizes_that_the_gguf_library_knows() -> None:
    for number, (name, block, size) in TENSOR_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (block, size))


def test_the_bundled_model_as_a_file(tmp_path: Path) -> None:
    file = gguf_of(exported(find_model("bundled"), tmp_path, "gguf"))
    found = find_model(file)
    assert found.parameters == find_model("bundled").parameters
    assert found.max_positions == find_model("bundled").max_positions
    torch.testing.assert_close(logits(load(file)), logits(load(BUNDLED)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_matrices_are_what_the_library_makes_of_them(kind: str, tmp_path: Path) -> None:
    whole = gguf_of(exported(toy(tmp_path, "starcoder2"), tmp_path, "gguf"))
    file = write_copy(whole, tmp_path / "small.gguf", kind=kind)
    checkpoint = Checkpoint.open(find_model(file))
    tensors = {t.name: t for t in gguf.GGUFReader(file).tensors}
    assert {t.tensor_type.name for t in tensors.values() if len(t.shape) == 2} == {kind}
    found = {name: tensor for _, name, tensor in checkpoint.tensors()}
    for theirs, ours in (
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.c_proj.weight"),
        ("blk.0.attn_k.weight", "model.layers.0.self_attn.k_proj.weight"),
    ):
        stored = tensors[theirs]
        expected = torch.from_numpy(np.array(gguf.dequantize(stored.data, stored.tensor_type)))
        assert torch.equal(found[ours].float(), expected.float())
    assert torch.isfinite(logits(load(file))).all()


@pytest.mark.parametrize("kind", [kind for kind, block, _ in TENSOR_TYPES.values() if block > 1])
def test_every_type_is_widened_as_the_library_widens_it(kind: str, tmp_path: Path) -> None:
    """Bit for bit, on any bytes: every block is a valid one."""
    number = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[number]
    rows, columns = 301, 3 * block
    raw = np.random.default_rng(0).integers(0, 256, rows * 3 * block_bytes, np.uint8)
    file = tmp_path / "raw"
    raw.tofile(file)
    info = TensorInfo("t", (rows, columns), kind, 0, raw.size)
    with np.errstate(all="ignore"):
        read = read_tensor(np.memmap(file, np.uint8, "c"), info)
        found = read.floats() if isinstance(read, Blocks) else read
        expected = gguf.quants.dequantize(raw.reshape(rows, -1), number)
    np.testing.assert_array_equal(found.numpy(), expected)


def test_a_split_model_is_opened_by_any_of_its_files(tmp_path: Path) -> None:
    whole = gguf_of(exported(toy(tmp_path, "llama"), tmp_path, "gguf"))
    write_copy(whole, tmp_path / "split.gguf", split_max_tensors=8)
    files = sorted(tmp_path.glob("split-*.gguf"))
    assert len(files) >= 3
    expected = logits(load(whole))
    for file in (files[0], files[-1]):
        model = find_model(file)
        assert model.weight_files == files
        assert torch.equal(logits(load(file)), expected)
    assert find_model(files[0]).identity
    files[1].unlink()
    with pytest.raises(ModelError, match=rf"lacks {files[1].name} .*Download"):
        find_model(files[0])
    shutil.copyfile(files[0], files[1])
    with pytest.raises(ModelError, match="tensors instead of"):
        find_model(files[0])


@pytest.mark.parametrize("shard", [1, 2])
def test_a_split_file_with_a_part_missing_is_named(shard: int, tmp_path: Path) -> None:
    whole = gguf_of(exported(toy(tmp_path, "qwen2"), tmp_path, "gguf"))
    name = f"model-{shard:05}-of-00002.gguf"
    shutil.copyfile(whole, tmp_path / name)
    with pytest.raises(ModelError, match=f"model-{3 - shard:05}-of-00002.gguf of a model in 2"):
        find_model(tmp_path / name)


def llama3_factors(factor: float, pairs: int, theta: float) -> Any:
    """As llama.cpp's converter writes them (conversion of Llama 3.1)."""
    factors = []
    for pair in range(pairs):
        wavelength = 2 * math.pi * theta ** (pair / pairs)
        if wavelength < 8192 / 4.0:
            factors.append(1.0)
        elif wavelength > 8192 / 1.0:
            factors.append(factor)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_frequencies_of_llama_3_are_known_by_their_divisors(
    factor: float, tmp_path: Path
) -> None:
    source = toy(tmp_path, "llama, wide heads")
    whole = gguf_of(exported(source, tmp_path, "gguf"))
    factors = llama3_factors(factor, 8, 10000.0)
    assert len({*factors.tolist()}) > 2
    file = write_copy(whole, tmp_path / "l3.gguf", tensors={"rope_freqs.weight": factors})
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    configure(source.path, rope_scaling=scaling)
    assert find_model(file).config["rope_scaling"] == scaling
    torch.testing.assert_close(logits(load(file)), logits(load(source.path)), rtol=0, atol=1e-5)
    assert not torch.allclose(logits(load(file)), logits(load(whole)), atol=1e-5)
    bent = write_copy(
        whole, tmp_path / "bent.gguf", tensors={"rope_freqs.weight": factors * factors}
    )
    with pytest.raises(ModelError, match=r"rope_freqs.*does not know.*config\.json"):
        find_model(bent)


@pytest.mark.parametrize(
    ("keys", "scaling"),
    [
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        ({"llama.rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0,
                "llama.rope.scaling.original_context_length": 64,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
    ],
)
def test_stretched_positions(keys: dict[str, Any], scaling: dict[str, Any], tmp_path: Path) -> None:
    source = toy(tmp_path, "llama")
    whole = gguf_of(exported(source, tmp_path, "gguf"))
    file = write_copy(whole, tmp_path / "stretched.gguf", keys)
    configure(source.path, rope_scaling=scaling)
    torch.testing.assert_close(logits(load(file)), logits(load(source.path)), rtol=0, atol=1e-5)
    assert not torch.allclose(logits(load(file)), logits(load(whole)), atol=1e-5)


def test_a_file_is_opened_without_torch_and_numpy(tmp_path: Path) -> None:
    file = gguf_of(exported(toy(tmp_path, "qwen2"), tmp_path, "gguf"))
    code = (
        "import sys; from model.weights.folder import find_model; m = find_model(sys.argv[1]); "
        "m.identity; m.max_positions; m.parameters; m.load_tokenizer(); "
        "print(sorted({'torch', 'gguf', 'numpy', 'transformers'} & sys.modules.keys()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, file], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


def test_a_changed_file_is_another_model(tmp_path: Path) -> None:
    file = gguf_of(exported(toy(tmp_path, "qwen2"), tmp_path, "gguf"))
    before = find_model(file)
    identity = before.identity
    write_copy(file, tmp_path / "new.gguf", {"qwen2.context_length": 128})
    (tmp_path / "new.gguf").rename(file)
    after = find_model(file)
    assert (before.max_positions, after.max_positions) == (256, 128)
    assert identity != after.identity


def test_a_file_becomes_a_folder_again(tmp_path: Path) -> None:
    source = toy(tmp_path, "llama")
    whole = gguf_of(exported(source, tmp_path, "gguf"))
    again = tmp_path / "again.gguf"
    whole.rename(again)
    shutil.rmtree(tmp_path / "out")
    rewritten = gguf_of(exported(find_model(again), tmp_path, "gguf"))
    theirs = {t.name: np.array(t.data) for t in gguf.GGUFReader(rewritten).tensors}
    for tensor in gguf.GGUFReader(again).tensors:
        np.testing.assert_array_equal(theirs[tensor.name], tensor.data)
