"""Checks a model folder and makes another one from it, in the format asked for."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from model.errors import ModelError
from model.export.gguf import TYPES, write_gguf
from model.export.hugging_face import write_hugging_face
from model.loading import check_vocabulary
from model.precision.devices import DTYPES
from model.weights.checkpoint import HEAD, Checkpoint
from model.weights.files import ModelFiles
from model.weights.tensors import COMPUTED

# The formats, each with the types of weights that it can hold.
LAYOUTS = {"hf": tuple(DTYPES), "gguf": tuple(TYPES)}
# Papers about a model and its licence, which go with it.
PAPERS = ("MODEL_CARD*", "README*", "LICENSE*", "NOTICE*")


def export(folder: ModelFiles, target: Path, layout: str, dtype: str) -> None:
    """Makes the folder target, which must not exist or be empty. Raises ModelError.

    layout: "hf" or "gguf"; dtype: "float32", "float16" or "bfloat16", for gguf also "q8_0". Int8
    rows become the floats that they stand for.
    """
    if layout not in LAYOUTS:
        raise ModelError(f"There is no format {layout!r}. Use one of {', '.join(LAYOUTS)}.")
    if dtype not in LAYOUTS[layout]:
        raise ModelError(
            f"The format {layout} has no dtype {dtype!r}. Use one of {', '.join(LAYOUTS[layout])}."
        )
    checkpoint = Checkpoint.open(folder)
    check_vocabulary(folder, folder.load_tokenizer(), checkpoint.config.vocab_size)
    _check_weights(checkpoint)
    with _new_folder(target) as out:
        if layout == "hf":
            write_hugging_face(checkpoint, out, DTYPES[dtype])
        else:
            write_gguf(checkpoint, out, dtype)
        for pattern in PAPERS:  # of a folder; beside a GGUF file lie papers of anything
            for paper in folder.path.glob(pattern):
                if paper.is_file():
                    shutil.copyfile(paper, out / paper.name)


def _check_weights(checkpoint: Checkpoint) -> None:
    """Raises ModelError where the weights are not those that config.json describes."""
    folder = checkpoint.folder
    expected = {name: slot.shape for name, slot in checkpoint.table.items()}
    stored = {
        name: shape for name, shape in checkpoint.shapes.items() if not name.endswith(COMPUTED)
    }
    if checkpoint.config.tie_embeddings:
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
    """Yields a folder to write into. It becomes the target at the end, or is removed when anything
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
        _move(partial, target)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{target} cannot be written ({error}). Name a folder with enough room."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move(partial: Path, target: Path) -> None:
    """An empty target is filled rather than replaced: it may be a mount, or somebody's working
    directory."""
    if not target.exists():
        partial.rename(target)
        return
    # config.json comes last: without it the folder is no model yet.
    for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
        file.rename(target / file.name)
