"""What is on the disk: what fimls pulled, the hub's cache, ollama's store. Nothing is copied.

Only names, sizes and small JSON files are read. Whatever is damaged or strange there is skipped.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.catalogue.entries import entry_of, entry_of_repository, find_entry
from model.catalogue.places import hub_cache, ollama_stores, repository_of
from model.catalogue.records import read_record, records
from model.regular_files import open_regular, read_text

Origin = Literal["fimls", "hub", "ollama"]
MAX_REVISION = 1024  # bytes
MAX_JSON = 2**24  # bytes; an index of shards has a few hundred kB
GGUF_MAGIC = b"GGUF"
LATER_SHARD = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
PROJECTOR = re.compile(r"mmproj", re.IGNORECASE)  # the image half of another kind of model


@dataclass(frozen=True, slots=True)
class Installed:
    """One model on the disk."""

    name: str  # what the model setting and `locate` take
    path: Path  # a GGUF file, for ollama without the suffix, or a folder
    origin: Origin
    bytes: int
    entry: str = ""  # the name of the catalogue's entry that it is


def find_all() -> list[Installed]:
    """Every model on the disk, fimls' own first; one path is listed once."""
    found: dict[Path, Installed] = {}
    for installed in (*_pulled(), *_in_hub_cache(), *_in_ollama()):
        with contextlib.suppress(OSError):
            found.setdefault(installed.path.resolve(), installed)
    return list(found.values())


def locate(name: str) -> Path | None:
    """The model on the disk that a name means: of the catalogue, ORG/REPO[:FILE], or
    ollama/MODEL[:TAG]. None where it is not there."""
    if not name or "\0" in name:
        return None
    entry = find_entry(name)
    if entry is None and "/" not in name:
        return None
    record = read_record(entry.name if entry else name)
    if record is not None and record.is_whole():
        return record.model
    wanted = name.lower()
    if wanted.startswith("ollama/") and ":" not in wanted:
        wanted += ":latest"
    matches = []
    for installed in find_all():
        if entry is not None and installed.entry == entry.name:
            return installed.path
        if installed.name.lower() == wanted:
            return installed.path
        if _names_file(installed.name.lower(), wanted):
            matches.append(installed.path)
    if len(matches) == 1:
        return matches[0]
    return None


def _names_file(name: str, wanted: str) -> bool:
    """Whether ORG/REPO names a repository's only file, or ORG/REPO:Q4_K_M the file with that."""
    repository, _, part = wanted.partition(":")
    owner, _, file = name.partition(":")
    return owner == repository and bool(file) and (not part or part in file)


def _pulled() -> Iterator[Installed]:
    for record in records():
        if record.is_whole():
            size = sum(file.bytes for file in record.files)
            entry = find_entry(record.name) or entry_of(record.model)
            yield Installed(record.name, record.model, "fimls", size, entry.name if entry else "")


def _in_hub_cache() -> Iterator[Installed]:
    with contextlib.suppress(OSError):
        for folder in sorted(hub_cache().glob("models--*")):
            with contextlib.suppress(OSError):
                if snapshot := _snapshot(folder):
                    yield from _in_snapshot(repository_of(folder), snapshot)


def _snapshot(folder: Path) -> Path | None:
    """The revision of a cached repository to use: main, else the newest."""
    with contextlib.suppress(OSError, ValueError):
        revision = read_text(folder / "refs" / "main", MAX_REVISION).strip()
        main = folder / "snapshots" / revision
        if main.is_dir():
            return main
    snapshots = [path for path in (folder / "snapshots").iterdir() if path.is_dir()]
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def _in_snapshot(repository: str, snapshot: Path) -> Iterator[Installed]:
    if _is_model_folder(snapshot):
        size = sum(file.stat().st_size for file in snapshot.iterdir() if file.is_file())
        entry = entry_of_repository(repository)
        yield Installed(repository, snapshot, "hub", size, entry.name if entry else "")
    for file in sorted(snapshot.rglob("*.gguf")):
        if LATER_SHARD.search(file.name) or PROJECTOR.search(file.name) or not is_gguf(file):
            continue
        relative = file.relative_to(snapshot).as_posix()
        entry = entry_of(file)
        name = f"{repository}:{relative}"
        yield Installed(name, file, "hub", _size_of_gguf(file), entry.name if entry else "")


def _is_model_folder(folder: Path) -> bool:
    """Whether a folder has all that a model takes, pickled weights aside."""
    if not all((folder / name).is_file() for name in ("config.json", "tokenizer.json")):
        return False
    index = read_small_json(folder / "model.safetensors.index.json")
    if index is not None and isinstance(index.get("weight_map"), dict):
        return all((folder / str(name)).is_file() for name in set(index["weight_map"].values()))
    return any(file.is_file() for file in folder.glob("*.safetensors"))


def is_gguf(path: Path) -> bool:
    """Whether a regular file begins as a GGUF file does."""
    try:
        with os.fdopen(open_regular(path), "rb") as raw:
            return raw.read(4) == GGUF_MAGIC
    except OSError:
        return False


def _size_of_gguf(file: Path) -> int:
    """With all shards of a split one."""
    if not file.name.endswith(".gguf") or "-00001-of-" not in file.name:
        return file.stat().st_size
    start = file.name.split("-00001-of-")[0]
    return sum(shard.stat().st_size for shard in file.parent.glob(f"{start}-*-of-*.gguf"))


def _in_ollama() -> Iterator[Installed]:
    """ollama keeps a manifest for each model: JSON whose layers name blobs by their SHA-256. The
    blob of the weights is a GGUF file."""
    for store in ollama_stores():
        manifests = store / "manifests"
        with contextlib.suppress(OSError):
            for manifest in sorted(manifests.rglob("*")):
                with contextlib.suppress(OSError):
                    if installed := _from_manifest(store, manifests, manifest):
                        yield installed


def _from_manifest(store: Path, manifests: Path, manifest: Path) -> Installed | None:
    content = read_small_json(manifest)
    layers = content.get("layers") if content else None
    if not isinstance(layers, list):
        return None
    for layer in layers:
        if not isinstance(layer, dict) or not str(layer.get("mediaType")).endswith("image.model"):
            continue
        digest = str(layer.get("digest"))
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            continue
        blob = store / "blobs" / digest.replace(":", "-")
        if is_gguf(blob):
            # manifests/registry.ollama.ai/library/MODEL/TAG; other registries keep their names
            parts = manifest.relative_to(manifests).parts
            owner = "/".join(parts[1:-1]).removeprefix("library/")
            entry = entry_of(blob)
            name = f"ollama/{owner}:{parts[-1]}"
            size = blob.stat().st_size
            return Installed(name, blob, "ollama", size, entry.name if entry else "")
    return None


def read_small_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where that is no small regular file with one."""
    try:
        value = json.loads(read_text(path, MAX_JSON))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
