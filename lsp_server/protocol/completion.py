"""Suggestions: as inline completions, and as entries of a menu for clients without those."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lsprotocol import types as lsp

from lsp_server.documents import Snapshot
from lsp_server.logs import log_error
from lsp_server.protocol.conversions import ACCEPTED, Handlers, to_position
from lsp_server.protocol.server import FimlsServer

if TYPE_CHECKING:  # loaded after `initialize` is answered
    from lsp_server.completion.offers import Offer
    from lsp_server.completion.suggestions import Found

logger = logging.getLogger(__name__)
MAX_LABEL = 60  # characters


async def inline_completion(
    ls: FimlsServer, params: lsp.InlineCompletionParams
) -> lsp.InlineCompletionList:
    uri = params.text_document.uri
    context = params.context
    invoked = context.trigger_kind == lsp.InlineCompletionTriggerKind.Invoked
    items: list[lsp.InlineCompletionItem] = []
    try:
        cursor = cursor_at(ls, uri, params.position, context.selected_completion_info)
        if cursor is not None:
            path = ls.relative_path(uri)
            found = await ls.suggestions.suggest(cursor.snapshot, path, invoked=invoked)
            items = [inline_item(offer, edit) for offer, edit in place(ls, cursor, found)]
    except Exception as error:
        log_error(logger, error)
    return lsp.InlineCompletionList(items=items)


async def completion(ls: FimlsServer, params: lsp.CompletionParams) -> lsp.CompletionList:
    uri = params.text_document.uri
    items: list[lsp.CompletionItem] = []
    try:
        cursor = cursor_at(ls, uri, params.position)
        if cursor is not None:
            found = await ls.suggestions.suggest(cursor.snapshot, ls.relative_path(uri))
            for offer, edit in place(ls, cursor, found):
                items.append(menu_item(ls, params, offer, edit))
    except Exception as error:
        log_error(logger, error)
    return lsp.CompletionList(is_incomplete=True, items=items)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A cursor, after the entry that is selected in a completion menu, if there is one.

    The snapshot's text holds the entry; in the document it will replace the text from `start` to
    `end`.
    """

    snapshot: Snapshot
    start: int
    end: int
    entry: str = ""


def cursor_at(
    ls: FimlsServer,
    uri: str,
    position: lsp.Position,
    selected: lsp.SelectedCompletionInfo | None = None,
) -> Cursor | None:
    """None if the selected entry is elsewhere. Raises NotOpenError."""
    document = ls.documents.need(uri)
    snapshot = document.snapshot(position.line, position.character)
    window = snapshot.window_start
    if selected is None:
        offset = window + snapshot.offset
        return Cursor(snapshot, offset, offset)
    bounds = (selected.range.start, selected.range.end)
    start, end = sorted(document.position_to_offset(at.line, at.character) for at in bounds)
    if not window <= start <= window + snapshot.offset <= end <= window + len(snapshot.text):
        return None
    before = snapshot.text[: start - window] + selected.text
    text = before + snapshot.text[end - window :]
    return Cursor(replace(snapshot, text=text, offset=len(before)), start, end, selected.text)


def place(ls: FimlsServer, cursor: Cursor, found: list[Found]) -> list[tuple[Offer, lsp.TextEdit]]:
    """The edits that the offers would make; none if the document has another version by now."""
    document = ls.documents.get(cursor.snapshot.uri)
    if document is None or document.version != cursor.snapshot.version:
        return []
    placed: list[tuple[Offer, lsp.TextEdit]] = []
    for offer, suggestion in found:
        left, right = suggestion.replace
        start = document.offset_to_position(cursor.start + left)
        end = document.offset_to_position(cursor.end + right)
        where = lsp.Range(to_position(start), to_position(end))
        placed.append((offer, lsp.TextEdit(where, cursor.entry + suggestion.text)))
    return placed


def inline_item(offer: Offer, edit: lsp.TextEdit) -> lsp.InlineCompletionItem:
    return lsp.InlineCompletionItem(edit.new_text, range=edit.range, command=accepted(offer))


def menu_item(
    ls: FimlsServer, params: lsp.CompletionParams, offer: Offer, edit: lsp.TextEdit
) -> lsp.CompletionItem:
    # Clients compare an entry with the word before the cursor, so it begins with that word.
    document = ls.documents.need(params.text_document.uri)
    word, units = document.word_before(params.position.line, params.position.character)
    text = word + edit.new_text
    start = lsp.Position(edit.range.start.line, edit.range.start.character - units)
    detail = f"fimls ({ls.session.answering_model})"
    if offer.suggestion.match is not None:
        detail += f" {offer.suggestion.match}"
    return lsp.CompletionItem(
        label=text.strip().splitlines()[0][:MAX_LABEL],
        kind=lsp.CompletionItemKind.Text,
        detail=detail,
        documentation=text,
        filter_text=text,
        text_edit=lsp.TextEdit(lsp.Range(start, edit.range.end), text),
        insert_text_format=lsp.InsertTextFormat.PlainText,
        insert_text_mode=lsp.InsertTextMode.AsIs,
        command=accepted(offer),
    )


def accepted(offer: Offer) -> lsp.Command:
    """The client runs it when all of a text was accepted. It also says whose text that repeats."""
    arguments = [offer.id]
    if offer.suggestion.match is not None:
        arguments.append(str(offer.suggestion.match))
    return lsp.Command("Accepted", ACCEPTED, arguments=arguments)


FEATURES: Handlers = {
    lsp.TEXT_DOCUMENT_INLINE_COMPLETION: (inline_completion, lsp.InlineCompletionOptions()),
    lsp.TEXT_DOCUMENT_COMPLETION: (completion, lsp.CompletionOptions()),
}
