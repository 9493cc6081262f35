"""The server of one window, and pygls' protocol with our mirror of the texts."""

from __future__ import annotations

import asyncio
import logging
import sys
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsprotocol import types as lsp
from pygls.lsp.server import LanguageServer
from pygls.protocol import LanguageServerProtocol
from pygls.protocol.json_rpc import RPCMessage, RPCRequest
from pygls.protocol.language_server import lsp_method

from lsp_server import __version__
from lsp_server.context.locations import below, to_path
from lsp_server.documents import Documents
from lsp_server.logs import log_error, quietly
from lsp_server.protocol.conversions import to_change, to_encoding, value_at
from lsp_server.scheduler import Background
from lsp_server.session.session import Session, Status

if TYPE_CHECKING:
    from lsp_server.completion.suggestions import Suggestions

logger = logging.getLogger(__name__)
STATUS_DELAY_S = 0.05
CLOSE_S = 1.0  # until what was cancelled has ended


class Protocol(LanguageServerProtocol):
    """pygls' protocol with our mirror of the texts: pygls' own misreads line ends and edits."""

    _server: FimlsServer

    def handle_message(self, message: RPCMessage) -> None:
        if self._shutdown and isinstance(message, RPCRequest):
            code = lsp.ErrorCodes.InvalidRequest
            refusal = lsp.ResponseError(code, "the server is shutting down")
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
        self._server.close_suggestions()
        for work in self._server.commands.values():
            work.cancel()
        # pygls loops over them, too, and fails where one is removed at once.
        for number, future in list(self._request_futures.items()):
            if number != self.msg_id:
                future.cancel()
        return (yield from super().lsp_shutdown(*params))

    @lsp_method(lsp.TEXT_DOCUMENT_DID_OPEN)
    def lsp_text_document__did_open(self, params: lsp.DidOpenTextDocumentParams) -> None:
        opened = params.text_document
        self._server.close_document(opened.uri)
        documents = self._server.documents
        documents.open(opened.uri, opened.version, opened.language_id, opened.text)
        self._server.status_changed()  # it depends on the document's language

    @lsp_method(lsp.TEXT_DOCUMENT_DID_CHANGE)
    def lsp_text_document__did_change(self, params: lsp.DidChangeTextDocumentParams) -> None:
        server = self._server
        uri = params.text_document.uri
        server.session.close_work(uri)
        changes = [to_change(event) for event in params.content_changes]
        try:
            server.documents.change(uri, params.text_document.version, changes)
        except Exception:
            server.documents.close(uri)  # no mirror is better than a wrong one
            raise
        if changes and server.has_suggestions:
            line, character = changes[-1].start or (0, 0)
            server.suggestions.edited(server.documents.need(uri).snapshot(line, character))

    @lsp_method(lsp.TEXT_DOCUMENT_DID_CLOSE)
    def lsp_text_document__did_close(self, params: lsp.DidCloseTextDocumentParams) -> None:
        self._server.close_document(params.text_document.uri)


