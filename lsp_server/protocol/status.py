"""The messages beyond LSP that editors/PROTOCOL.md describes: types in and out, no logic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pygls.exceptions import JsonRpcInvalidParams

from lsp_server import __version__
from lsp_server.folders import log_folder
from lsp_server.protocol.conversions import ACCEPTED, plain

if TYPE_CHECKING:
    from lsp_server.protocol.server import FimlsServer

MAX_SNOOZE_MINUTES = 24 * 60


def add_own_messages(server: FimlsServer) -> None:
    def document_of(params: Any) -> str | None:
        """The URI of the textDocument of such parameters; None where there is none."""
        value = plain(params)
        document = value.get("textDocument") if isinstance(value, dict) else None
        uri = document.get("uri") if isinstance(document, dict) else None
        return uri if isinstance(uri, str) else None

    def item_id(params: Any) -> str:
        """The id that an item of ours carries; "" for one of somebody else's."""
        try:
            return str(plain(params)["item"]["command"]["arguments"][0])
        except (KeyError, IndexError, TypeError):
            return ""

    def full_status(uri: str | None) -> dict[str, Any]:
        return server.status(uri).to_json() | {
            "version": __version__,
            "log": str(log_folder()),
            "counts": server.suggestions.offers.counts.to_json(),
        }

    @server.feature("textDocument/didFocus")
    def did_focus(params: Any) -> None:
        uri = server.focus = document_of(params)
        server.status_changed()
        position = plain(params).get("position") if uri is not None else None
        line, character = (
            position.get(name) if isinstance(position, dict) else None
            for name in ("line", "character")
        )
        if uri is not None and type(line) is int and type(character) is int:
            place = uri, line, character
            server.suggestions.focused(
                lambda: server.documents.snapshot(*place), server.relative_path(uri)
            )

    @server.feature("textDocument/didShowCompletion")
    def did_show(params: Any) -> None:
        server.suggestions.offers.shown(item_id(params))

    @server.feature("textDocument/didPartiallyAcceptCompletion")
    def did_partially_accept(params: Any) -> None:
        server.suggestions.offers.partly_accepted(item_id(params))

    @server.command(ACCEPTED)
    def did_accept(*arguments: Any) -> None:
        server.suggestions.offers.accepted(str(arguments[0]) if arguments else "")

    @server.feature("fimls/status")
    def status(params: Any) -> dict[str, Any]:
        return full_status(document_of(params))

    @server.feature("fimls/snooze")
    def snooze(params: Any) -> dict[str, Any]:
        minutes = getattr(params, "minutes", None)
        if (
            isinstance(minutes, bool)
            or not isinstance(minutes, int | float)
            or not 0 <= minutes <= MAX_SNOOZE_MINUTES
        ):
            raise JsonRpcInvalidParams(f"minutes has to be a number from 0 to {MAX_SNOOZE_MINUTES}")
        server.session.snooze(minutes)
        return full_status(server.focus)

    @server.feature("fimls/why")
    def why(params: Any) -> dict[str, str] | None:
        markdown = server.suggestions.why(document_of(params))
        return None if markdown is None else {"markdown": markdown}
