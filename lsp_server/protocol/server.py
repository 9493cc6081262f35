"""LSP handlers: protocol types in and out, no logic. One server is one window."""

from __future__ import annotations

import asyncio
import logging
import sys
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lsprotocol import types as lsp
from pygls.lsp.server import LanguageServer
from pygls.protocol import LanguageServerProtocol
from pygls.protocol.json_rpc import RPCMessage, RPCRequest
from pygls.protocol.language_server import lsp_method

from lsp_server import __version__
from lsp_server.completion.suggestions import Answer, Suggestions
from lsp_server.documents import Documents
from lsp_server.engines.process import is_alive
from lsp_server.logs import log_error, quietly
from lsp_server.protocol.conversions import (
    accepted_command,
    plain,
    to_change,
    to_encoding,
    to_path,
    to_position,
)
from lsp_server.session.session import Session
from lsp_server.session.status import Status
from lsp_server.settings import SECTION

logger = logging.getLogger(__name__)
PARENT_POLL_S = 0.5
STATUS_DELAY_S = 0.05
SETTINGS_WAIT_S = (
    2.0  # how long the engine's start waits for a client that was asked for its settings
)


class Protocol(LanguageServerProtocol):
    """pygls' protocol with our text mirror in place of its own, whose line ends and edits are not
    LSP's."""

    _server: FimlsServer

    def handle_message(self, message: RPCMessage) -> None:
        if self._shutdown and isinstance(message, RPCRequest):
            refusal = lsp.ResponseError(
                lsp.ErrorCodes.InvalidRequest, "the server is shutting down"
            )
            self._send_response(message.id, error=refusal)
        else:
            super().handle_message(message)

    def _handle_cancel_notification(self, msg_id: Any) -> None:
        if (work := self._server.commands.get(msg_id)) is not None:
            work.cancel()
        super()._handle_cancel_notification(msg_id)

    @lsp_method(lsp.INITIALIZE)
    def lsp_initialize(
        self, params: lsp.InitializeParams
    ) -> Generator[Any, Any, lsp.InitializeResult]:
        result = yield from super().lsp_initialize(params)
        self._server.initialized_by(params, result.capabilities)
        return result

    @lsp_method(lsp.SHUTDOWN)
    def lsp_shutdown(self, *params: Any) -> Generator[Any, Any, None]:
        self._server.suggestions.stop()
        return (yield from super().lsp_shutdown(*params))

    @lsp_method(lsp.TEXT_DOCUMENT_DID_OPEN)
    def lsp_text_document__did_open(self, params: lsp.DidOpenTextDocumentParams) -> None:
        document = params.text_document
        self._server.suggestions.forget(document.uri)
        self._server.documents.open(
            document.uri, document.version, document.language_id, document.text
        )
        self._server.status_changed()  # with a document's language it may be on or off

    @lsp_method(lsp.TEXT_DOCUMENT_DID_CHANGE)
    def lsp_text_document__did_change(self, params: lsp.DidChangeTextDocumentParams) -> None:
        document, server = params.text_document, self._server
        if server.documents.get(document.uri) is None:
            logger.warning("ignored a change to a document that is not open")
            return
        server.suggestions.drop(document.uri)
        changes = [to_change(event) for event in params.content_changes]
        try:
            server.documents.change(document.uri, document.version, changes)
        except Exception:
            server.documents.close(document.uri)  # rather none than a mirror that is out of step
            raise
        if server.suggestions.watching and changes:
            now = server.documents.snapshot(document.uri, *(changes[-1].start or (0, 0)))
            if now is not None:
                server.suggestions.edited(now)

    @lsp_method(lsp.TEXT_DOCUMENT_DID_CLOSE)
    def lsp_text_document__did_close(self, params: lsp.DidCloseTextDocumentParams) -> None:
        self._server.documents.close(params.text_document.uri)
        self._server.suggestions.forget(params.text_document.uri)


