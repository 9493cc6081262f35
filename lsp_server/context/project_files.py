"""The files of a workspace folder that a model may be shown: their paths, and their parts.

Everything here reads the disk, and runs on a thread. What it takes is bounded, whatever the folder
holds: entries, files, bytes and time. Nothing is watched; a folder is looked at again when it is
asked for some time later.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from fim.project import Part, parts_of
from fim.secrets import IgnoreRules, is_secret_path, mask
from lsp_server.context.secret_files import IGNORE_FILE, MAX_BYTES, MOST_FOLDERS
from model.regular_files import read_bytes

LARGEST = 1 << 18  # bytes of a file; larger ones are seldom written by hand
LONGEST_LINE = 200  # characters of a line on the average: what a tool made has longer ones
MOST_ENTRIES = 20_000  # of folders that are looked at
LIST_S = 1.0  # for them
KEPT_S = 30.0  # a list of files
MOST_READ = 400  # files at a time,
READ_S = 0.5  # and so long; what is known by then is used, and the next time goes on
KEPT_FILES = 2000  # whose parts are remembered
REST_S = 0.001  # between two files, for the threads that somebody waits for
SKIPPED = frozenset(  # they hold what others wrote, or what a tool made
    "node_modules site-packages __pycache__ venv env dist build target out vendor vendored "
    "third_party externals".split()
)
FAMILIES = (  # of languages whose files say something about each other, with their suffixes
    ("python", ".py .pyi"),
    ("javascript", ".js .jsx .mjs .cjs .ts .tsx .mts .vue .svelte"),
    ("go", ".go"),
    ("rust", ".rs"),
    ("java", ".java .kt .scala"),
    ("c", ".c .h .cc .cpp .cxx .hh .hpp .hxx .cu .cuh"),
    ("csharp", ".cs"),
    ("ruby", ".rb"),
    ("php", ".php"),
    ("lua", ".lua"),
    ("swift", ".swift"),
    ("shellscript", ".sh .bash"),
)
FAMILY = {suffix: family for family, suffixes in FAMILIES for suffix in suffixes.split()}
LANGUAGE = {  # LSP's identifier, where it is not the family's
    **dict.fromkeys((".ts", ".mts"), "typescript"),
    ".tsx": "typescriptreact",
    ".jsx": "javascriptreact",
    **dict.fromkeys(".cc .cpp .cxx .h .hh .hpp .hxx .cu .cuh".split(), "cpp"),
    ".kt": "kotlin",
    ".scala": "scala",
    ".vue": "vue",
    ".svelte": "svelte",
}


@dataclass(frozen=True, slots=True)
class _Known:
    """The parts of a file as it was."""

    changed: int  # nanoseconds
    size: int
    parts: tuple[Part, ...]


class ProjectFiles:
    """The files below one folder. One thread at a time uses it."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))
        self._listed: dict[str, tuple[float, list[str]]] = {}  # by family, with time.monotonic()
        self._known: dict[str, _Known] = {}

    def paths(self, family: str) -> list[str]:
        """The paths of a family's files, relative to the root. Those near the root come first."""
        listed, found = self._listed.get(family, (0.0, []))
        if not listed or time.monotonic() - listed > KEPT_S:
            found = list(_files(self.root, family))
            self._listed[family] = (time.monotonic(), found)
        return found

    def relative(self, path: Path) -> str | None:
        """The path of a file below the root, where links lead; None for one that is elsewhere."""
        real = Path(os.path.realpath(path))
        return real.relative_to(self.root).as_posix() if real.is_relative_to(self.root) else None

    def may_show(self, path: str) -> bool:
        """Whether a file below the root may be shown, by its name and place; for open documents."""
        return not is_secret_path(path) and not _is_ignored(self.root / path, self.root)

    def parts(self, path: str) -> tuple[Part, ...]:
        """The parts of a file; none where it cannot be read or is none to be shown."""
        try:
            status = (self.root / path).lstat()
        except (OSError, ValueError):
            return ()
        known = self._known.get(path)
        if known and (known.changed, known.size) == (status.st_mtime_ns, status.st_size):
            return known.parts
        text = self.text(path)
        parts = () if text is None else parts_of(text, path, language_of(path))
        if len(self._known) >= KEPT_FILES:
            self._known.clear()
        self._known[path] = _Known(status.st_mtime_ns, status.st_size, parts)
        return parts

    def text(self, path: str) -> str | None:
        """The text of a file; None where it cannot be read or is none to be shown."""
        full = self.root / path
        try:
            if Path(os.path.realpath(full)) != full:  # a link, since it was listed
                return None
            text = read_bytes(full, LARGEST).decode("utf-8")
        except (OSError, ValueError):
            return None
        lines = 1 + text.count("\n")
        return None if "\0" in text or len(text) > LONGEST_LINE * lines else text

    def read(self, paths: list[str]) -> Iterator[tuple[str, tuple[Part, ...]]]:
        """The parts of files, as far as there is time."""
        until = time.monotonic() + READ_S
        read = 0
        for path in paths:
            fresh = path not in self._known
            read += fresh
            if fresh and (time.monotonic() > until or read > MOST_READ):
                continue
            if parts := self.parts(path):
                yield path, parts
            if fresh:
                time.sleep(REST_S)


