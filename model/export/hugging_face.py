"""A model folder -> one that other programs run: the Hugging Face layout for transformers, GGUF for
llama.cpp.

    python -m model.export bundled DIR --format hf --dtype float32

Int8 rows become the floats that they stand for. A new folder is made whole beside its place and
then moved there; nothing that is there already is replaced.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from model.errors import ModelError
from model.export.gguf import TYPES, write_gguf
from model.loading import DTYPES, check_vocabulary
from model.tokenizer import Tokenizer
from model.weights.checkpoint import COMPUTED, HEAD, Checkpoint
from model.weights.folder import ModelFolder, find_model, read_json

LAYOUTS = {
    "hf": tuple(DTYPES),
    "gguf": tuple(TYPES),
}  # with the types of weights that they can hold
# What is known of a model and what may be done with it.
PAPERS = ("MODEL_CARD*", "README*", "LICENSE*", "NOTICE*")
# Copied into the Hugging Face layout as they are; fimls.json because the export should do here what
# its source does.
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "fimls.json",
)


def export(folder: ModelFolder, target: Path, layout: str, dtype: str) -> None:
    """Makes the folder target, which must not exist or be empty. Raises ModelError.

    layout: "hf" or "gguf"; dtype: "float32", "float16" or "bfloat16", for gguf also "q8_0".
    """
    if layout not in LAYOUTS:
        raise ModelError(f"There is no format {layout!r}. Use one of {', '.join(LAYOUTS)}.")
    if dtype not in LAYOUTS[layout]:
        raise ModelError(
            f"The format {layout} has no dtype {dtype!r}. Use one of {', '.join(LAYOUTS[layout])}."
        )
    _check(folder)
    with _new_folder(target) as out:
        if layout == "hf":
            _write_hugging_face(folder, out, dtype)
        else:
            write_gguf(folder, out, dtype)
        for paper in {path for pattern in PAPERS for path in folder.path.glob(pattern)}:
            if paper.is_file():
                shutil.copyfile(paper, out / paper.name)


def _check(folder: ModelFolder) -> None:
    """Raises ModelError where weights or tokenizer are not those that config.json describes."""
    checkpoint = Checkpoint.open(folder)
    config = checkpoint.config
    table = checkpoint.table
    check_vocabulary(folder, Tokenizer(folder.path / "tokenizer.json"), config.vocab_size)
    expected: dict[str, tuple[int, ...]] = {name: slot.shape for name, slot in table.items()}
    stored = {name: shape for name, shape in folder.shapes.items() if not name.endswith(COMPUTED)}
    if config.tie_embeddings:
        stored.pop(HEAD, None)
    for name in sorted(expected.keys() | stored.keys()):
        if stored.get(name) != expected.get(name):
            raise ModelError(
                f"{folder.path}: {name} is {stored.get(name, 'missing')}, but config.json asks for "
                f"{expected.get(name, 'no such tensor')}. Check that weights and config.json "
                "belong together."
            )


@contextlib.contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes the target at the end, or is gone when anything
    fails."""
    target = target.resolve()
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ModelError(
                f"{target} is there already and not empty. Name a new or an empty folder."
            )
        partial.mkdir(parents=True)
        yield partial
        if (
            target.exists()
        ):  # someone may stand in it, or it is a mount: filled rather than replaced
            for file in sorted(
                partial.iterdir(), key=lambda f: f.name == "config.json"
            ):  # without it, no model
                file.rename(target / file.name)
        else:
            partial.rename(target)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{target} cannot be written ({error}). Name a folder with enough room."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_hugging_face(folder: ModelFolder, out: Path, dtype: str) -> None:
    """Config, tokenizer and weights as transformers' save_pretrained lays them out, shard for
    shard."""
    config = {
        k: v for k, v in folder.config.items() if k not in ("quantization_config", "torch_dtype")
    }
    _write_json(out / "config.json", config | {"dtype": dtype})
    for name in COPIED:
        if (folder.path / name).exists():
            shutil.copyfile(folder.path / name, out / name)
    if not (out / "tokenizer_config.json").exists():
        _write_json(out / "tokenizer_config.json", _tokenizer_config(folder))
    weight_map: dict[str, str] = {}
    shards, size = len(folder.weight_files), 0
    for number, (_, group) in enumerate(
        groupby(Checkpoint.open(folder).tensors(), key=lambda found: found[0]), 1
    ):
        name = (
            f"model-{number:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        )
        tensors = {name: tensor.to(DTYPES[dtype]) for _, name, tensor in group}
        save_file(tensors, out / name, metadata={"format": "pt"})
        shutil.copymode(out / "config.json", out / name)  # it was made for its owner alone
        weight_map |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if shards > 1:
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        _write_json(out / "model.safetensors.index.json", index)


def _tokenizer_config(folder: ModelFolder) -> dict[str, Any]:
    """What transformers wants to know beside tokenizer.json, for a folder that does without."""
    added = read_json(folder.path / "tokenizer.json").get("added_tokens", [])
    named = {token["id"]: token["content"] for token in added if token["special"]}
    ids = {
        key: folder.config.get(f"{key}_id") for key in ("bos_token", "eos_token")
    }  # an id, a list of them, or none
    ends = {key: named[id_] for key, id_ in ids.items() if isinstance(id_, int) and id_ in named}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **ends,
        "additional_special_tokens": [
            token for token in named.values() if token not in ends.values()
        ],
        "clean_up_tokenization_spaces": False,
        "model_max_length": folder.max_positions,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="fimls models export", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("model", help="'bundled' or the path of a model folder")
    parser.add_argument("folder", type=Path, help="a new or an empty one")
    parser.add_argument("--format", required=True, dest="layout")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    try:
        target = arguments.folder.expanduser()
    except RuntimeError as error:  # ~ of an unknown user
        print(f"fimls: {arguments.folder}: {error} Name a new or an empty folder.", file=sys.stderr)
        return 2
    try:
        export(find_model(arguments.model), target, arguments.layout, arguments.dtype)
    except ModelError as error:
        print(f"fimls: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    size = sum(file.stat().st_size for file in target.iterdir())
    print(
        f"{target}: {arguments.model} as {arguments.layout}, {arguments.dtype}, {size / 1e6:.1f} MB"
    )
    return 0