class FimlsServer(LanguageServer):
    """The window's state as far as LSP goes; what it does with it is `session`."""

    def __init__(self) -> None:
        super().__init__("fimls", __version__, protocol_cls=Protocol)
        self.documents = Documents()
        self.session = Session(
            show_message=self._show_message,
            on_progress=self._on_progress,
            on_status=self.status_changed,
        )
        self.suggestions = Suggestions(self.session)
        self.parent: int | None = None
        self._can_pull_settings = self.can_show_progress = False
        self._progress: asyncio.Task[None] | None = None
        self._progress_token: str | None = None
        self.commands: dict[
            Any, asyncio.Future[Any]
        ] = {}  # what goes on for workspace/executeCommand, by request
        self.focus: str | None = None  # the document that the user looks at
        self._status_told: Status | None = None
        self._status_due: asyncio.TimerHandle | None = None

    def initialized_by(self, params: lsp.InitializeParams, offered: lsp.ServerCapabilities) -> None:
        """Takes what `initialize` tells, and withdraws from `offered` what this client is better
        off without."""
        self.parent = params.process_id or self.parent
        encoding = offered.position_encoding or lsp.PositionEncodingKind.Utf16
        self.documents = Documents(to_encoding(encoding))
        text_document, window = params.capabilities.text_document, params.capabilities.window
        if text_document is not None and text_document.inline_completion is not None:
            offered.completion_provider = None  # ghost text is better than one more entry in a menu
        workspace = params.capabilities.workspace
        self._can_pull_settings = bool(workspace and workspace.configuration)
        self.can_show_progress = bool(window and window.work_done_progress)
        if params.client_info is not None:
            self.session.client_name = (
                f"{params.client_info.name} {params.client_info.version or ''}".strip()
            )
        ours = plain(params.capabilities.experimental)
        ours = ours.get("fimls") if isinstance(ours, dict) else None
        self.session.client_shows_status = isinstance(ours, dict) and ours.get("status") is True
        self.session.configure(params.initialization_options, trusted=True)

    async def pull_settings(self) -> None:
        """Asks the client for its settings; those of a workspace may not say which model or
        endpoint is used."""
        if not self._can_pull_settings:
            return
        item = lsp.ConfigurationItem(section=SECTION)
        values = await self.workspace_configuration_async(lsp.ConfigurationParams(items=[item]))
        if values and values[0] is not None:
            self.session.configure(values[0], trusted=False)

    def relative_path(self, uri: str) -> str | None:
        """The document's path below its workspace folder, or its bare name; None for one that is no
        file."""
        path = to_path(uri)
        if path is None:
            return None
        workspace = self.workspace
        folders = [folder.uri for folder in workspace.folders.values()] or [
            workspace.root_uri or ""
        ]
        for folder in map(to_path, folders):
            if folder is not None and path.is_relative_to(folder):
                return path.relative_to(folder).as_posix()
        return path.name

    async def answers(
        self,
        uri: str,
        position: lsp.Position,
        *,
        invoked: bool = False,
        selected: lsp.SelectedCompletionInfo | None = None,
    ) -> list[tuple[Answer, lsp.Range, str]]:
        """Suggestions, the ranges that they replace and their texts; none for a text that is
        another by then.

        selected: the entry that is chosen in a completion menu; the suggestions go on behind it.
        """
        snapshot = self.documents.snapshot(uri, position.line, position.character)
        if snapshot is None:
            logger.warning("asked for a document that is not open")
            return []
        document = self.documents.get(uri)
        assert document is not None
        start = end = snapshot.window_start + snapshot.offset
        if selected is not None:
            bounds = selected.range.start, selected.range.end
            start, end = sorted(document.position_to_offset(p.line, p.character) for p in bounds)
            low, high = start - snapshot.window_start, end - snapshot.window_start
            if not 0 <= low <= snapshot.offset <= high <= len(snapshot.text):
                return []  # a menu's entry elsewhere
            text = snapshot.text[:low] + selected.text + snapshot.text[high:]
            snapshot = replace(snapshot, text=text, offset=low + len(selected.text))
        found = await self.suggestions.suggest(snapshot, self.relative_path(uri), invoked=invoked)
        document = self.documents.get(uri)
        if document is None or document.version != snapshot.version:
            return []
        made = []
        for answer in found:
            before, after = (end + o for o in answer.suggestion.replace)
            places = (start, after) if selected is not None else (before, after)
            where = lsp.Range(
                *(to_position(document.offset_to_position(place)) for place in places)
            )
            made.append(
                (
                    answer,
                    where,
                    (selected.text if selected is not None else "") + answer.suggestion.text,
                )
            )
        return made

    @contextmanager
    def cancelled_with_request(self, work: asyncio.Future[Any]) -> Iterator[None]:
        """While it lasts, cancelling the command's request cancels the work; pygls cancels its
        answer only."""
        number = self.protocol.msg_id
        self.commands[number] = work
        try:
            yield
        finally:
            del self.commands[number]

    # ---- status ----

    def status(self, uri: str | None = None) -> Status:
        document = self.documents.get(uri) if uri is not None else None
        return self.session.status(document.language if document is not None else None)

    def status_changed(self) -> None:
        """Tells a client that wants to know, unless the status is as it was again within a
        moment."""
        if self.session.client_shows_status and self._status_due is None:
            self._status_due = asyncio.get_running_loop().call_later(
                STATUS_DELAY_S, self._tell_status
            )

    def _tell_status(self) -> None:
        self._status_due = None
        status = self.status(self.focus)
        if status != self._status_told:
            self._status_told = status
            self.protocol.notify("fimls/didChangeStatus", status.to_json())

    def report_server_error(self, error: Exception, source: Any) -> None:
        """One line in the log, no pop-up."""
        log_error(
            logger, sys.exc_info()[1] or error
        )  # pygls wraps the error that it is just handling

    def _show_message(self, message: str, *, error: bool) -> None:
        kind = lsp.MessageType.Error if error else lsp.MessageType.Warning
        self.window_show_message(lsp.ShowMessageParams(kind, f"fimls: {message}"))

    def _on_progress(self, share: float | None) -> None:
        """Loading as work-done progress: a share from 0 to 1, None at its end."""
        if not self.can_show_progress:
            return
        before = self._progress

        async def report() -> None:
            if before is not None:
                await asyncio.wait({before})  # the client hears of the steps in their order
            progress = self.work_done_progress
            if share is None:
                if self._progress_token is not None:
                    progress.end(self._progress_token, lsp.WorkDoneProgressEnd())
                    self._progress_token = None
            elif self._progress_token is None:
                token = f"fimls-{uuid.uuid4()}"
                await progress.create_async(token)
                self._progress_token = token
                begin = lsp.WorkDoneProgressBegin(
                    title="fimls: loading the model", percentage=round(100 * share)
                )
                progress.begin(token, begin)
            else:
                progress.report(
                    self._progress_token, lsp.WorkDoneProgressReport(percentage=round(100 * share))
                )

        self._progress = asyncio.ensure_future(quietly(report()))


