"""GGUF files that are damaged or of an unknown kind; and what is no regular file in the place of a
file of a model."""

from __future__ import annotations

import math
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from model.errors import ModelError
from model.weights.folder import find_model
from tests.model.export.exports import exported, toy
from tests.model.toys import load
from tests.model.weights.gguf_files import patch, patch_tensor, write_copy

AGAIN = "Download"
QUERIES = "blk.0.attn_q.weight"


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    (file,) = exported(toy(folder, "qwen2"), folder, "gguf").glob("*.gguf")
    return file


def check_refused(file: Path, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        load(file)
    message = str(caught.value)
    assert all(word in message for word in [str(file), *words]), message


def cut(at: int) -> Callable[[Path], Any]:
    return lambda file: file.write_bytes(file.read_bytes()[:at])


def tensor(name: str = QUERIES, **numbers: int) -> Callable[[Path], Any]:
    return lambda file: patch_tensor(file, name, **numbers)


def number(at: int, form: str, value: int) -> Callable[[Path], Any]:
    return lambda file: patch(file, at, form, value)


BYTES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "another magic": (number(0, "<I", 7), ["no whole GGUF file"]),
    "nothing": (cut(0), ["no whole GGUF file"]),
    "four bytes": (cut(4), ["cut off", AGAIN]),
    "cut in the header": (cut(2000), ["room for", AGAIN]),
    "cut in the last tensor": (cut(-1), ["beyond its end", AGAIN]),
    "version 1": (number(4, "<I", 1), ["version 1", "known are 2 and 3", AGAIN]),
    "version 9": (number(4, "<I", 9), ["version 9", AGAIN]),
    "big-endian": (number(4, "<I", 3 << 24), ["big-endian", "little-endian", AGAIN]),
    "2^60 tensors": (number(8, "<Q", 2**60), ["room for", AGAIN]),
    "2^60 keys": (number(16, "<Q", 2**60), ["room for", AGAIN]),
    "a key of 2^60 bytes": (number(24, "<Q", 2**60), ["room for", AGAIN]),
    "one tensor more": (lambda f: patch(f, 8, "<Q", count_of(f) + 1), [AGAIN]),
    "a tensor without dimensions": (tensor(dimensions=0), ["0 dimensions", AGAIN]),
    "a tensor of 9 dimensions": (tensor(dimensions=9), ["9 dimensions", AGAIN]),
    "2^60 rows": (tensor(rows=2**60), [QUERIES, "beyond its end", AGAIN]),
    "2^63 columns": (tensor(columns=2**63), [QUERIES, "beyond its end", AGAIN]),
    "no rows": (tensor(rows=0), [QUERIES, "the shape (0, 32)", AGAIN]),
    "an unknown type": (tensor(kind=99), [QUERIES, "of the type 99", AGAIN]),
    "a type without numbers": (tensor(kind=24), [QUERIES, "of the type 24", AGAIN]),
    "rows that fill no block": (tensor(kind=12), [QUERIES, "type Q4_K has the shape", AGAIN]),
    "offset of 2^64 - 32": (tensor(offset=2**64 - 32), [QUERIES, "beyond its end", AGAIN]),
    "one over another": (tensor(offset=0), ["over another", AGAIN]),
    "an odd offset": (tensor(offset=3), [QUERIES, "no right place", AGAIN]),
    "other columns": (tensor(columns=16), ["q_proj.weight is (32, 16)", "asks for (32, 32)"]),
}


def huge(at: int, value: int, *more: bytes) -> Callable[[Path], Any]:
    """A number at a place of a file that has room for as many, without taking it on the disk."""

    def change(file: Path) -> None:
        start = file.read_bytes()[:at] + struct.pack("<Q", value) + b"".join(more)
        file.write_bytes(start)
        os.truncate(file, 2**40)

    return change


FIRST_KEY = struct.pack("<Q", 1) + b"k"
HUGE: dict[str, Callable[[Path], Any]] = {
    "2^24 tensors": huge(8, 2**24),
    "2^24 keys": huge(16, 2**24),
    "a text of 2^36 bytes": huge(16, 9, FIRST_KEY, struct.pack("<IQ", 8, 2**36)),
    "2^32 numbers": huge(16, 9, FIRST_KEY, struct.pack("<IIQ", 9, 0, 2**32)),
    "2^32 texts": huge(16, 9, FIRST_KEY, struct.pack("<IIQ", 9, 8, 2**32)),
}


