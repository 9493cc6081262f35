"""An editor for measurements: it drives a real `fimls lsp` over stdio, frame by frame, and does as
little work of its own as possible."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from lsp_server.engines.local import local_client
from lsp_server.folders import cache_folder
from lsp_server.protocol.client import GONE_TIMEOUT_S, READY_TIMEOUT_S
from model.cpu.code_cache import code_folder, is_intact
from model.prepared.files import prepared_files
from model.private_files import own_private_folder

INLINE = "textDocument/inlineCompletion"


class EditorError(Exception):
    """The server said that something is wrong."""


class Editor:
    """One window. Positions are counted in code points, so an offset needs no more than its line's
    start.

    Beside lsp_server/protocol/client.py's EditorWindow, which is short and stands on pygls and
    lsprotocol: that one sends whole documents and waits for each answer, and its milliseconds and
    imports would be measured along. This one edits by ranges, cancels, accepts, and has several
    requests in flight.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.messages: list[str] = []
        self._ready = asyncio.Event()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._texts: dict[str, tuple[int, str]] = {}
        self._count = 0
        self._reading = asyncio.ensure_future(self._read())

    @classmethod
    async def open(
        cls, folder: Path, settings: dict[str, Any], environment: dict[str, str]
    ) -> Editor:
        """Raises EditorError when the server objects to the settings or the model cannot be
        loaded."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "lsp_server",
            "lsp",
            "--stdio",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | environment,
        )
        editor = cls(process)
        await editor.request(
            "initialize",
            {
                "processId": os.getpid(),
                "rootUri": folder.absolute().as_uri(),
                "capabilities": {
                    "general": {"positionEncodings": ["utf-32"]},
                    "textDocument": {"inlineCompletion": {}},
                    "experimental": {"fimls": {"status": True}},
                },
                "initializationOptions": settings,
            },
        )
        editor.notify("initialized", {})
        ready = asyncio.ensure_future(editor._ready.wait())
        await asyncio.wait(
            {ready, editor._reading}, timeout=READY_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        ready.cancel()
        if not editor._ready.is_set() or editor.messages:
            await editor.close()
            raise EditorError("; ".join(editor.messages) or "the model did not load in time")
        return editor

    async def close(self) -> None:
        with contextlib.suppress(OSError, EditorError):
            await self.request("shutdown", None)
            self.notify("exit", None)
        try:
            await asyncio.wait_for(self.process.wait(), GONE_TIMEOUT_S)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        self._reading.cancel()

    def put(self, path: Path, language: str, text: str) -> None:
        """Opens a document; one that is open is closed first."""
        uri = path.as_uri()
        if uri in self._texts:
            self.notify("textDocument/didClose", {"textDocument": {"uri": uri}})
        self._texts[uri] = 1, text
        document = {"uri": uri, "languageId": language, "version": 1, "text": text}
        self.notify("textDocument/didOpen", {"textDocument": document})

    def forget(self, path: Path) -> None:
        """Closes a document."""
        if self._texts.pop(path.as_uri(), None):
            self.notify("textDocument/didClose", {"textDocument": {"uri": path.as_uri()}})

    def text(self, path: Path) -> str:
        return self._texts[path.as_uri()][1]

    def change(self, path: Path, start: int, end: int, new: str) -> None:
        """Replaces what stands between two offsets."""
        uri = path.as_uri()
        version, text = self._texts[uri]
        self._texts[uri] = version + 1, text[:start] + new + text[end:]
        where = {"start": position(text, start), "end": position(text, end)}
        self.notify(
            "textDocument/didChange",
            {
                "textDocument": {"uri": uri, "version": version + 1},
                "contentChanges": [{"range": where, "text": new}],
            },
        )

    def focus(self, path: Path, at: int) -> None:
        """The cursor has come to an offset."""
        where = {"textDocument": {"uri": path.as_uri()}, "position": position(self.text(path), at)}
        self.notify("textDocument/didFocus", where)

    def ask(self, path: Path, at: int) -> tuple[int, asyncio.Future[Any]]:
        """The number of a request for a suggestion, and its answer to come."""
        where = {"textDocument": {"uri": path.as_uri()}, "position": position(self.text(path), at)}
        return self._request(INLINE, where | {"context": {"triggerKind": 2}})

    def cancel(self, number: int) -> None:
        self.notify("$/cancelRequest", {"id": number})

    def accepted(self, item: dict[str, Any]) -> None:
        """Tells that an item's text was taken over."""
        command = item["command"]
        self._request(
            "workspace/executeCommand",
            {"command": command["command"], "arguments": command["arguments"]},
        )

    async def request(self, method: str, params: Any) -> Any:
        return await self._request(method, params)[1]

    def notify(self, method: str, params: Any) -> None:
        self._send({"method": method, "params": params})

    def _request(self, method: str, params: Any) -> tuple[int, asyncio.Future[Any]]:
        self._count += 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(
            lambda done: done.cancelled() or done.exception()
        )  # nobody may be waiting
        self._waiting[self._count] = answer
        self._send({"id": self._count, "method": method, "params": params})
        return self._count, answer

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0"} | message).encode()
        assert self.process.stdin is not None
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        try:
            while True:
                header = await self.process.stdout.readuntil(b"\r\n\r\n")
                size = int(header.lower().partition(b"content-length:")[2].split()[0])
                self._take(json.loads(await self.process.stdout.readexactly(size)))
        except asyncio.IncompleteReadError:
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(EditorError("the server has ended"))

    def _take(self, message: dict[str, Any]) -> None:
        method, number = message.get("method"), message.get("id")
        if method is None:
            answer = self._waiting.pop(number, None) if isinstance(number, int) else None
            if answer is not None and not answer.done():
                if "error" in message:
                    answer.set_exception(EditorError(message["error"]["message"]))
                else:
                    answer.set_result(message["result"])
            return
        params = message.get("params")
        if method == "window/showMessage":
            self.messages.append(params["message"])
        elif method == "fimls/didChangeStatus":
            if params["state"] == "failed":
                self.messages.append(params["message"])
            if params["state"] in ("ready", "failed"):
                self._ready.set()
        if number is not None:  # the server asks: there is nothing to tell
            self._send({"id": number, "result": None})


