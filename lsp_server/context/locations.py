"""The path that a document's URI names."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit


def to_path(uri: str) -> Path | None:
    """The path of a file: URI; None for any other document (untitled, notebook cells, remote)."""
    try:
        parts = urlsplit(uri)
    except ValueError:  # "file://["
        return None
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        return None
    path = unquote(parts.path)
    if os.name == "nt":
        path = path.removeprefix("/")
    return Path(path)


def name_in(uri: str) -> str:
    """The path in a URI of any kind, also of documents that are no files here."""
    try:
        return unquote(urlsplit(uri).path)
    except ValueError:
        return unquote(uri)