@pytest.mark.parametrize("fault", HUGE)
def test_what_would_fill_the_memory_is_refused_unread(
    fault: str, whole: Path, tmp_path: Path
) -> None:
    file = shutil.copyfile(whole, tmp_path / "bad.gguf")
    HUGE[fault](file)
    check_refused(file, "where no model has", AGAIN)


def count_of(file: Path) -> int:
    return int(struct.unpack_from("<Q", file.read_bytes(), 8)[0])


@pytest.mark.parametrize("fault", BYTES)
def test_altered_bytes_are_refused(fault: str, whole: Path, tmp_path: Path) -> None:
    file = shutil.copyfile(whole, tmp_path / "bad.gguf")
    change, words = BYTES[fault]
    change(file)
    check_refused(file, *words)


KEYS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no architecture": ({"general.architecture": "mamba"}, ["'mamba'", "It runs", "qwen2"]),
    "an unknown key": ({"qwen2.attention.alibi": 8.0}, ["attention.alibi", "another file"]),
    "a key per layer": ({"qwen2.attention.head_count_kv": [2, 2]}, ["differs by layer", "Use"]),
    "no heads": ({"qwen2.attention.head_count": 0}, ["0 heads", AGAIN]),
    "heads as text": ({"qwen2.attention.head_count": "4"}, ["'4' heads", AGAIN]),
    "no width": ({"qwen2.embedding_length": None}, ["lacks the keys embedding_length", AGAIN]),
    "layers without an end": ({"qwen2.block_count": 2**31 - 1}, ["2147483647 layers", AGAIN]),
    "a layer more": ({"qwen2.block_count": 3}, ["lacks the tensors model.layers.2", AGAIN]),
    "no layers": ({"qwen2.block_count": 0}, ["num_layers is 0", AGAIN]),
    "a base that is no number": ({"qwen2.rope.freq_base": math.nan}, ["freq_base is nan", AGAIN]),
    "a base of zero": ({"qwen2.rope.freq_base": 0.0}, ["not positive", AGAIN]),
    "heads of no width": ({"qwen2.attention.key_length": 0}, ["have 0 dimensions", AGAIN]),
    "an unknown scaling": (
        {"qwen2.rope.scaling.type": "longrope", "qwen2.rope.scaling.factor": 2.0},
        ["'longrope'", "Use"],
    ),
    "no epsilon": ({"qwen2.attention.layer_norm_rms_epsilon": None}, ["lacks", "epsilon", AGAIN]),
    "an epsilon of NaN": (
        {"qwen2.attention.layer_norm_rms_epsilon": math.nan},
        ["epsilon is nan", AGAIN],
    ),
    "2^31 positions": ({"qwen2.context_length": 2**31 - 1}, ["more than any model has", AGAIN]),
    "an alignment of 12": ({"general.alignment": 12}, ["alignment is 12", AGAIN]),
    "no tokenizer": ({"tokenizer.ggml.model": None}, ["tokenizer", "None", "tokenizer.json"]),
    "another tokenizer": ({"tokenizer.ggml.model": "rwkv"}, ["'rwkv'", "tokenizer.json"]),
    "an unknown cutting": ({"tokenizer.ggml.pre": "klingon"}, ["'klingon'", "tokenizer.json"]),
    "no tokens": ({"tokenizer.ggml.tokens": None}, ["lacks tokenizer.ggml.tokens", AGAIN]),
    "numbers as tokens": ({"tokenizer.ggml.tokens": [1, 2]}, ["tokenizer.ggml.tokens", AGAIN]),
    "other types": ({"tokenizer.ggml.token_type": [1, 1]}, ["differ in number", AGAIN]),
    "an end beyond": ({"tokenizer.ggml.eos_token_id": 4000}, ["eos_token_id is 4000", AGAIN]),
    "an end that is text": ({"tokenizer.ggml.eos_token_id": 300}, ["eos_token_id names", AGAIN]),
    "a sentinel of another kind": (
        {"tokenizer.ggml.fim_suf_token_id": 2},
        ["fim_suf_token_id names '<fim_middle>'", AGAIN],
    ),
    "merges of nothing": ({"tokenizer.ggml.merges": ["☃ ☃"]}, ["merges do not fit", AGAIN]),
}


@pytest.mark.parametrize("fault", KEYS)
def test_keys_that_cannot_be_run_are_refused(fault: str, whole: Path, tmp_path: Path) -> None:
    changes, words = KEYS[fault]
    check_refused(write_copy(whole, tmp_path / "bad.gguf", changes), *words)


