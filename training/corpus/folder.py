"""A corpus folder on disk: whole or not there. Files appear under their names only when all of them
are written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

SPLITS = ("test", "validation", "train")
FILES = (*(f"{split}.jsonl" for split in SPLITS), "manifest.json")


class CorpusError(Exception):
    """One line for the user: what is wrong with the corpus and what mends it."""


class Row(NamedTuple):
    """One file of the corpus."""

    package: str
    path: str
    text: str  # not empty


def rows(path: Path) -> Iterator[Row]:
    """The files in train.jsonl or another split. Raises CorpusError for a file or a line that
    `build` never wrote."""
    try:
        with path.open(
            "rb"
        ) as lines:  # decoded one by one, so that bad UTF-8 has a line number, too
            for number, line in enumerate(lines, 1):
                try:
                    fields = json.loads(line.decode())
                    row = Row(fields["package"], fields["path"], fields["text"])
                except (ValueError, KeyError, TypeError, RecursionError):
                    row = None
                if row is None or not row.text or not all(isinstance(field, str) for field in row):
                    raise CorpusError(
                        f"{path}, line {number}, is no row of a corpus: build it again (make "
                        "corpus)"
                    )
                yield row
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror}): make corpus") from None


class Sink:
    """A file being written, with its size and SHA-256."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.digest = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.file.write(data)
        self.size += len(data)
        self.digest.update(data)
        return len(data)

    def summary(self) -> dict[str, Any]:
        return {"bytes": self.size, "sha256": self.digest.hexdigest()}


@contextmanager
def partial(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Sink]]:
    """Files NAME.partial, renamed in this order when the block is left in good order, deleted when
    it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.partial" for name in names}
    try:
        with ExitStack() as stack:
            yield {name: Sink(stack.enter_context(path.open("wb"))) for name, path in paths.items()}
        for name, path in paths.items():
            path.replace(folder / name)
    finally:
        for path in paths.values():
            path.unlink(missing_ok=True)


def read_manifest(data: Path) -> dict[str, Any]:
    """The manifest of a whole corpus. Raises CorpusError where a file is missing or cut short."""
    try:
        manifest: dict[str, Any] = json.loads((data / "manifest.json").read_text())
        written = {name: summary["bytes"] for name, summary in manifest["written"].items()}
    except FileNotFoundError:
        raise CorpusError(f"{data} holds no corpus: make corpus") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CorpusError(
            f"{data}/manifest.json is broken or of an older kind: make corpus"
        ) from None
    for name, size in written.items():
        there = path.stat().st_size if (path := data / name).is_file() else 0
        if there != size:
            raise CorpusError(
                f"{path} has {there} of {size} bytes: build the corpus again (make corpus)"
            )
    return manifest