def make_server() -> FimlsServer:
    server = FimlsServer()

    @server.feature(lsp.INITIALIZED)
    async def initialized(_: lsp.InitializedParams) -> None:
        pulling = asyncio.ensure_future(quietly(server.pull_settings()))
        await asyncio.wait({pulling}, timeout=SETTINGS_WAIT_S)
        server.session.start()

    @server.feature(lsp.WORKSPACE_DID_CHANGE_CONFIGURATION)
    async def settings_changed(params: lsp.DidChangeConfigurationParams) -> None:
        if server._can_pull_settings:
            await quietly(server.pull_settings())
        else:
            server.session.configure(params.settings, trusted=False)

    @server.feature(lsp.TEXT_DOCUMENT_INLINE_COMPLETION, lsp.InlineCompletionOptions())
    async def inline_completion(params: lsp.InlineCompletionParams) -> lsp.InlineCompletionList:
        context = params.context
        work = server.answers(
            params.text_document.uri,
            params.position,
            invoked=context.trigger_kind == lsp.InlineCompletionTriggerKind.Invoked,
            selected=context.selected_completion_info,
        )
        items = [
            lsp.InlineCompletionItem(text, range=where, command=accepted_command(answer))
            for answer, where, text in await quietly(work) or []
        ]
        return lsp.InlineCompletionList(items=items)

    @server.feature(lsp.TEXT_DOCUMENT_COMPLETION, lsp.CompletionOptions())
    async def completion(params: lsp.CompletionParams) -> lsp.CompletionList:
        """The same suggestion as a menu's entry, for clients without inline completion."""
        uri, position = params.text_document.uri, params.position
        found = await quietly(server.answers(uri, position)) or []
        items: list[lsp.CompletionItem] = []
        for answer, where, suggested in found:
            # Clients compare an entry with the word that the cursor stands behind, so it begins
            # with that.
            document = server.documents.get(uri)
            word, units = (
                document.word_before(position.line, position.character) if document else ("", 0)
            )
            start = lsp.Position(where.start.line, where.start.character - units)
            text, match = word + suggested, answer.suggestion.match
            item = lsp.CompletionItem(
                label=text.strip().splitlines()[0][:60],
                kind=lsp.CompletionItemKind.Text,
                detail=f"fimls ({answer.model})" + (f" {match}" if match else ""),
                documentation=text,
                filter_text=text,
                text_edit=lsp.TextEdit(range=lsp.Range(start, where.end), new_text=text),
                insert_text_format=lsp.InsertTextFormat.PlainText,
                insert_text_mode=lsp.InsertTextMode.AsIs,
                command=accepted_command(answer),
            )
            items.append(item)
        return lsp.CompletionList(is_incomplete=True, items=items)

    from lsp_server.protocol.edits import add_edits
    from lsp_server.protocol.status import add_own_messages

    add_edits(server)
    add_own_messages(server)
    return server


async def run(
    incoming: int,
    outgoing: int,
    parent: int | None = None,
) -> int:
    """Serves one client over two descriptors until it says so, ends, or dies. Returns the exit
    status.

    parent: the process to go with, until `initialize` names one.
    """
    from lsp_server.protocol.transport import serve

    server = make_server()
    server.parent = parent
    serving = asyncio.ensure_future(serve(server, incoming, outgoing))
    watching = asyncio.ensure_future(parent_gone(server))
    await asyncio.wait({serving, watching}, return_when=asyncio.FIRST_COMPLETED)
    watching.cancel()
    server.suggestions.save(closed=True)
    await server.session.close()
    return serving.result() if serving.done() else 1


async def parent_gone(server: FimlsServer) -> None:
    """Returns when the process that `initialize` named is there no more."""
    while server.parent is None or is_alive(server.parent):
        await asyncio.sleep(PARENT_POLL_S)
    logger.info("the editor has gone")