def matrix(rows: int, columns: int, value: float = 0.1) -> Any:
    return np.full((rows, columns), value, np.float32)


TENSORS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a missing one": ({QUERIES: None}, ["lacks the tensors model.layers.0.self_attn.q", AGAIN]),
    "no embeddings": ({"token_embd.weight": None}, ["lacks the tensor token_embd", AGAIN]),
    "one too many": ({"blk.0.attn_z.weight": matrix(8, 8)}, ["attn_z", "no place"]),
    "a misshapen one": ({QUERIES: matrix(32, 64)}, ["(32, 64)", "asks for (32, 32)"]),
    "a smaller vocabulary": (
        {"token_embd.weight": matrix(96, 32), "output.weight": matrix(96, 32)},
        ["the tokenizer has 320 entries, the model 96"],
    ),
    "a smaller head": ({"output.weight": matrix(96, 32)}, ["lm_head.weight is (96, 32)"]),
    "a number that is none": ({QUERIES: matrix(32, 32, math.nan)}, ["not finite", AGAIN]),
    "an infinite number": ({QUERIES: matrix(32, 32, -math.inf)}, ["not finite", AGAIN]),
}


@pytest.mark.parametrize("fault", TENSORS)
def test_tensors_that_do_not_fit_are_refused(fault: str, whole: Path, tmp_path: Path) -> None:
    changes, words = TENSORS[fault]
    check_refused(write_copy(whole, tmp_path / "bad.gguf", tensors=changes), *words)


def test_a_block_whose_scale_is_no_number_is_refused(whole: Path, tmp_path: Path) -> None:
    file = write_copy(whole, tmp_path / "bad.gguf", kind="Q8_0")
    (queries,) = [t for t in gguf.GGUFReader(file).tensors if t.name == QUERIES]
    patch(file, int(queries.data_offset), "<H", 0x7E00)
    check_refused(file, "q_proj.weight holds numbers that are not finite", AGAIN)


def test_an_array_of_arrays_is_refused(whole: Path, tmp_path: Path) -> None:
    file = shutil.copyfile(whole, tmp_path / "bad.gguf")
    raw = file.read_bytes()
    merges = raw.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type")
    patch(file, merges + 4, "<I", 9)
    check_refused(file, "an array of the type 9", AGAIN)


# ---- what is no regular file ----


def run_limited(path: Path) -> str:
    """What a process of its own says of a path: it must neither wait nor fill the memory."""
    code = (
        "import sys, resource\nresource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))\n"
        "from model.errors import ModelError\nfrom model.weights.folder import *\n"
        "try:\n m = find_model(sys.argv[1]); m.weight_files; m.identity; m.preferences\n"
        " m.parameters; m.load_tokenizer()\n"
        "except ModelError as error:\n print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60, check=True
    )
    return run.stdout


STRANGE: dict[str, Callable[[Path], Any]] = {
    "FIFO": os.mkfifo,
    "device without an end": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
    "link to itself": lambda path: path.symlink_to(path),
    "link to nothing": lambda path: path.symlink_to(path.with_name("nowhere")),
}


@pytest.mark.skipif(sys.platform == "win32", reason="FIFOs and devices")
@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_file_is_no_model(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    STRANGE[kind](path)
    assert str(path) in run_limited(path)


@pytest.mark.skipif(sys.platform == "win32", reason="FIFOs and devices")
@pytest.mark.parametrize("kind", ["FIFO", "device without an end", "folder"])
@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json", "fimls"],
)
def test_what_is_no_file_in_a_folder_is_refused(name: str, kind: str, folder: Path) -> None:
    name = "fimls.json" if name == "fimls" else name
    (folder / name).unlink(missing_ok=True)
    STRANGE[kind](folder / name)
    said = run_limited(folder)
    assert str(folder) in said and name in said, said


@pytest.mark.skipif(sys.platform == "win32", reason="FIFOs and devices")
@pytest.mark.parametrize("kind", STRANGE)
def test_an_attribution_that_is_no_file_is_not_the_models(kind: str, folder: Path) -> None:
    STRANGE[kind](folder / "attribution.bin")
    assert find_model(folder).attribution.parent != folder


@pytest.mark.skipif(sys.platform == "win32", reason="FIFOs and devices")
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_loading_waits_for_no_fifo(name: str, folder: Path) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ModelError, match=name):
        load(folder)
