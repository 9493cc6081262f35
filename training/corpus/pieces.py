"""The corpus as one tar.xz in pieces, small enough to be stored and sent.

It is one stream since files that resemble each other shrink best together: `cat corpus.tar.xz.* |
tar -xJ` opens it.
"""

from __future__ import annotations

import json
import lzma
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

from training.corpus.folder import FILES, CorpusError, partial, read_manifest

PIECE_BYTES = 25_000_000


class Pieces:
    """A write-only stream, cut into corpus.tar.xz.000, .001, ..., which end in .partial until it is
    closed."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size, self.sizes = folder, size, list[int]()

    def path(self, index: int) -> Path:
        return self.folder / f"corpus.tar.xz.{index:03}"

    def write(self, data: bytes) -> int:
        done = 0
        while done < len(data):
            if not self.sizes or self.sizes[-1] == self.size:
                self.sizes.append(0)
            part = data[done : done + self.size - self.sizes[-1]]
            with Path(f"{self.path(len(self.sizes) - 1)}.partial").open("ab") as file:
                file.write(part)
            self.sizes[-1] += len(part)
            done += len(part)
        return done

    def close(self) -> None:
        for index in range(len(self.sizes)):
            Path(f"{self.path(index)}.partial").replace(self.path(index))


def pack(data: Path, out: Path, piece_bytes: int = PIECE_BYTES) -> list[int]:
    """Writes the pieces into `out` in place of older ones; their sizes. Raises CorpusError."""
    read_manifest(data)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("corpus.tar.xz.*"):
        old.unlink()
    pieces = Pieces(out, piece_bytes)
    with tarfile.open(fileobj=pieces, mode="w|xz") as tar:  # type: ignore[call-overload]
        for name in reversed(FILES):  # the manifest first
            entry = tarfile.TarInfo(
                name
            )  # no owner, no date: the same corpus gives the same pieces
            entry.size = (data / name).stat().st_size
            with (data / name).open("rb") as file:
                tar.addfile(entry, file)
    pieces.close()
    return pieces.sizes


class Joined:
    """The pieces of a folder as one read-only stream."""

    def __init__(self, paths: list[Path]) -> None:
        self.files = (path.open("rb") for path in paths)
        self.file = next(self.files)

    def read(self, size: int) -> bytes:
        while not (data := self.file.read(size)):
            self.file.close()
            if (following := next(self.files, None)) is None:
                return b""
            self.file = following
        return data

    def close(self) -> None:
        self.file.close()


def unpack(pieces: Path, data: Path) -> None:
    """Restores the corpus from its pieces, checked against its manifest. Raises CorpusError."""
    paths = sorted(pieces.glob("corpus.tar.xz.[0-9][0-9][0-9]"))
    if not paths:
        raise CorpusError(f"{pieces} holds no pieces corpus.tar.xz.000, ...: make them with `pack`")
    try:
        with (
            partial(data, FILES) as sinks,
            closing(Joined(paths)) as stream,
            tarfile.open(fileobj=stream, mode="r|xz") as tar,  # type: ignore[call-overload]
        ):
            written: dict[str, Any] = {}
            for entry in tar:
                if (opened := tar.extractfile(entry)) is None:
                    raise ValueError(f"{entry.name} is no file")
                if entry.name == "manifest.json":
                    sinks[entry.name].write(text := opened.read())
                    written = json.loads(text)["written"]
                    continue
                while block := opened.read(1 << 20):
                    sinks[entry.name].write(block)
            if not written:
                raise ValueError("the manifest is missing")
            if wrong := [name for name in written if sinks[name].summary() != written[name]]:
                raise ValueError(f"{', '.join(wrong)} came out wrong")
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError, KeyError, TypeError) as error:
        problem = f"the {len(paths)} pieces in {pieces} are no whole corpus ({error})"
        raise CorpusError(f"{problem}: copy them again") from error
