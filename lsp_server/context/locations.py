"""The path that a document's URI names, and where that lies in a workspace."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from urllib.parse import unquote, urlsplit

DRIVE = re.compile(r"/[A-Za-z]:(?=[/\\]|\Z)")


def to_path(uri: str) -> Path | None:
    """The path of a file: URI; None for any other document (untitled, notebook cells, remote)."""
    path = path_in(uri, windows=os.name == "nt")
    return None if path is None else Path(path)


def path_in(uri: str, *, windows: bool) -> PurePath | None:
    """As `to_path`, as one of the systems writes it: /c:/a is C:\\a on Windows, and a host there
    has shares."""
    try:
        parts = urlsplit(uri)
    except ValueError:  # "file://["
        return None
    if parts.scheme != "file":
        return None
    path = unquote(parts.path)
    host = unquote(parts.netloc)
    if windows and DRIVE.match(path):
        return PureWindowsPath(path[1:])
    if host not in ("", "localhost"):
        return PureWindowsPath(f"//{host}{path}") if windows else None
    return PureWindowsPath(path) if windows else PurePosixPath(path)


def below(path: PurePath, folders: Iterable[PurePath]) -> str:
    """The path below one of the folders, with / on every system; else the bare name."""
    for folder in folders:
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return path.name


def name_in(uri: str) -> str:
    """The path in a URI of any kind, also of documents that are no files here."""
    try:
        return unquote(urlsplit(uri).path)
    except ValueError:
        return unquote(uri)