def language_of(path: str) -> str:
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122 (Path would take longer)
    return LANGUAGE.get(suffix, FAMILY.get(suffix, ""))


def family_of(path: str) -> str:
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122
    return FAMILY.get(suffix, "")


def has_secret(text: str, part: Part) -> bool:
    """Whether something in a part of a text is secret, or in the lines shown above it."""
    masked = _masked(text)
    shown = masked[part.start : part.end] == text[part.start : part.end]
    return not shown or any(head not in masked for head in part.around)


@lru_cache(8)
def _masked(text: str) -> str:
    return mask(text, 0, len(text)).text


def _files(root: Path, family: str) -> Iterator[str]:
    """The paths of a family's files below a folder, those of a folder before those of its
    folders. Links are not followed."""
    until = time.monotonic() + LIST_S
    waiting = [(root, "", _rules_above(root))]
    entries = 0
    for folder, prefix, above in waiting:  # grows meanwhile
        own = _rules(folder)
        if own is None:  # what is to be ignored cannot be read
            continue
        around = [*above, (folder, own)] if own else above
        try:
            with os.scandir(folder) as found:
                inside = sorted(islice(found, MOST_ENTRIES - entries), key=lambda each: each.name)
        except OSError:
            continue
        for entry in inside:
            entries += 1
            if entries % 64 == 0 and time.monotonic() > until:
                return
            path = prefix + entry.name
            is_folder = _kind(entry)
            if is_folder is None or entry.name.startswith(".") or not entry.name.isprintable():
                continue
            if is_folder and entry.name in SKIPPED:
                continue
            if not is_folder and (family_of(entry.name) != family or is_secret_path(path)):
                continue
            if any(_says(each, root / path, is_folder) for each in around):
                continue
            if is_folder:
                waiting.append((root / path, path + "/", around))
            else:
                yield path
        if entries >= MOST_ENTRIES:
            return


Rules = tuple[IgnoreRules, ...]
RULES = (IGNORE_FILE, ".gitignore", ".git/info/exclude")


def _kind(entry: os.DirEntry[str]) -> bool | None:
    """Whether an entry is a folder; None for what is neither that nor a regular file."""
    try:
        if entry.is_dir(follow_symlinks=False):
            return True
        return False if entry.is_file(follow_symlinks=False) else None
    except OSError:
        return None


def _rules_above(root: Path) -> list[tuple[Path, Rules | None]]:
    """Those of the folders above the root: of all a .fimlsignore, and up to that of the repository
    git's, too."""
    folders = list(islice(root.parents, MOST_FOLDERS))
    top = -1
    if not (root / ".git").exists():
        top = next((n for n, each in enumerate(folders) if (each / ".git").exists()), -1)
    return [
        (folder, _rules(folder, RULES if number <= top else RULES[:1]))
        for number, folder in enumerate(folders)
    ]


def _rules(folder: Path, names: Sequence[str] = RULES) -> Rules | None:
    """The rules of a folder's files; None where one cannot be read."""
    found = []
    for name in names:
        try:
            text = read_bytes(folder / name, MAX_BYTES).decode("utf-8-sig")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError):
            return None
        found.append(IgnoreRules.parse(text))
    return tuple(found)


def _says(rules: tuple[Path, Rules | None], path: Path, is_folder: bool) -> bool:
    """Whether a folder's rules ignore a path; what they say of the folders above it was asked."""
    folder, read = rules
    if read is None:
        return True
    relative = path.relative_to(folder).as_posix()
    return any(each.names(relative, is_folder=is_folder) for each in read)


def _is_ignored(path: Path, root: Path) -> bool:
    """Whether the rules of the folders above a file ignore it, or a folder that holds it."""
    try:
        relative = path.relative_to(root)
    except ValueError:
        return True
    folders = [root]
    for name in relative.parts[:-1]:
        folders.append(folders[-1] / name)
    rules = _rules_above(root) + [(folder, _rules(folder)) for folder in folders]
    inner = root
    for number, name in enumerate(relative.parts):
        inner = inner / name
        is_folder = number < len(relative.parts) - 1
        if any(
            _says(each, inner, is_folder) for each in rules if inner.is_relative_to(each[0])
            and inner != each[0]
        ):  # fmt: skip
            return True
    return False
