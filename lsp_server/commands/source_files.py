"""Source files to measure or learn from: those of a folder, or the rows of a .jsonl file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from lsp_server.commands.once import LANGUAGES, CommandError, read_source

HELD_OUT = Path(__file__).parents[2] / "training" / "data"  # in a checkout, behind `make corpus`
SPLITS = ("test", "validation")
SUFFIXES = {
    *LANGUAGES,
    ".tsx",
    ".jsx",
    ".go",
    ".java",
    ".c",
    ".cpp",
    ".lua",
    ".php",
    ".swift",
    ".kt",
    ".scala",
} - {
    ".md",
    ".yml",
}
NOT_OWN = {
    "_vendor",
    "_vendored",
    "build",
    "dist",
    "env",
    "extern",
    "externals",
    "node_modules",
    "site-packages",
    "third_party",
    "vendor",
    "vendored",
    "venv",
    "__pycache__",
}
MAX_CHARACTERS = 200_000  # of a file that someone wrote

Packages = dict[str, list[tuple[str, str]]]
"""Package -> (path, text) of its files."""


def read_packages(path: Path | None, split: str = "test") -> Packages:
    """The files of a folder or of a .jsonl; of the held-out packages for None. Line ends become
    \\n.

    Raises CommandError.
    """
    if path is None:
        if split not in SPLITS:
            raise CommandError(f"there is no split {split!r}; choose {' or '.join(SPLITS)}")
        path = HELD_OUT / f"{split}.jsonl"
        if not path.exists():
            raise CommandError(
                f"the held-out packages ({split}.jsonl) are not here; name a folder with source "
                "files"
            )
    if not path.exists():
        raise CommandError(
            f"there is nothing at {path}; name a folder with source files, or a .jsonl file"
        )
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".jsonl":
        return _read_rows(path)
    raise CommandError(
        f"{path} is neither a folder nor a .jsonl file; name the folder that it is in"
    )


def _read_rows(path: Path) -> Packages:
    packages: Packages = {}
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    package, name, text = _row(line, f"line {number} of {path}")
                    packages.setdefault(package, []).append((name, text.replace("\r\n", "\n")))
    except UnicodeDecodeError:
        raise CommandError(f"{path} is not UTF-8; convert it first") from None
    if not packages:
        raise CommandError(f"{path} is empty; name a file with rows, or a folder with source files")
    return packages


def _row(line: str, where: str) -> tuple[str, str, str]:
    """package, path, text. Raises CommandError."""
    try:
        row = json.loads(line)
        package, path, text = row["package"], row["path"], row["text"]
    except (ValueError, LookupError, TypeError, RecursionError):
        package = path = text = None
    if not (isinstance(package, str) and isinstance(path, str) and isinstance(text, str)):
        raise CommandError(
            f'{where} is not a row {{"package": …, "path": …, "text": …}}; mend or remove it'
        )
    return package, path, text


def _read_folder(folder: Path) -> Packages:
    """Each subfolder at the top is a package; the files beside them are one, too."""
    packages: Packages = {}
    for path in _source_files(folder):
        try:
            if path.stat().st_size > 4 * MAX_CHARACTERS:
                continue
            text = read_source(path).replace("\r\n", "\n")
        except (CommandError, OSError):
            continue  # binary, in another encoding, unreadable: not what anyone edits
        if len(text) <= MAX_CHARACTERS:
            within = path.relative_to(folder)
            package = within.parts[0] if len(within.parts) > 1 else folder.resolve().name
            packages.setdefault(package, []).append((within.as_posix(), text))
    if not packages:
        raise CommandError(f"there are no source files in {folder}; name a folder that has some")
    return packages


def _source_files(folder: Path) -> Iterator[Path]:
    """In the order of their names, without hidden folders and those that hold others' code."""
    for at, folders, files in os.walk(folder):
        here = Path(at)
        folders[:] = sorted(
            name
            for name in folders
            if name not in NOT_OWN
            and not name.startswith(".")
            and not (here / name / "pyvenv.cfg").exists()
        )
        yield from (
            here / name
            for name in sorted(files)
            if Path(name).suffix in SUFFIXES and name[0] != "."
        )
