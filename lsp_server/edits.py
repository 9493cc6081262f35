"""Fill-in-the-middle edits: a selection, a function's body or its docstring is written anew from both sides."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cattrs.errors import BaseValidationError
from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException, JsonRpcInvalidParams

from lsp_server.documents import Snapshot
from lsp_server.log import log_error
from lsp_server.suggestions import FillError

if TYPE_CHECKING:
    from fim import Kind, Target
    from lsp_server.server import FimlsServer

COMMAND = "fimls.fill"
ACTION = "refactor.rewrite.fimls"
TITLES = {
    "selection": "Write {} anew (fimls)",
    "body": "Complete {} (fimls)",
    "docstring": "Write {} (fimls)",
}
ANNOTATION = "fimls"


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be filled, as a client says it."""

    uri: str
    range: lsp.Range
    kind: Kind


def add_edits(server: FimlsServer) -> None:
    from lsp_server.server import logger, plain, to_position

    def snapshot_of(uri: str, where: lsp.Range) -> tuple[Snapshot, int] | None:
        """The document with the cursor at the range's start, and where the range ends in that text."""
        snapshot = server.documents.snapshot(uri, where.start.line, where.start.character)
        document = server.documents.get(uri)
        if snapshot is None or document is None:
            return None
        end = document.position_to_offset(where.end.line, where.end.character) - snapshot.window_start
        return snapshot, max(snapshot.offset, min(end, len(snapshot.text)))

    def read(params: Any) -> Request:
        """Raises JsonRpcInvalidParams."""
        value = plain(params)
        try:
            where = server.protocol._converter.structure(value["range"], lsp.Range)
            request = Request(str(value["textDocument"]["uri"]), where, value["kind"])
        except (BaseValidationError, KeyError, TypeError, ValueError):
            raise JsonRpcInvalidParams("fimls.fill takes {textDocument: {uri}, range, kind}") from None
        if request.kind not in TITLES:
            raise JsonRpcInvalidParams(f"kind has to be one of {', '.join(TITLES)}")
        return request

    async def fill(request: Request) -> tuple[str, lsp.WorkspaceEdit]:
        """Raises JsonRpcException with a message for the user."""
        from fim import target_at

        found = snapshot_of(request.uri, request.range)
        if found is None:
            raise failed("The document is not open.")
        snapshot, end = found
        target = await asyncio.to_thread(
            target_at, snapshot.text, snapshot.language, snapshot.offset, end, request.kind
        )
        if target is None:
            raise failed(NOTHING[request.kind])
        try:
            text = await server.suggestions.fill(snapshot, target, server.relative_path(request.uri))
        except FillError as error:
            raise failed(str(error)) from None
        document = server.documents.get(request.uri)
        if document is None or document.version != snapshot.version:
            raise failed("The text has changed meanwhile; nothing was done.")
        bounds = (snapshot.window_start + o for o in (target.start, target.end))
        where = lsp.Range(*(to_position(document.offset_to_position(o)) for o in bounds))
        return edit_of(target, request.uri, snapshot.version, lsp.TextEdit(where, text))

    def edit_of(target: Target, uri: str, version: int, edit: lsp.TextEdit) -> tuple[str, lsp.WorkspaceEdit]:
        label = TITLES[target.kind].format(target.label).removesuffix(" (fimls)")
        workspace = server.client_capabilities.workspace
        able = workspace.workspace_edit if workspace is not None else None
        if able is None or not able.document_changes:
            return label, lsp.WorkspaceEdit(changes={uri: [edit]})
        document = lsp.OptionalVersionedTextDocumentIdentifier(uri, version)
        if able.change_annotation_support is None:
            return label, lsp.WorkspaceEdit(document_changes=[lsp.TextDocumentEdit(document, [edit])])
        annotated = lsp.AnnotatedTextEdit(ANNOTATION, edit.range, edit.new_text)
        annotation = lsp.ChangeAnnotation(label, needs_confirmation=True, description="fimls")
        changes = [lsp.TextDocumentEdit(document, [annotated])]
        return label, lsp.WorkspaceEdit(document_changes=changes, change_annotations={ANNOTATION: annotation})

    @server.feature("fimls/fill")
    async def fill_request(params: Any) -> dict[str, Any]:
        label, edit = await fill(read(params))
        return {"label": label, "edit": server.protocol._converter.unstructure(edit)}

    @server.command(COMMAND)
    async def fill_command(*arguments: Any) -> None:
        """For clients without a preview of their own: with progress, and the client applies the edit."""
        request = read(arguments[0] if arguments else None)
        token = f"fimls-fill-{uuid.uuid4()}"
        progress = server.work_done_progress
        if server.can_show_progress:
            await progress.create_async(token)
            begin = lsp.WorkDoneProgressBegin(title="fimls: filling in", cancellable=True)
            progress.begin(token, begin)
        work = asyncio.ensure_future(fill(request))
        try:
            cancelled = asyncio.wrap_future(progress.tokens[token]) if server.can_show_progress else None
            await asyncio.wait({work, cancelled} if cancelled else {work}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return
            label, edit = work.result()
            await server.workspace_apply_edit_async(lsp.ApplyWorkspaceEditParams(edit, label))
        except JsonRpcException as error:
            server.window_show_message(lsp.ShowMessageParams(lsp.MessageType.Info, f"fimls: {error}"))
        finally:
            work.cancel()
            if server.can_show_progress:
                progress.end(token, lsp.WorkDoneProgressEnd())

    @server.feature(
        lsp.TEXT_DOCUMENT_CODE_ACTION,
        lsp.CodeActionOptions(code_action_kinds=[f"{ACTION}.{kind}" for kind in TITLES]),
    )
    async def code_action(params: lsp.CodeActionParams) -> list[lsp.CodeAction]:
        from fim import targets_at

        only = params.context.only
        if only and not any(f"{kind}.".startswith("refactor.rewrite.") or ACTION.startswith(kind) for kind in only):
            return []
        found = snapshot_of(params.text_document.uri, params.range)
        if found is None or not server.session.settings.enabled:
            return []
        snapshot, end = found
        try:
            targets = await asyncio.to_thread(targets_at, snapshot.text, snapshot.language, snapshot.offset, end)
        except Exception as error:
            log_error(logger, error)
            return []
        where = {"textDocument": {"uri": params.text_document.uri}, "range": params.range}
        return [
            lsp.CodeAction(
                title := TITLES[target.kind].format(target.label),
                kind=f"{ACTION}.{target.kind}",
                command=lsp.Command(title, COMMAND, arguments=[where | {"kind": target.kind}]),
            )
            for target in targets
        ]


NOTHING = {
    "selection": "Select the text that is to be written anew.",
    "body": "There is no function here whose body could be completed.",
    "docstring": "There is no function or class here to document.",
}


def failed(message: str) -> JsonRpcException:
    return JsonRpcException(message, code=lsp.LSPErrorCodes.RequestFailed.value)
