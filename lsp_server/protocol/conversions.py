"""LSP's values to ours and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from lsprotocol import types as lsp

from lsp_server.documents import Change, Encoding, Position

ACCEPTED = "fimls.didAccept"
Handlers = dict[str, tuple[Callable[..., Any], Any]]
"""Which function answers which method, and the options that the server announces for it."""
Commands = dict[str, Callable[..., Any]]


def plain(value: Any) -> Any:
    """The JSON value from which pygls has made objects."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: plain(item) for key, item in value._asdict().items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def value_at(params: Any, *path: str | int) -> Any:
    """The value under these keys, one in the other; None where there is none."""
    value = plain(params)
    try:
        for key in path:
            value = value[key]
    except (KeyError, IndexError, TypeError):
        return None
    return value


def to_change(event: lsp.TextDocumentContentChangeEvent) -> Change:
    if isinstance(event, lsp.TextDocumentContentChangePartial):
        start, end = event.range.start, event.range.end
        return Change(event.text, (start.line, start.character), (end.line, end.character))
    return Change(event.text)


def to_position(position: Position) -> lsp.Position:
    return lsp.Position(*position)


def to_encoding(kind: str) -> Encoding:
    encoding = getattr(kind, "value", kind)
    assert encoding in ("utf-8", "utf-16", "utf-32")
    return cast(Encoding, encoding)
