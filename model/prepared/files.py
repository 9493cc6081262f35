"""The files of prepared weights: one a model, in safetensors' form, in the user's cache folder."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model.private_files import is_private_file

SUFFIX = ".safetensors"
MODEL = "model"  # the entry of the metadata that holds the path of the model's own files
MAX_HEADER = 2**24  # bytes; a large model's has 100 kB
KEPT_S = 30 * 86400.0  # since an engine used it last
UNFINISHED_S = 86400.0  # what no process can be writing any longer
NOT_IN_NAMES = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, slots=True)
class PreparedFile:
    path: Path
    model: Path
    bytes: int


def prepared_folder(cache_dir: Path) -> Path:
    return cache_dir / "weights"


def file_name(model: Path, key: str) -> str:
    """The name says which model it is, for those who look into the folder."""
    return f"{NOT_IN_NAMES.sub('-', model.stem)[:80]}-{key}{SUFFIX}"


def prepared_files(cache_dir: Path) -> Iterator[PreparedFile]:
    """The prepared files that there are. What is damaged or strange is skipped."""
    for path in sorted(prepared_folder(cache_dir).glob(f"*{SUFFIX}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            yield PreparedFile(path, Path(_metadata(path)[MODEL]), path.stat().st_size)


def _metadata(path: Path) -> dict[str, str]:
    """Raises OSError, ValueError and KeyError for a file that is no such file."""
    if not is_private_file(path):
        raise ValueError(f"{path} is not this user's alone")
    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError(f"{path} has a header of {length} bytes")
        metadata: dict[str, str] = json.loads(raw.read(length))["__metadata__"]
    return metadata


def prepared_of(cache_dir: Path, model: Path) -> list[PreparedFile]:
    """Those of one model."""
    return [file for file in prepared_files(cache_dir) if file.model == model.absolute()]


def remove_prepared(cache_dir: Path, model: Path) -> int:
    """Deletes what is prepared of a model; returns the bytes that this frees."""
    freed = 0
    for file in prepared_of(cache_dir, model):
        with contextlib.suppress(OSError):  # on Windows an engine may have it open
            file.path.unlink()
            freed += file.bytes
    return freed


def prune(cache_dir: Path, kept: Path, model: Path) -> None:
    """Deletes what is of no use beside the file `kept` of a model: its older files, those that no
    engine used for long or whose model is gone, and what was left unfinished."""
    for file in prepared_files(cache_dir):
        if file.path == kept:
            continue
        with contextlib.suppress(OSError):
            unused_s = time.time() - file.path.stat().st_mtime
            if file.model == model or unused_s > KEPT_S or not os.path.lexists(file.model):
                file.path.unlink()
    for path in prepared_folder(cache_dir).glob("*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > UNFINISHED_S:
                path.unlink()
