"""What fimls pulled: one record for each model, with the checksums of its files; and what it has
checked of other programs' files, whose names are their checksums."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from model.catalogue.places import RECORD, data_folder, folder_name, models_folder, repository_of
from model.catalogue.transfer import Job, has_checksum
from model.errors import ModelError
from model.private_files import write_private_file
from model.regular_files import read_text

MAX_RECORD = 2**20  # bytes; a larger file is none of ours
BLOB = re.compile(r"(?:sha256-)?([0-9a-f]{64}|[0-9a-f]{40})")  # as ollama and the hub name them
KEPT_STAMPS = 1000


@dataclass(frozen=True, slots=True)
class PulledFile:
    path: str
    bytes: int
    checksum: str  # SHA-256, or git's SHA-1 of a small file: 64 or 40 hexadecimal digits
    mtime_ns: int = 0  # the time of change when the file had this checksum


@dataclass(frozen=True, slots=True)
class Record:
    """One model that was pulled."""

    name: str  # of the catalogue, or ORG/REPO[:FILE]
    path: str  # what the model setting takes: a GGUF file or a folder
    source: str  # "hub" or "packages"
    repository: str
    revision: str  # the commit on the hub; '' from packages
    licence: str
    files: tuple[PulledFile, ...]

    @property
    def model(self) -> Path:
        return Path(self.path)

    @property
    def folder(self) -> Path:
        return models_folder() / folder_name(self.name)

    def is_whole(self) -> bool:
        """Whether each file is there with its size. The checksums are not computed anew."""
        with contextlib.suppress(OSError):
            sizes = [Path(file.path).stat().st_size for file in self.files]
            return bool(sizes) and sizes == [file.bytes for file in self.files]
        return False


def pulled_file(path: Path, checksum: str) -> PulledFile:
    """For a file whose checksum was just computed. Raises OSError."""
    status = path.stat()
    return PulledFile(str(path), status.st_size, checksum, status.st_mtime_ns)


def check_unaltered(files: Iterable[Path]) -> None:
    """Those of the files that were pulled have the checksums that they had then, and blobs in the
    caches of ollama and of Hugging Face's library those that are their names.

    A file is read only once, and again if its size or time of change is another. Raises ModelError
    with the remedy.
    """
    real = {file.resolve() for file in files}
    named = {file for file in real if _named_checksum(file)}
    for record in records():
        seen = []
        for pulled in record.files:
            path = Path(pulled.path)
            current = pulled
            if path.resolve() in real:
                current = _checked(record, pulled, path)
                named.discard(path.resolve())
            seen.append(current)
        if tuple(seen) != record.files:
            with contextlib.suppress(OSError):  # it is then checked again the next time
                write_record(replace(record, files=tuple(seen)))

    if named:
        _check_names(sorted(named))


def _named_checksum(path: Path) -> str:
    """The checksum that is a blob's name; "" of another file."""
    found = BLOB.fullmatch(path.name) if path.parent.name == "blobs" else None
    return found[1] if found else ""


def _check_names(blobs: Iterable[Path]) -> None:
    """Raises ModelError."""
    kept = data_folder() / "checked.json"
    try:
        stamps = dict(json.loads(read_text(kept, MAX_RECORD)))
    except (OSError, ValueError, TypeError, RecursionError):
        stamps = {}
    before = dict(stamps)
    for blob in blobs:
        try:
            status = blob.stat()
            stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
            if stamps.get(str(blob)) == stamp:
                continue
            is_whole = has_checksum(blob, _named_checksum(blob), Job())
        except OSError as error:
            raise ModelError(
                f"{blob} cannot be read ({error.strerror}). See to the file."
            ) from None
        if not is_whole:
            repository = repository_of(blob)
            fetch = f"fimls pull {repository}" if repository else "ollama pull"
            raise ModelError(
                f"{blob} is damaged: its content has another checksum than its name says. Delete "
                f"it and fetch the model anew (`{fetch}`)."
            )
        stamps[str(blob)] = stamp
    if stamps != before:
        with contextlib.suppress(OSError):  # it is then checked again the next time
            latest = dict(list(stamps.items())[-KEPT_STAMPS:])
            write_private_file(kept, json.dumps(latest).encode())


def _checked(record: Record, pulled: PulledFile, path: Path) -> PulledFile:
    """Raises ModelError."""
    try:
        current = pulled_file(path, pulled.checksum)
        if current == pulled:
            return pulled
        if current.bytes == pulled.bytes and has_checksum(path, pulled.checksum, Job()):
            return current
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}). See to the file.") from None
    raise ModelError(
        f"{path} was altered after it was pulled. `fimls pull {record.name}` fetches it anew."
    )


def write_record(record: Record) -> None:
    """Raises OSError."""
    content = json.dumps(asdict(record), indent=1).encode()
    write_private_file(record.folder / RECORD, content)


def read_record(name: str) -> Record | None:
    return _read(models_folder() / folder_name(name) / RECORD)


def records() -> Iterator[Record]:
    """Every record that can be read, by name."""
    with contextlib.suppress(OSError):
        for folder in sorted(models_folder().iterdir()):
            if record := _read(folder / RECORD):
                yield record


def _read(path: Path) -> Record | None:
    """None where there is none, or none of ours: it is then fetched and written anew."""
    try:
        raw = json.loads(read_text(path, MAX_RECORD))
        raw["files"] = tuple(PulledFile(**file) for file in raw["files"])
        record = Record(**raw)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    if isinstance(record.name, str) and isinstance(record.path, str):
        return record
    return None


def find_record(name: str) -> Record | None:
    """The record of a model by its name in any case, whole or not."""
    for record in records():
        if record.name.lower() == name.lower():
            return record
    return None
