"""What fimls pulled: one record for each model, with the checksums of its files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from model.catalogue.places import RECORD, folder_name, models_folder
from model.catalogue.transfer import Job, has_checksum
from model.errors import ModelError
from model.private_files import write_private_file
from model.regular_files import read_text

MAX_RECORD = 2**20  # bytes; a larger file is none of ours


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
    """Those of the files that were pulled have the checksums that they had then.

    A file is read only if its size or time of change is another. Raises ModelError with the remedy.
    """
    real = {file.resolve() for file in files}
    for record in records():
        seen = []
        for pulled in record.files:
            path = Path(pulled.path)
            current = pulled
            if path.resolve() in real:
                current = _checked(record, pulled, path)
            seen.append(current)
        if tuple(seen) != record.files:
            with contextlib.suppress(OSError):  # it is then checked again the next time
                write_record(replace(record, files=tuple(seen)))


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
