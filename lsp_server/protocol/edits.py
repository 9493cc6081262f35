"""Fill-in edits: our own request for an edit, and code actions with a command for other clients."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cattrs.errors import BaseValidationError
from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException, JsonRpcInvalidParams

from lsp_server.documents import NotOpenError, Snapshot
from lsp_server.logs import log_error, quietly
from lsp_server.protocol.conversions import Commands, Handlers, plain, to_position
from lsp_server.protocol.progress import cancellable_progress
from lsp_server.protocol.server import FimlsServer

if TYPE_CHECKING:  # loaded after `initialize` is answered
    from fim import Kind

logger = logging.getLogger(__name__)
COMMAND = "fimls.fill"
ACTION = "refactor.rewrite.fimls"
TITLES = {"selection": "Write {} anew", "body": "Complete {}", "docstring": "Write {}"}
ANNOTATION = "fimls"
CHANGED = "The text has changed meanwhile; nothing was done."
BROKEN_OFF = "It was broken off: the text has changed, or another edit was asked for."


@dataclass(frozen=True, slots=True)
class FillRequest:
    """A client's request for a fill-in edit."""

    uri: str
    range: lsp.Range
    kind: Kind
    version: int | None  # of the text; None: as it is now


async def fill_request(ls: FimlsServer, params: Any) -> dict[str, Any]:
    label, edit = await make_edit(ls, read(ls, params))
    return {"label": label, "edit": ls.protocol._converter.unstructure(edit)}


async def fill_command(ls: FimlsServer, *arguments: Any) -> None:
    """For clients without a preview: shows progress, and the client applies the edit."""
    request = read(ls, arguments[0] if arguments else None)
    work = asyncio.ensure_future(make_edit(ls, request))
    with ls.cancelled_with_request(work), suppress(asyncio.CancelledError):
        await asyncio.sleep(0)  # the work has taken the text as it is now
        progress = asyncio.ensure_future(quietly(show_progress(ls, work)))
        try:
            label, edit = await work
            params = lsp.ApplyWorkspaceEditParams(edit, label)
            answer = await ls.workspace_apply_edit_async(params)
            if not answer.applied:
                reason = answer.failure_reason or "it gives no reason"
                tell(ls, f"the editor did not make the edit ({reason})")
        except JsonRpcException as error:
            tell(ls, str(error))
        finally:
            work.cancel()
            await progress


async def code_action(ls: FimlsServer, params: lsp.CodeActionParams) -> list[lsp.CodeAction]:
    from fim import targets_at

    uri = params.text_document.uri
    if not ls.session.settings.enabled:
        return []
    try:
        snapshot, end = snapshot_of(ls, uri, params.range)
        if end > len(snapshot.text):
            return []
        targets = await asyncio.to_thread(
            targets_at, snapshot.text, snapshot.language, snapshot.offset, end
        )
    except NotOpenError:
        return []
    except Exception as error:
        log_error(logger, error)
        return []
    version = snapshot.version
    where = {"textDocument": {"uri": uri}, "range": params.range, "version": version}
    actions = []
    for target in targets:
        kind = f"{ACTION}.{target.kind}"
        if is_wanted(kind, params.context.only):
            title = f"{TITLES[target.kind].format(target.label)} (fimls)"
            command = lsp.Command(title, COMMAND, arguments=[where | {"kind": target.kind}])
            actions.append(lsp.CodeAction(title, kind=kind, command=command))
    return actions


def read(ls: FimlsServer, params: Any) -> FillRequest:
    """Raises JsonRpcInvalidParams."""
    value = plain(params)
    try:
        uri = str(value["textDocument"]["uri"])
        where = ls.protocol._converter.structure(value["range"], lsp.Range)
        kind = value["kind"]
        if kind not in tuple(TITLES):
            raise JsonRpcInvalidParams(f"kind has to be one of {', '.join(TITLES)}")
        return FillRequest(uri, where, kind, value.get("version"))
    except (BaseValidationError, KeyError, TypeError, ValueError):
        raise JsonRpcInvalidParams("fimls.fill takes {textDocument: {uri}, range, kind}") from None


