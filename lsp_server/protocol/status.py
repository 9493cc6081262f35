"""Our own messages beyond LSP, which editors/PROTOCOL.md describes."""

from __future__ import annotations

from typing import Any

from pygls.exceptions import JsonRpcInvalidParams

from lsp_server import __version__
from lsp_server.folders import log_folder
from lsp_server.protocol.conversions import ACCEPTED, Commands, Handlers, value_at
from lsp_server.protocol.server import FimlsServer

MAX_SNOOZE_MINUTES = 24 * 60


def did_focus(ls: FimlsServer, params: Any) -> None:
    """The user looks at a document, or at none of ours; with a position, at that place."""
    uri = document_of(params)
    line = value_at(params, "position", "line")
    character = value_at(params, "position", "character")
    ls.focus = uri
    ls.status_changed()
    if uri is not None and type(line) is int and type(character) is int:
        path = ls.relative_path(uri)
        ls.suggestions.prefill.start(lambda: ls.documents.snapshot(uri, line, character), path)


def did_show(ls: FimlsServer, params: Any) -> None:
    ls.suggestions.offers.shown(offer_id(params))


def did_partially_accept(ls: FimlsServer, params: Any) -> None:
    ls.suggestions.offers.partly_accepted(offer_id(params))


def did_accept(ls: FimlsServer, *arguments: Any) -> None:
    for id in arguments[:1]:
        ls.suggestions.offers.accepted(str(id))


def status(ls: FimlsServer, params: Any) -> dict[str, Any]:
    return full_status(ls, document_of(params))


def snooze(ls: FimlsServer, params: Any) -> dict[str, Any]:
    minutes: Any = getattr(params, "minutes", None)
    is_number = isinstance(minutes, int | float) and not isinstance(minutes, bool)
    if not is_number or not 0 <= minutes <= MAX_SNOOZE_MINUTES:
        raise JsonRpcInvalidParams(f"minutes has to be a number from 0 to {MAX_SNOOZE_MINUTES}")
    ls.session.snooze(minutes)
    return full_status(ls, ls.focus)


def why(ls: FimlsServer, params: Any) -> dict[str, str] | None:
    markdown = ls.suggestions.why(document_of(params))
    return None if markdown is None else {"markdown": markdown}


def full_status(ls: FimlsServer, uri: str | None) -> dict[str, Any]:
    return ls.status(uri).to_json() | {
        "version": __version__,
        "log": str(log_folder()),
        "counts": ls.suggestions.offers.counts.to_json(),
    }


def document_of(params: Any) -> str | None:
    uri = value_at(params, "textDocument", "uri")
    return uri if isinstance(uri, str) else None


def offer_id(params: Any) -> str:
    """The offer's id in an item that we sent; "" in any other item."""
    return str(value_at(params, "item", "command", "arguments", 0) or "")


FEATURES: Handlers = {
    "textDocument/didFocus": (did_focus, None),
    "textDocument/didShowCompletion": (did_show, None),
    "textDocument/didPartiallyAcceptCompletion": (did_partially_accept, None),
    "fimls/status": (status, None),
    "fimls/snooze": (snooze, None),
    "fimls/why": (why, None),
}
COMMANDS: Commands = {ACCEPTED: did_accept}
