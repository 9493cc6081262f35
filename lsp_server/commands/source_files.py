"""Source files that commands read: one file, those of a folder, or the rows of a .jsonl file."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePath

from lsp_server.commands.errors import CommandError
from lsp_server.context.secret_files import is_secret_file

HELD_OUT = Path(__file__).parents[2] / "training" / "data"  # after `make corpus`
SPLITS = ("test", "validation")
MAX_FILE_BYTES = 512 * 2**20  # of a file that the user names
MAX_CHARACTERS = 200_000  # of a file in a folder; hardly anybody writes a longer one
LANGUAGES = {  # LSP's identifiers where they are not the suffix itself
    ".py": "python",
    ".pyi": "python",
    ".js": "javascript",
    ".ts": "typescript",
    ".rs": "rust",
    ".rb": "ruby",
    ".md": "markdown",
    ".sh": "shellscript",
    ".h": "c",
    ".cc": "cpp",
    ".hpp": "cpp",
    ".cs": "csharp",
    ".yml": "yaml",
}
SUFFIXES = LANGUAGES.keys() - {".md", ".yml"} | set(
    ".tsx .jsx .go .java .c .cpp .lua .php .swift .kt .scala".split()
)
SKIPPED_FOLDERS = set(  # they hold other people's code, or what a build made
    "_vendor _vendored build dist env extern externals node_modules site-packages third_party "
    "vendor vendored venv __pycache__".split()
)

Packages = dict[str, list[tuple[str, str]]]
"""Package -> (path, text) of its files."""


def language_of(path: PurePath) -> str:
    """LSP's identifier of a file's language, by its suffix."""
    return LANGUAGES.get(path.suffix, path.suffix[1:])


def read_source(path: Path) -> str:
    """The text of a source file; line ends stay as they are. Raises CommandError, OSError."""
    if not path.exists():
        raise CommandError(f"there is no file {path}; check the path")
    if not path.is_file():
        raise CommandError(f"{path} is not a file; name a source file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise CommandError(
            f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; complete in a smaller file"
        )
    raw = path.read_bytes()
    if b"\0" in raw[:8192]:
        raise CommandError(f"{path} is a binary file; name a text file")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is not UTF-8 (byte {error.start}); convert it first") from None


def read_packages(path: Path | None, split: str = "test") -> Packages:
    """The files of a folder or of a .jsonl file; without a path, those of the held-out packages.

    Line ends become \\n. Raises CommandError, OSError.
    """
    if path is None:
        path = held_out_file(split)
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


def held_out_file(split: str) -> Path:
    """The .jsonl file of a split of the held-out packages. Raises CommandError."""
    if split not in SPLITS:
        raise CommandError(f"there is no split {split!r}; choose {' or '.join(SPLITS)}")
    path = HELD_OUT / f"{split}.jsonl"
    if not path.exists():
        raise CommandError(
            f"the held-out packages ({path.name}) are not here; name a folder with source files"
        )
    return path


def _read_rows(path: Path) -> Packages:
    packages: Packages = {}
    for where, line in lines_of(path):
        package, name, text = _parse_row(line, where)
        packages.setdefault(package, []).append((name, text.replace("\r\n", "\n")))
    if not packages:
        raise CommandError(f"{path} is empty; name a file with rows, or a folder with source files")
    return packages


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a .jsonl file that are not blank, each after the words for its place; also of
    a .jsonl.gz. Raises CommandError, OSError."""
    try:
        compressed = path.suffix == ".gz"
        with (gzip.open if compressed else open)(
            path, "rt", encoding="utf-8", newline="\n"
        ) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"line {number} of {path}", line
    except UnicodeDecodeError:
        raise CommandError(f"{path} is not UTF-8; convert it first") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise CommandError(f"{path} is no whole gzip file; fetch it again") from None


def _parse_row(line: str, where: str) -> tuple[str, str, str]:
    """Package, path and text of a row. Raises CommandError."""
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        row = json.loads(line)
        package = row["package"]
        path = row["path"]
        text = row["text"]
        if isinstance(package, str) and isinstance(path, str) and isinstance(text, str):
            return package, path, text
    raise CommandError(
        f'{where} is not a row {{"package": …, "path": …, "text": …}}; mend or remove it'
    )


def _read_folder(folder: Path) -> Packages:
    """Each subfolder at the top is a package; the files directly in the folder are one, too."""
    packages: Packages = {}
    for path in _source_files(folder):
        try:
            if path.stat().st_size > 4 * MAX_CHARACTERS:
                continue
            text = read_source(path).replace("\r\n", "\n")
        except (CommandError, OSError):
            continue  # binary, in another encoding or unreadable: nobody edits such a file
        if len(text) <= MAX_CHARACTERS:
            within = path.relative_to(folder)
            package = within.parts[0]
            if len(within.parts) == 1:
                package = folder.resolve().name
            packages.setdefault(package, []).append((within.as_posix(), text))
    if not packages:
        raise CommandError(f"there are no source files in {folder}; name a folder that has some")
    return packages


def _source_files(folder: Path) -> Iterator[Path]:
    """Sorted by name; secret files, hidden files and folders, and folders of others' code, are left
    out."""
    for current, subfolders, files in os.walk(folder):
        here = Path(current)
        subfolders[:] = sorted(name for name in subfolders if _is_own(here / name))
        for name in sorted(files):
            readable = Path(name).suffix in SUFFIXES and not name.startswith(".")
            if readable and not is_secret_file(here / name):
                yield here / name


def _is_own(folder: Path) -> bool:
    if folder.name.startswith(".") or folder.name in SKIPPED_FOLDERS:
        return False
    return not (folder / "pyvenv.cfg").exists()  # a virtual environment