async def make_edit(ls: FimlsServer, request: FillRequest) -> tuple[str, lsp.WorkspaceEdit]:
    """The edit and its label. Raises JsonRpcException with a message for the user."""
    from lsp_server.completion.fill import FillError, fill

    try:
        # Nothing is awaited before: this is the text of the request's moment.
        snapshot, end = snapshot_of(ls, request.uri, request.range)
        if request.version not in (None, snapshot.version):
            raise FillError(CHANGED)
        if end > len(snapshot.text):
            raise FillError("The selection is too large; select less.")
        path = ls.relative_path(request.uri)
        work = fill(ls.session, ls.suggestions, snapshot, end, request.kind, path)
        with ls.session.working():
            found = await ls.session.edits.latest(request.uri, work)
        if found is None:
            raise FillError(BROKEN_OFF)
        document = ls.documents.need(request.uri)
        if document.version != snapshot.version:
            raise FillError(CHANGED)
    except (NotOpenError, FillError) as error:
        code = lsp.LSPErrorCodes.RequestFailed.value
        raise JsonRpcException(str(error), code=code) from None
    target, text = found
    start = document.offset_to_position(snapshot.window_start + target.start)
    stop = document.offset_to_position(snapshot.window_start + target.end)
    where = lsp.Range(to_position(start), to_position(stop))
    label = TITLES[target.kind].format(target.label)
    versioned = lsp.OptionalVersionedTextDocumentIdentifier(request.uri, snapshot.version)
    return label, workspace_edit(ls, label, versioned, lsp.TextEdit(where, text))


def snapshot_of(ls: FimlsServer, uri: str, where: lsp.Range) -> tuple[Snapshot, int]:
    """The document with the cursor at the range's start, and the range's end in that text. Raises
    NotOpenError."""
    document = ls.documents.need(uri)
    snapshot = document.snapshot(where.start.line, where.start.character)
    end = document.position_to_offset(where.end.line, where.end.character)
    return snapshot, max(snapshot.offset, end - snapshot.window_start)


def workspace_edit(
    ls: FimlsServer,
    label: str,
    document: lsp.OptionalVersionedTextDocumentIdentifier,
    edit: lsp.TextEdit,
) -> lsp.WorkspaceEdit:
    """The edit in the richest form that the client knows."""
    workspace = ls.client_capabilities.workspace
    able = workspace.workspace_edit if workspace is not None else None
    if able is None or not able.document_changes:
        return lsp.WorkspaceEdit(changes={document.uri: [edit]})
    if able.change_annotation_support is None:
        return lsp.WorkspaceEdit(document_changes=[lsp.TextDocumentEdit(document, [edit])])
    annotated = lsp.AnnotatedTextEdit(ANNOTATION, edit.range, edit.new_text)
    annotation = lsp.ChangeAnnotation(label, needs_confirmation=True, description="fimls")
    return lsp.WorkspaceEdit(
        document_changes=[lsp.TextDocumentEdit(document, [annotated])],
        change_annotations={ANNOTATION: annotation},
    )


async def show_progress(ls: FimlsServer, work: asyncio.Task[Any]) -> None:
    """Shows that the work goes on, until it ends; the user can cancel it."""
    if not ls.can_show_progress:
        return
    begin = lsp.WorkDoneProgressBegin(title="fimls: filling in", cancellable=True)
    async with cancellable_progress(ls, "fill", begin, work.cancel):
        await asyncio.wait({work})


def tell(ls: FimlsServer, message: str) -> None:
    ls.window_show_message(lsp.ShowMessageParams(lsp.MessageType.Info, f"fimls: {message}"))


def is_wanted(kind: str, only: Sequence[str] | None) -> bool:
    """Whether a client that asks for some kinds of actions wants this one."""
    return not only or any(f"{kind}.".startswith(f"{each}.") or not each for each in only)


FEATURES: Handlers = {
    "fimls/fill": (fill_request, None),
    lsp.TEXT_DOCUMENT_CODE_ACTION: (
        code_action,
        lsp.CodeActionOptions(code_action_kinds=[f"{ACTION}.{kind}" for kind in TITLES]),
    ),
}
COMMANDS: Commands = {COMMAND: fill_command}