class FimlsServer(LanguageServer):
    """The state of one window as far as LSP goes. The rest is in `session` and `suggestions`."""

    def __init__(self) -> None:
        super().__init__("fimls", __version__, protocol_cls=Protocol)
        self.documents = Documents()
        self.session = Session(self._show_message, self._on_progress, self.status_changed)
        self.parent: int | None = None  # the editor's process
        self.focus: str | None = None  # the document that the user looks at
        self.can_pull_settings = False
        self.can_show_progress = False
        self.takes_offers = False  # of a larger model, as a notification instead of a question
        self.background = Background()
        self.commands: dict[Any, asyncio.Future[Any]] = {}  # that are running, by request
        self._progress: asyncio.Task[None] | None = None
        self._progress_token: str | None = None
        self._status_told: Status | None = None
        self._status_due: asyncio.TimerHandle | None = None

    @cached_property
    def suggestions(self) -> Suggestions:
        # Imported at the first request, after `initialize` is answered: it takes some 0.3 s.
        from lsp_server.completion.suggestions import Suggestions
        from lsp_server.context.project import ProjectContext

        project = ProjectContext(lambda: self.documents.all, self.folders)
        return Suggestions(self.session, project)

    @property
    def has_suggestions(self) -> bool:
        """Whether there was a request: before, there is nothing to close, and no need to import."""
        return "suggestions" in vars(self)

    def initialized_by(self, params: lsp.InitializeParams, offered: lsp.ServerCapabilities) -> None:
        """Takes what the client tells; withdraws from `offered` what it does not need."""
        self.parent = params.process_id or self.parent
        encoding = offered.position_encoding or lsp.PositionEncodingKind.Utf16
        self.documents = Documents(to_encoding(encoding))
        text_document = params.capabilities.text_document
        if text_document is not None and text_document.inline_completion is not None:
            offered.completion_provider = None  # ghost text is better
        workspace = params.capabilities.workspace
        window = params.capabilities.window
        self.can_pull_settings = bool(workspace and workspace.configuration)
        self.can_show_progress = bool(window and window.work_done_progress)
        if params.client_info is not None:
            name = f"{params.client_info.name} {params.client_info.version or ''}"
            self.session.client_name = name.strip()
        self.takes_offers = value_at(params.capabilities.experimental, "fimls", "offers") is True
        shows_status = value_at(params.capabilities.experimental, "fimls", "status")
        self.session.client_shows_status = shows_status is True
        self.session.configure(params.initialization_options, trusted=True)

    def relative_path(self, uri: str) -> str | None:
        """The path below the workspace folder, or else the bare name; None if it is no file."""
        path = to_path(uri)
        return None if path is None else below(path, self.folders())

    def folders(self) -> list[Path]:
        """The workspace's folders."""
        uris = [folder.uri for folder in self.workspace.folders.values()]
        return list(filter(None, map(to_path, uris or [self.workspace.root_uri or ""])))

    @contextmanager
    def cancelled_with_request(self, work: asyncio.Future[Any]) -> Iterator[None]:
        """While this lasts, cancelling the command's request cancels the work, too."""
        number = self.protocol.msg_id
        self.commands[number] = work
        try:
            yield
        finally:
            del self.commands[number]

    # ---- documents ----

    def close_document(self, uri: str) -> None:
        """Forgets a document, and ends the work for it."""
        self.documents.close(uri)
        self.session.close_work(uri)
        self.close_suggestions(uri)

    def close_suggestions(self, uri: str | None = None) -> None:
        """Forgets a document's suggestions, or all, and ends the work for them."""
        if self.has_suggestions:
            self.suggestions.close(uri)

    async def close(self) -> None:
        """Ends all work, and saves the counts."""
        self.close_suggestions()
        if self.has_suggestions:
            self.suggestions.save(closed=True)
        work = {*self.commands.values(), *self.background.tasks}
        for each in work:
            each.cancel()
        if work:
            await asyncio.wait(work, timeout=CLOSE_S)
        await self.session.close()

    # ---- status ----

    def status(self, uri: str | None = None) -> Status:
        document = self.documents.get(uri or "")
        return self.session.status(document.language if document is not None else None)

    def status_changed(self) -> None:
        """Tells a client that wants to know, unless the change is undone within a moment."""
        if self.session.client_shows_status and self._status_due is None:
            loop = asyncio.get_running_loop()
            self._status_due = loop.call_later(STATUS_DELAY_S, self._tell_status)

    def _tell_status(self) -> None:
        self._status_due = None
        status = self.status(self.focus)
        if status != self._status_told:
            self._status_told = status
            self.protocol.notify("fimls/didChangeStatus", status.to_json())

    def report_server_error(self, error: Exception, source: Any) -> None:
        """One line in the log, no pop-up."""
        # pygls wraps the error that is being handled.
        log_error(logger, sys.exc_info()[1] or error)

    def _show_message(self, message: str, *, error: bool) -> None:
        kind = lsp.MessageType.Error if error else lsp.MessageType.Warning
        self.window_show_message(lsp.ShowMessageParams(kind, f"fimls: {message}"))

    def _on_progress(self, share: float | None) -> None:
        """Shows loading as work-done progress: a share from 0 to 1, and None at its end."""
        if self.can_show_progress:
            report = self._report_progress(share, self._progress)
            self._progress = asyncio.ensure_future(quietly(report))

    async def _report_progress(
        self, share: float | None, before: asyncio.Task[None] | None
    ) -> None:
        if before is not None:
            await asyncio.wait({before})  # the reports are sent in their order
        progress = self.work_done_progress
        token = self._progress_token
        percentage = round(100 * (share or 0.0))
        if share is None:
            if token is not None:
                progress.end(token, lsp.WorkDoneProgressEnd())
                self._progress_token = None
        elif token is None:
            token = f"fimls-{uuid.uuid4()}"
            await progress.create_async(token)
            self._progress_token = token
            title = "fimls: loading the model"
            progress.begin(token, lsp.WorkDoneProgressBegin(title=title, percentage=percentage))
        else:
            progress.report(token, lsp.WorkDoneProgressReport(percentage=percentage))