def position(text: str, offset: int) -> dict[str, int]:
    start = text.rfind("\n", 0, offset) + 1
    return {"line": text.count("\n", 0, start), "character": offset - start}


class Home:
    """Private folders for sockets, logs and counts, so that no engine of the user's is measured, or
    stopped."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="fimls-"))
        self.environment = {
            "FIMLS_RUNTIME_DIR": str(self.path / "run"),
            "FIMLS_LOG_DIR": str(self.path / "log"),
            "FIMLS_STATE_DIR": str(self.path / "state"),
            "FIMLS_CACHE_DIR": str(self.path / "cache"),
        }
        self._seen = 0

    @property
    def log(self) -> Path:
        return self.path / "log" / "lsp.log"

    def new_lines(self) -> list[str]:
        """What the server has logged since the last call; a log that was begun anew is read from
        its start."""
        if not self.log.exists():
            return []
        if self.log.stat().st_size < self._seen:
            self._seen = 0
        with self.log.open("rb") as file:
            file.seek(self._seen)
            raw = file.read()
        whole = raw.rpartition(b"\n")[0]
        self._seen += len(whole) + 1 if whole else 0
        return whole.decode().splitlines()

    def take_machine_code(self) -> None:
        """The user's, where there is any: compiling takes a minute and is not what is measured."""
        kept = code_folder(cache_folder())
        if kept is not None and is_intact(kept):
            here = self.path / "cache" / "compiled"
            own_private_folder(here)
            shutil.copytree(kept, here / kept.name)

    async def statuses(self) -> list[dict[str, Any]]:
        """What the engines here say of themselves."""
        return [status for status in await self._call("GET", "/fimls/status") if status is not None]

    async def engine_of(self, model: str) -> tuple[Path, dict[str, Any]]:
        """The socket and the status of a model's engine; another may run that stood in for it."""
        for socket in (self.path / "run").glob("*.sock"):
            status = await self._ask(socket, "GET", "/fimls/status")
            if status is not None and status["model"] == model:
                return socket, status
        raise EditorError(f"no engine has {model}")

    async def until_upgraded(self) -> None:
        """Until the engines here have become as fast as they get."""
        async with asyncio.timeout(READY_TIMEOUT_S):
            while not all(status["upgraded"] for status in await self.statuses()):
                await asyncio.sleep(0.2)

    async def until_prepared(self) -> None:
        """Until the next start will find prepared weights (model/prepared)."""
        async with asyncio.timeout(READY_TIMEOUT_S):
            while not list(prepared_files(self.path / "cache")):
                await asyncio.sleep(0.2)

    async def stop(self) -> None:
        """Ends the engines here."""
        await self._call("POST", "/fimls/stop")
        for _ in range(100):
            if not any((self.path / "run").glob("*.sock")):
                break
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        await self.stop()
        shutil.rmtree(self.path, ignore_errors=True)

    async def _call(self, method: str, call: str) -> list[dict[str, Any] | None]:
        sockets = (self.path / "run").glob("*.sock")
        return [await self._ask(socket, method, call) for socket in sockets]

    async def _ask(self, socket: Path, method: str, call: str) -> dict[str, Any] | None:
        client = local_client(socket)
        try:
            return await client.call(method, call)
        finally:
            await client.close()


@contextlib.asynccontextmanager
async def own_home() -> AsyncIterator[Home]:
    """A home for this process and all that it starts from now on; its engines end with the
    block."""
    home = Home()
    os.environ.update(home.environment)
    try:
        yield home
    finally:
        await home.close()


@contextlib.asynccontextmanager
async def window(
    folder: Path, settings: dict[str, Any], home: Home | None = None, alone: bool = True
) -> AsyncIterator[tuple[Editor, Home]]:
    """An editor. home: that has been used before; without, a new one. alone: its engine ends with
    it."""
    here = home or Home()
    try:
        if home is None:
            here.take_machine_code()
        editor = await Editor.open(folder, settings, here.environment)
        try:
            await here.until_upgraded()
            yield editor, here
        finally:
            await editor.close()
            if alone:
                await here.stop()
    finally:
        if home is None:
            await here.close()
