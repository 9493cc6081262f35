"""Writes config, tokenizer and weights as transformers' save_pretrained lays them out."""

from __future__ import annotations

import json
import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model.weights.checkpoint import Checkpoint
from model.weights.files import ModelFiles
from model.weights.folder import PREFERENCES

# Copied as they are; fimls.json because the export should do here what its source does.
COPIED = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    PREFERENCES,
)
REPLACED = ("quantization_config", "torch_dtype")  # keys of config.json, by dtype


def write_hugging_face(checkpoint: Checkpoint, out: Path, dtype: torch.dtype) -> None:
    """Fills the folder out, shard for shard. Raises ModelError, and OSError from writing."""
    folder = checkpoint.folder
    config = {key: value for key, value in folder.config.items() if key not in REPLACED}
    config["dtype"] = str(dtype).removeprefix("torch.")
    _write_json(out / "config.json", config)
    tokenizer = folder.tokenizer_json()
    (out / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    for name in COPIED:
        if (folder.path / name).exists():
            shutil.copyfile(folder.path / name, out / name)
    if not (out / "tokenizer_config.json").exists():
        _write_json(out / "tokenizer_config.json", _tokenizer_config(folder, tokenizer))
    _write_weights(checkpoint, out, dtype)


def _write_weights(checkpoint: Checkpoint, out: Path, dtype: torch.dtype) -> None:
    weight_map: dict[str, str] = {}
    shards = len(checkpoint.files)
    size = 0
    by_file = groupby(checkpoint.tensors(), key=lambda found: found[0])
    for number, (_, group) in enumerate(by_file, 1):
        file = "model.safetensors"
        if shards > 1:
            file = f"model-{number:05}-of-{shards:05}.safetensors"
        tensors = {name: tensor.to(dtype) for _, name, tensor in group}
        save_file(tensors, out / file, metadata={"format": "pt"})
        shutil.copymode(out / "config.json", out / file)  # it was made for its owner alone
        weight_map |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if shards > 1:
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        _write_json(out / "model.safetensors.index.json", index)


def _tokenizer_config(folder: ModelFiles, tokenizer: str) -> dict[str, Any]:
    """The content of tokenizer_config.json, which transformers wants beside tokenizer.json, for a
    folder that has none."""
    added = json.loads(tokenizer).get("added_tokens", [])
    special = {token["id"]: token["content"] for token in added if token["special"]}
    ends = {}
    for key in ("bos_token", "eos_token"):
        token_id = folder.config.get(f"{key}_id")  # an id, a list of them, or none
        if isinstance(token_id, int) and token_id in special:
            ends[key] = special[token_id]
    others = [token for token in special.values() if token not in ends.values()]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **ends,
        "additional_special_tokens": others,
        "clean_up_tokenization_spaces": False,
        "model_max_length": folder.max_positions,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
