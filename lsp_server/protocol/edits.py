"""Fill-in-the-middle edits: a selection, a function's body or its docstring is written anew from
both sides."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cattrs.errors import BaseValidationError
from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException, JsonRpcInvalidParams

from lsp_server.completion.suggestions import FillError
from lsp_server.documents import Snapshot
from lsp_server.logs import log_error, quietly
from lsp_server.protocol.conversions import plain, to_position

if TYPE_CHECKING:
    from fim import Kind, Target
    from lsp_server.protocol.server import FimlsServer

logger = logging.getLogger(__name__)
COMMAND = "fimls.fill"
ACTION = "refactor.rewrite.fimls"
TITLES = {"selection": "Write {} anew", "body": "Complete {}", "docstring": "Write {}"}
ANNOTATION = "fimls"
CHANGED = "The text has changed meanwhile; nothing was done."


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be filled, as a client says it."""

    uri: str
    range: lsp.Range
    kind: Kind
    version: int | None  # of the text that the range is of; None: as it is now


def add_edits(server: FimlsServer) -> None:
    def snapshot_of(uri: str, where: lsp.Range) -> tuple[Snapshot, int] | None:
        """The document with the cursor at the range's start, and where the range ends in that
        text."""
        snapshot = server.documents.snapshot(uri, where.start.line, where.start.character)
        document = server.documents.get(uri)
        if snapshot is None or document is None:
            return None
        end = (
            document.position_to_offset(where.end.line, where.end.character) - snapshot.window_start
        )
        return snapshot, max(snapshot.offset, end)

    def read(params: Any) -> Request:
        """Raises JsonRpcInvalidParams."""
        value = plain(params)
        try:
            where = server.protocol._converter.structure(value["range"], lsp.Range)
            kind = value["kind"]
            if kind not in tuple(TITLES):
                raise JsonRpcInvalidParams(f"kind has to be one of {', '.join(TITLES)}")
            version = value.get("version")
            request = Request(str(value["textDocument"]["uri"]), where, kind, version)
        except (BaseValidationError, KeyError, TypeError, ValueError):
            raise JsonRpcInvalidParams(
                "fimls.fill takes {textDocument: {uri}, range, kind}"
            ) from None
        return request

    async def fill(request: Request) -> tuple[str, lsp.WorkspaceEdit]:
        """Raises JsonRpcException with a message for the user. The text is the one of the call's
        moment."""
        found = snapshot_of(request.uri, request.range)
        if found is None:
            raise failed("The document is not open.")
        snapshot, end = found
        if request.version not in (None, snapshot.version):
            raise failed(CHANGED)
        if end > len(snapshot.text):
            raise failed("The selection is too large; select less.")
        try:
            target, text = await server.suggestions.fill(
                snapshot, end, request.kind, server.relative_path(request.uri)
            )
        except FillError as error:
            raise failed(str(error)) from None
        document = server.documents.get(request.uri)
        if document is None or document.version != snapshot.version:
            raise failed(CHANGED)
        bounds = (snapshot.window_start + o for o in (target.start, target.end))
        where = lsp.Range(*(to_position(document.offset_to_position(o)) for o in bounds))
        return edit_of(target, request.uri, snapshot.version, lsp.TextEdit(where, text))

    def edit_of(
        target: Target, uri: str, version: int, edit: lsp.TextEdit
    ) -> tuple[str, lsp.WorkspaceEdit]:
        label = TITLES[target.kind].format(target.label)
        workspace = server.client_capabilities.workspace
        able = workspace.workspace_edit if workspace is not None else None
        if able is None or not able.document_changes:
            return label, lsp.WorkspaceEdit(changes={uri: [edit]})
        document = lsp.OptionalVersionedTextDocumentIdentifier(uri, version)
        if able.change_annotation_support is None:
            return label, lsp.WorkspaceEdit(
                document_changes=[lsp.TextDocumentEdit(document, [edit])]
            )
        annotated = lsp.AnnotatedTextEdit(ANNOTATION, edit.range, edit.new_text)
        annotation = lsp.ChangeAnnotation(label, needs_confirmation=True, description="fimls")
        changes = [lsp.TextDocumentEdit(document, [annotated])]
        return label, lsp.WorkspaceEdit(
            document_changes=changes, change_annotations={ANNOTATION: annotation}
        )

    @server.feature("fimls/fill")
    async def fill_request(params: Any) -> dict[str, Any]:
        label, edit = await fill(read(params))
        return {"label": label, "edit": server.protocol._converter.unstructure(edit)}

    @server.command(COMMAND)
    async def fill_command(*arguments: Any) -> None:
        """For clients without a preview of their own: with progress, and the client applies the
        edit."""
        work = asyncio.ensure_future(fill(read(arguments[0] if arguments else None)))
        await asyncio.sleep(0)  # it has taken the text as it is
        with server.cancelled_with_request(work), suppress(asyncio.CancelledError):
            progress = asyncio.ensure_future(quietly(show_progress(work)))
            try:
                label, edit = await work
                answer = await server.workspace_apply_edit_async(
                    lsp.ApplyWorkspaceEditParams(edit, label)
                )
                if not answer.applied:
                    tell(
                        "the editor did not make the edit "
                        f"({answer.failure_reason or 'it gives no reason'})"
                    )
            except JsonRpcException as error:
                tell(str(error))
            finally:
                work.cancel()
                await progress

    async def show_progress(work: asyncio.Task[Any]) -> None:
        """Shows that the work goes on until it ends; the user can cancel it."""
        if not server.can_show_progress:
            return
        token, progress = f"fimls-fill-{uuid.uuid4()}", server.work_done_progress
        progress.tokens[token] = asked = concurrent.futures.Future[
            Any
        ]()  # a cancel may come right behind
        asked.add_done_callback(lambda _: work.cancel())
        try:
            await server.window_work_done_progress_create_async(
                lsp.WorkDoneProgressCreateParams(token)
            )
            progress.begin(
                token, lsp.WorkDoneProgressBegin(title="fimls: filling in", cancellable=True)
            )
            await asyncio.wait({work})
            progress.end(token, lsp.WorkDoneProgressEnd())
        finally:
            del progress.tokens[token]

    def tell(message: str) -> None:
        server.window_show_message(lsp.ShowMessageParams(lsp.MessageType.Info, f"fimls: {message}"))

    @server.feature(
        lsp.TEXT_DOCUMENT_CODE_ACTION,
        lsp.CodeActionOptions(code_action_kinds=[f"{ACTION}.{kind}" for kind in TITLES]),
    )
    async def code_action(params: lsp.CodeActionParams) -> list[lsp.CodeAction]:
        from fim import targets_at

        found = snapshot_of(params.text_document.uri, params.range)
        if found is None or not server.session.settings.enabled or found[1] > len(found[0].text):
            return []
        snapshot, end = found
        try:
            targets = await asyncio.to_thread(
                targets_at, snapshot.text, snapshot.language, snapshot.offset, end
            )
        except Exception as error:
            log_error(logger, error)
            return []
        uri, version = params.text_document.uri, snapshot.version
        where = {"textDocument": {"uri": uri}, "range": params.range, "version": version}
        return [
            lsp.CodeAction(
                title := f"{TITLES[target.kind].format(target.label)} (fimls)",
                kind=f"{ACTION}.{target.kind}",
                command=lsp.Command(title, COMMAND, arguments=[where | {"kind": target.kind}]),
            )
            for target in targets
            if wanted(f"{ACTION}.{target.kind}", params.context.only)
        ]


def wanted(kind: str, only: Sequence[str] | None) -> bool:
    """Whether a client that asks for some kinds of actions only wants this one."""
    return not only or any(f"{kind}.".startswith(f"{each}.") or not each for each in only)


def failed(message: str) -> JsonRpcException:
    return JsonRpcException(message, code=lsp.LSPErrorCodes.RequestFailed.value)
