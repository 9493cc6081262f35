"""A small editor that drives a real `fimls lsp` over stdio, for the demo and the benchmarks."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

from lsprotocol import types as lsp
from pygls.lsp.client import BaseLanguageClient  # type: ignore[attr-defined]

from lsp_server import __version__
from lsp_server.protocol.conversions import value_at

READY_TIMEOUT_S = 180.0
GONE_TIMEOUT_S = 5.0


class EditorWindow:
    """One window: `async with EditorWindow(folder) as window`. Positions count from 0, columns in
    code points.

    initialize_ms and ready_ms count from the start of the server's process. messages: what the
    server showed.
    """

    def __init__(self, folder: Path, settings: dict[str, Any] | None = None) -> None:
        self.messages: list[str] = []
        self.initialize_ms = self.ready_ms = 0.0
        self._folder = folder
        self._settings = settings or {}
        self._ready = asyncio.Event()
        self._versions: dict[Path, int] = {}
        self._client = BaseLanguageClient("fimls-client", __version__)

    async def __aenter__(self) -> EditorWindow:
        client = self._client
        client.feature(lsp.WINDOW_SHOW_MESSAGE)(lambda params: self.messages.append(params.message))
        client.feature(lsp.WINDOW_WORK_DONE_PROGRESS_CREATE)(lambda params: None)
        client.feature(lsp.PROGRESS)(lambda params: self._progressed(params.value))
        self.started = time.perf_counter()
        # -P: nothing is imported from the working folder, which may be anyone's repository
        await client.start_io(sys.executable, "-P", "-m", "lsp_server", "lsp", "--stdio")
        inline = lsp.InlineCompletionClientCapabilities()
        encodings = [lsp.PositionEncodingKind.Utf32]
        capabilities = lsp.ClientCapabilities(
            text_document=lsp.TextDocumentClientCapabilities(inline_completion=inline),
            general=lsp.GeneralClientCapabilities(position_encodings=encodings),
            window=lsp.WindowClientCapabilities(work_done_progress=True),
        )
        params = lsp.InitializeParams(
            capabilities=capabilities,
            process_id=os.getpid(),
            root_uri=self._folder.absolute().as_uri(),
            initialization_options=self._settings,
        )
        await client.initialize_async(params)
        self.initialize_ms = self._since_start()
        client.initialized(lsp.InitializedParams())
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.shutdown_async(None)
        self._client.exit(None)
        if (process := self._client._server) is not None:
            await asyncio.wait_for(process.wait(), GONE_TIMEOUT_S)
        await self._client.stop()  # type: ignore[no-untyped-call]

    @property
    def process_id(self) -> int:
        """The server's process."""
        assert self._client._server is not None
        return self._client._server.pid

    async def wait_until_ready(self) -> bool:
        """Waits until the model is loaded; False when it could not be (see problem)."""
        ended = asyncio.ensure_future(self._ready.wait())
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not ended.done() and not self.messages and time.monotonic() < deadline:
            await asyncio.wait({ended}, timeout=0.05)
        ended.cancel()
        return self._ready.is_set() and not self.messages

    @property
    def problem(self) -> str:
        """Why the model is not loaded, without the server's name in front."""
        told = [message.removeprefix("fimls: ") for message in self.messages]
        return "; ".join(told) or "the model did not load in time"

    def put(self, path: Path, language: str, text: str) -> None:
        """Opens a document, or replaces its whole text."""
        version = self._versions[path] = self._versions.get(path, 0) + 1
        if version == 1:
            item = lsp.TextDocumentItem(path.as_uri(), language, version, text)
            self._client.text_document_did_open(lsp.DidOpenTextDocumentParams(item))
        else:
            document = lsp.VersionedTextDocumentIdentifier(version, path.as_uri())
            changes = [lsp.TextDocumentContentChangeWholeDocument(text)]
            params = lsp.DidChangeTextDocumentParams(document, changes)
            self._client.text_document_did_change(params)

    async def ask(self, path: Path, line: int, column: int) -> str:
        """The inline completion at a position, "" where there is none."""
        params = lsp.InlineCompletionParams(
            context=lsp.InlineCompletionContext(lsp.InlineCompletionTriggerKind.Automatic),
            text_document=lsp.TextDocumentIdentifier(path.as_uri()),
            position=lsp.Position(line, column),
        )
        answer = await self._client.text_document_inline_completion_async(params)
        items: Any = getattr(answer, "items", answer)  # LSP also allows a bare list, and null
        if not items:
            return ""
        return str(items[0].insert_text)

    def _progressed(self, value: Any) -> None:
        if getattr(value, "kind", None) == "end" or value_at(value, "kind") == "end":
            self.ready_ms = self.ready_ms or self._since_start()
            self._ready.set()

    def _since_start(self) -> float:
        return (time.perf_counter() - self.started) * 1000
