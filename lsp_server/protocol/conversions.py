"""LSP's values to ours and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from lsprotocol import types as lsp

from lsp_server.documents import Change, Encoding, Position

ACCEPTED = "fimls.didAccept"


def plain(value: Any) -> Any:
    """The JSON value of which pygls has made objects."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: plain(item) for key, item in value._asdict().items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def to_change(event: lsp.TextDocumentContentChangeEvent) -> Change:
    if isinstance(event, lsp.TextDocumentContentChangePartial):
        start, end = event.range.start, event.range.end
        return Change(event.text, (start.line, start.character), (end.line, end.character))
    return Change(event.text)


def to_position(position: Position) -> lsp.Position:
    return lsp.Position(*position)


def to_encoding(kind: str) -> Encoding:
    encodings: dict[str, Encoding] = {"utf-8": "utf-8", "utf-16": "utf-16", "utf-32": "utf-32"}
    return encodings[getattr(kind, "value", kind)]


def to_path(uri: str) -> Path | None:
    """The path of a file: URI; None for any other document (untitled, notebook cells, remote)."""
    try:
        parts = urlsplit(uri)
    except ValueError:  # "file://["
        return None
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        return None
    path = unquote(parts.path)
    return Path(path.removeprefix("/") if os.name == "nt" else path)
