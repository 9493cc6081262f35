"""Which files of a project a text imports.

An import is read as the endings that the path of its file may have: `from a.b import C` may mean
`a/b.py`, `a/b/__init__.py` or `a/b/C.py`. That is rough, and enough to say what is worth reading.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from posixpath import normpath

MOST = 64  # imports of a text
_HEAD = 20_000  # characters at its beginning that are looked at
_NAMES = re.compile(r"\w+")
_PYTHON = re.compile(
    r"^[ \t]*(?:from[ \t]+(\.*)([\w.]*)[ \t]+import[ \t]+(\([^()]{0,2000}\)|[^\n#;]{0,500})"
    r"|import[ \t]+([\w., \t]{1,500}))",
    re.MULTILINE,
)
_SCRIPT_NAMES = re.compile(r"\bimport\s+(?:type\s+)?[\w*{},\s$]{1,2000}\bfrom\b")
_RUST_NAMES = re.compile(r"\buse\s+[\w:{},\s*]{1,2000};")
_SCRIPT = re.compile(r"""\b(?:from|import|require|export)\b[\s(]{0,3}["'](\.[^"'\n]{1,200})["']""")
_GO = re.compile(r'^[ \t]*(?:import[ \t]+)?(?:[\w.]+[ \t]+)?"([\w./~-]{1,200})"', re.MULTILINE)
_RUST = re.compile(r"\b(?:use|pub use)\s+((?:crate|super|self)(?:::\w+)+)|\bmod\s+(\w+)\s*;")
_JAVA = re.compile(r"^[ \t]*import[ \t]+(?:static[ \t]+)?([\w.]{3,200})", re.MULTILINE)
_C = re.compile(r'^[ \t]*#[ \t]*include[ \t]*["<]([\w./+-]{1,200})[">]', re.MULTILINE)
_SCRIPT_ENDINGS = (".ts", ".tsx", ".js", ".jsx", ".mjs", ".d.ts", "/index.ts", "/index.js")


def imported_names(text: str, language: str) -> frozenset[str]:
    """The names in a text's import statements."""
    statement = _STATEMENTS.get(language)
    if statement is None:
        return frozenset()
    found = (each[0] for each in statement.finditer(text[:_HEAD]))
    return frozenset(name for each in found for name in _NAMES.findall(each))


def imported_paths(text: str, path: str, language: str, known: Iterable[str]) -> tuple[str, ...]:
    """Those of the paths `known` that a text at `path` imports, in the order of its imports.

    All paths are relative to one folder, and divided by /.
    """
    reader = _READERS.get(language)
    if reader is None:
        return ()
    by_name: dict[str, list[str]] = {}
    for each in known:
        by_name.setdefault(each.rpartition("/")[2], []).append(each)
    found: dict[str, None] = {}
    folder = PurePosixPath(path).parent.as_posix()
    for number, endings in enumerate(reader(text[:_HEAD], "" if folder == "." else folder)):
        if number == MOST:
            break
        for ending in endings:
            for each in _with_ending(ending, by_name, path):
                found[each] = None
    found.pop(path, None)
    return tuple(found)


def _with_ending(ending: str, by_name: Mapping[str, list[str]], path: str) -> list[str]:
    """The path that is or ends with `ending`, the nearest to `path`; "dir/*.go": all in it."""
    folder, _, name = ending.rpartition("/")
    if name.startswith("*"):
        suffix = name[1:]
        found = [
            each
            for names in by_name.values()
            for each in names
            if each.endswith(suffix) and _is_folder(each.rpartition("/")[0], folder)
        ]
        return sorted(found)[:8]
    exact = ending.startswith("=")
    ending = ending.removeprefix("=")
    matching = [
        each
        for each in by_name.get(ending.rpartition("/")[2], ())
        if each == ending or (not exact and each.endswith("/" + ending))
    ]
    matching.sort(key=lambda each: (-_common(each, path), len(each)))
    return matching[:1]


def _is_folder(folder: str, wanted: str) -> bool:
    """Whether a folder is the one that a package's path ends with."""
    return bool(folder) and (wanted == folder or wanted.endswith("/" + folder))


def _common(one: str, other: str) -> int:
    count = 0
    for a, b in zip(one.split("/"), other.split("/"), strict=False):
        if a != b:
            break
        count += 1
    return count


def _python(text: str, folder: str) -> Iterator[list[str]]:
    for found in _PYTHON.finditer(text):
        dots, module, names, modules = found.groups()
        if modules is not None:
            for each in modules.split(","):
                yield _module(each.split(" as ")[0].strip().replace(".", "/"), "")
            continue
        base = module.replace(".", "/")
        mark = ""
        if dots:
            mark = "="  # an exact path
            base = _joined(folder, "../" * (len(dots) - 1) + base)
        # What is named may be a module by itself.
        named = [re.split(r"\s+as\s+", each)[0] for each in names.strip("()").split(",")]
        for each in named[:16]:
            if _NAMES.fullmatch(each.strip()):
                yield _module(f"{base}/{each.strip()}".lstrip("/"), mark)
        yield _module(base, mark)


def _module(path: str, mark: str) -> list[str]:
    return [f"{mark}{path}.py", f"{mark}{path}/__init__.py"] if path else []


def _joined(folder: str, relative: str) -> str:
    joined = normpath(f"{folder}/{relative}" if folder else relative)
    return "" if joined == "." else joined


def _script(text: str, folder: str) -> Iterator[list[str]]:
    for found in _SCRIPT.finditer(text):
        path = _joined(folder, found[1])
        bare = re.sub(r"\.(?:js|jsx|ts|tsx|mjs)\Z", "", path)
        yield [f"={path}", *(f"={bare}{ending}" for ending in _SCRIPT_ENDINGS)]


def _go(text: str, folder: str) -> Iterator[list[str]]:
    for found in _GO.finditer(text):
        if "/" in found[1]:
            yield [f"{found[1]}/*.go"]


def _rust(text: str, folder: str) -> Iterator[list[str]]:
    for found in _RUST.finditer(text):
        if found[2]:
            inner = f"{folder}/{found[2]}".lstrip("/")
            yield [f"={inner}.rs", f"={inner}/mod.rs"]
            continue
        root, *names = found[1].split("::")
        base = {"crate": "src", "self": folder}.get(root, PurePosixPath(folder).parent.as_posix())
        endings = []
        for size in range(1, min(len(names), 6) + 1):
            inner = "/".join((base, *names[:size])).lstrip("./")
            endings += [f"{inner}.rs", f"{inner}/mod.rs"]
        if root == "super" and names:
            endings.append(f"={_joined(folder, names[0])}.rs")
        yield endings


def _java(text: str, folder: str) -> Iterator[list[str]]:
    for found in _JAVA.finditer(text):
        path = found[1].rstrip(".").replace(".", "/")
        yield [f"{path}.java", f"{path.rpartition('/')[0]}.java"]


def _c(text: str, folder: str) -> Iterator[list[str]]:
    for found in _C.finditer(text):
        yield [f"={_joined(folder, found[1])}", found[1]]


_SCRIPTS = ("javascript", "javascriptreact", "typescript", "typescriptreact", "vue", "svelte")
_STATEMENTS: Mapping[str, re.Pattern[str]] = {
    "python": _PYTHON,
    **dict.fromkeys(_SCRIPTS, _SCRIPT_NAMES),
    "rust": _RUST_NAMES,
    "java": _JAVA,
}
_Reader = Callable[[str, str], Iterator[list[str]]]
_READERS: Mapping[str, _Reader] = {
    "python": _python,
    **dict.fromkeys(_SCRIPTS, _script),
    "go": _go,
    "rust": _rust,
    "java": _java,
    **dict.fromkeys(("c", "cpp", "cuda-cpp", "objective-c", "objective-cpp"), _c),
}
