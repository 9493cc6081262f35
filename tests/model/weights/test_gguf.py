"""GGUF files as models: equal to the folders that they were made from, and every fault told."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from model.errors import ModelError
from model.weights.folder import find_model
from model.weights.gguf.blocks import WIDENED
from model.weights.gguf.header import TENSOR_TYPES, read_header
from model.weights.gguf.model import GgufModel
from model.weights.gguf.tensors import widened
from tests.model.export.exports import MODELS, TRICKY, exported, toy
from tests.model.folders import logits
from tests.model.toys import load

HALVES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
WINDOWED = [name for name in MODELS if "window" in name]  # llama.cpp knows none


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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
def test_fewer_bits_are_the_numbers_that_they_stand_for(dtype: str, tmp_path: Path) -> None:
    (file,) = exported(toy(tmp_path), tmp_path, "gguf", dtype).glob("*.gguf")
    data = np.memmap(file, np.uint8, "r")
    for tensor in gguf.GGUFReader(file).tensors:
        info = read_header(file).tensors[tensor.name]
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(widened(data, info).float().numpy(), expected.reshape(info.shape))


@pytest.mark.parametrize("kind", sorted(WIDENED))
def test_blocks_are_widened_as_the_gguf_library_does(kind: str) -> None:
    generator = np.random.default_rng(0)
    size = next(size for name, _, size in TENSOR_TYPES.values() if name == kind)
    blocks = generator.integers(0, 256, (96, size), dtype=np.uint8)
    for first in HALVES.get(kind, (0,)):
        halves = generator.standard_normal((96, 1)).astype(np.float16)
        blocks[:, first : first + 2] = halves.view(np.uint8)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(WIDENED[kind](torch.from_numpy(blocks)).numpy(), expected)


def test_the_types_have_the_sizes_that_the_gguf_library_knows() -> None:
    for number, (name, block, size) in TENSOR_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (block, size))


# ---- faults ----


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    (file,) = exported(toy(folder, "qwen2"), folder, "gguf").glob("*.gguf")
    return file


def put(data: bytearray, at: int, form: str, value: int) -> None:
    struct.pack_into(f"<{form}", data, at, value)


def after(data: bytearray, text: bytes) -> int:
    return data.index(text) + len(text)


def rename(old: bytes, new: bytes) -> Callable[[bytearray], None]:
    assert len(old) == len(new)

    def change(data: bytearray) -> None:
        at = data.index(old)
        data[at : at + len(old)] = new

    return change


def tensor_row(data: bytearray) -> int:
    """Where the numbers of the first matrix's row begin: dimensions, sizes, type, offset."""
    return after(data, b"token_embd.weight")


FAULTS: dict[str, tuple[Callable[[bytearray], object], str]] = {
    "no GGUF": (lambda d: put(d, 0, "I", 7), "no whole GGUF file"),
    "empty": (lambda d: d.clear(), "no whole GGUF file"),
    "four bytes": (lambda d: d.__delitem__(slice(4, None)), "cut off"),
    "version 9": (lambda d: put(d, 4, "I", 9), "version 9"),
    "big-endian": (lambda d: put(d, 4, "I", 3 << 24), "big-endian"),
    "2^60 tensors": (lambda d: put(d, 8, "Q", 2**60), "room for"),
    "2^60 keys": (lambda d: put(d, 16, "Q", 2**60), "room for"),
    "a long name": (lambda d: put(d, 24, "Q", 2**60), "room for"),
    "half a header": (lambda d: d.__delitem__(slice(len(d) // 200, None)), "cut off|room for"),
    "half its weights": (lambda d: d.__delitem__(slice(len(d) // 2, None)), "beyond its end"),
    "9 dimensions": (lambda d: put(d, tensor_row(d), "I", 9), "9 dimensions"),
    "2^60 rows": (lambda d: put(d, tensor_row(d) + 12, "Q", 2**60), "beyond its end"),
    "an unknown type": (lambda d: put(d, tensor_row(d) + 20, "I", 99), "type 99"),
    "an offset beyond": (lambda d: put(d, tensor_row(d) + 24, "Q", 2**50), "beyond its end"),
    "one over another": (lambda d: put(d, tensor_row(d) + 24, "Q", 0), "over another"),
    "an odd offset": (lambda d: put(d, tensor_row(d) + 24, "Q", 3), "no right place"),
    "an unknown architecture": (rename(b"qwen2", b"qwenX"), "architecture 'qwenX'"),
    "an unknown key": (rename(b"qwen2.rope.freq_base", b"qwen2.rope.freq_bass"), "freq_bass"),
    "an unknown pre-tokenizer": (
        lambda d: rename(b"qwen2", b"qwen9")(memory_of_pre(d)),
        "pre-tokenizer is 'qwen9'",
    ),
    "a tensor renamed": (rename(b"output_norm.weight", b"output_norn.weight"), "no place"),
    "NaN": (lambda d: d.__setitem__(slice(-64, None), b"\xff" * 64), "not finite"),
}


class memory_of_pre(bytearray):
    """A view on the text after the key of the pre-tokenizer, written back when it is changed."""

    def __init__(self, data: bytearray) -> None:
        self._whole = data
        self._from = after(data, b"tokenizer.ggml.pre")
        super().__init__(data[self._from :])

    def __setitem__(self, at: object, value: object) -> None:
        super().__setitem__(at, value)  # type: ignore[call-overload]
        self._whole[self._from :] = self


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_named_with_the_remedy(fault: str, whole: Path, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    data = bytearray(whole.read_bytes())
    change(data)
    file = tmp_path / "model.gguf"
    file.write_bytes(data)
    with pytest.raises(ModelError, match=message) as found:
        load(file)
    assert str(file) in str(found.value)
    assert any(
        word in str(found.value).lower() for word in ("again", "use ", "it runs", "check that")
    )


@pytest.mark.parametrize("shard", [1, 2])
def test_a_split_file_with_a_part_missing_is_named(shard: int, whole: Path, tmp_path: Path) -> None:
    name = f"model-{shard:05}-of-00002.gguf"
    shutil.copyfile(whole, tmp_path / name)
    with pytest.raises(ModelError, match=f"model-{3 - shard:05}-of-00002.gguf of a model in 2"):
        find_model(tmp_path / name)


def test_a_split_file_is_one_model(whole: Path, tmp_path: Path) -> None:
    """The second part holds one tensor, and no metadata of the model."""
    reader = gguf.GGUFReader(whole)
    paths = [tmp_path / f"m-{n:05}-of-00002.gguf" for n in (1, 2)]
    for path, mine in zip(paths, (lambda n: n != "output_norm.weight",) * 2, strict=True):
        writer = gguf.GGUFWriter(path, "qwen2")
        if path == paths[0]:
            for field in list(reader.fields.values())[3:]:
                if field.name != "general.architecture":
                    inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                    writer.add_key_value(field.name, field.contents(), field.types[0], inner)
        for tensor in reader.tensors:
            if mine(tensor.name) == (path == paths[0]):
                writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    model = find_model(paths[1])
    assert isinstance(model, GgufModel)
    assert list(model.parts) == paths
    assert torch.equal(logits(load(paths[0])), logits(load(whole)))


def test_a_fifo_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    fifo = tmp_path / "model.gguf"
    os.mkfifo(fifo)
    with pytest.raises(ModelError):
        find_model(fifo)
    folder = toy(tmp_path / "folder").path
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(ModelError):
            load(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(kept)
