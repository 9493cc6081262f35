"""What the tests of exports share: toys stored in several ways, and texts that are hard to
tokenize."""

from __future__ import annotations

import functools
import inspect
import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from model.export.export import export
from model.export.gguf import QWEN2_SPLIT
from model.weights.files import INT8_ROWS
from model.weights.folder import ModelFolder, find_model
from tests.conftest import (
    GEMMA,
    GPT_BIGCODE,
    GRANITE,
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    SENTINELS,
    STABLELM,
    STARCODER2,
    write_model,
)
from training.export import int8_rows

TRICKY = [
    "def f(x):\n\treturn {'😀': 'é日本', \"it's\": x[-1]}  # we'LL\n\n\n",
    "0x1F + 1234567.89e-10 == ٣٤ ½² 100\u00a0000",
    "a\r\n  b \r\n\t\t c   \n    d     ",
    "<fim_prefix>one<fim_suffix> two<fim_middle><|endoftext|><file_sep>a.py\n<not_one>",
    "e\u0301\u200b\ufeff\U0001f468\u200d\U0001f469\u200d\U0001f467 ﬁ ǅ",
    " ",
    "",
]
MODELS = {
    "starcoder2": STARCODER2,
    "starcoder2, untied": STARCODER2 | {"tie_word_embeddings": False},
    "starcoder2, window": STARCODER2 | {"sliding_window": 64},
    "stablelm": STABLELM,
    "stablelm, parallel": STABLELM | {"use_parallel_residual": True, "use_qkv_bias": True},
    "qwen2": QWEN2,
    "qwen2, tied": QWEN2 | {"tie_word_embeddings": True},
    "llama": LLAMA,
    "llama, all biases": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "llama, wide heads": LLAMA | {"head_dim": 16},
    "qwen3": QWEN3,
    "mistral": MISTRAL,
    "granite": GRANITE,
    "gemma": GEMMA,
    "gpt_bigcode": GPT_BIGCODE,
}


def store(folder: Path, how: str) -> Path:
    """Changes how a toy's weights lie on disk."""
    weights = load_file(folder / "model.safetensors")
    if how == "int8 rows":
        save_file(int8_rows(weights), folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(
            json.dumps(config | {"quantization_config": {"quant_method": INT8_ROWS}})
        )
    elif how == "shards":
        names = sorted(weights, key=lambda name: name[::-1])  # no shard has neighbours only
        files = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(names)}
        (folder / "model.safetensors").unlink()
        for file in set(files.values()):
            save_file({n: weights[n] for n in names if files[n] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def write_pieces(
    folder: Path, *before: pre_tokenizers.PreTokenizer, like_qwen2: bool = False
) -> None:
    """A tokenizer in place of the folder's, with merges of its own; llama.cpp reads none
    without."""
    backend = Backend(models.BPE())
    if like_qwen2:  # transformers puts these in the place of whatever a qwen2's tokenizer.json has
        backend.normalizer = normalizers.NFC()
        before = (pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not like_qwen2)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=310, special_tokens=SENTINELS, show_progress=False, initial_alphabet=alphabet
    )
    backend.train_from_iterator([inspect.getsource(functools)], trainer)
    backend.save(str(folder / "tokenizer.json"))


def toy(folder: Path, kind: str = "starcoder2", how: str = "float32") -> ModelFolder:
    path = store(write_model(folder / "toy", MODELS[kind]), how)
    digits = pre_tokenizers.Digits(individual_digits=True)
    write_pieces(path, digits, like_qwen2=kind.startswith("qwen2"))
    return find_model(path)


def exported(folder: ModelFolder, tmp_path: Path, layout: str, dtype: str = "float32") -> Path:
    export(folder, tmp_path / "out", layout, dtype)
    return tmp_path / "out"
