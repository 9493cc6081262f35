"""What the tests of the server share: a place for engines, an editor's window, an endpoint that
does as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

from lsp_server.engines.local import local_client
from model.engine.rendezvous import engines_in as engines_at
from tests.conftest import STARCODER2, write_tokenizer

PATIENCE_S = (
    120.0  # for what must come some time; on a busy machine an engine takes a while to load
)
GONE_S = 2.0  # the promise
URI = "file:///work/place/code.py"
INLINE = {"textDocument": {"inlineCompletion": {}}}


async def until(condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """Waits until the condition gives something true, and returns it. It may be a coroutine
    function."""
    deadline = time.monotonic() + patience_s
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"waited for {patience_s} s in vain"
        await asyncio.sleep(0.02)


def engines_in(folder: Path) -> list[int]:
    """The engine processes that run in this runtime folder, spares that wait to be told what to
    serve among them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                b"model.engine" in (process / "cmdline").read_bytes()
                and (process / "cwd").readlink() == folder
            ):
                found.append(int(process.name))
    return found


class Home:
    """Folders of a user of our own, for sockets and logs. The path is short: a socket's may have
    107 bytes."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="fimls-", dir="/tmp"))
        self.runtime, self.logs = self.path / "run", self.path / "log"
        self.environment = {
            "FIMLS_RUNTIME_DIR": str(self.runtime),
            "FIMLS_LOG_DIR": str(self.logs),
            "FIMLS_STATE_DIR": str(self.path / "state"),
            "FIMLS_CONFIG_DIR": str(self.path / "config"),
            "FIMLS_CACHE_DIR": str(self.path / "cache"),
            # each home would compile for itself: tests/model/cpu/test_code_cache.py does
            "NUMBA_DISABLE_JIT": "1",
        }

    def engines(self) -> list[int]:
        return engines_in(self.runtime)

    async def status(self) -> dict[str, Any] | None:
        """What the one engine says of itself; None where none answers."""
        for path in engines_at(self.runtime):
            client = local_client(path)
            try:
                if (status := await client.call("GET", "/fimls/status")) is not None:
                    return status
            finally:
                await client.close()
        return None

    async def is_busy(self) -> bool:
        status = await self.status()
        return status is not None and bool(status["busy"])

    def log(self, name: str = "lsp.log") -> str:
        path = self.logs / name
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        """Stops the engines; one that does not go in good time is killed, and that is a failure."""
        gone = self._all_gone_after(signal.SIGTERM)
        if not gone:
            self._all_gone_after(signal.SIGKILL)
        self._remove()
        assert gone, "an engine had to be killed"

    def _remove(self) -> None:
        """Also while a server that an editor has started, and that is just ending, writes what it
        has counted."""
        deadline = time.monotonic() + PATIENCE_S / 4
        while self.path.exists():
            try:
                shutil.rmtree(self.path)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _all_gone_after(self, sign: signal.Signals) -> bool:
        for pid in self.engines():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        deadline = time.monotonic() + PATIENCE_S / 4
        while self.engines() and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self.engines()


class RpcError(Exception):
    """The server answered with an error; the code is LSP's."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.code = error["code"]


class Window:
    """One editor window, at the level of frames, so that it can also send what no library would.

    shown: the server's messages to the user; progress: the kinds of its progress reports; reports:
    those reports; statuses: what it told of itself; edits: what it wanted applied; tokens: of its
    progress; answers: how many came for each id; questions: what it asked the user, with the
    answers to choose from; offers: of a larger model.
    """

    def __init__(
        self, channel: socket.socket, process: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.process = process
        self.shown: list[str] = []
        self.progress: list[str] = []
        self.reports: list[dict[str, Any]] = []
        self.questions: list[tuple[str, list[str]]] = []
        self.offers: list[dict[str, Any]] = []
        self.choice: Any = None  # what the user answers: a beginning of it, None closes; ...: not
        self.statuses: list[dict[str, Any]] = []
        self.edits: list[dict[str, Any]] = []
        self.tokens: list[str] = []
        self.applies: dict[str, Any] = {"applied": True}  # what it answers to an edit
        self.answers: Counter[int] = Counter()
        self.configuration: Any = None  # what the server is told when it asks
        self.capabilities: dict[str, Any] = {}
        self._channel = channel
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._held: bytearray | None = None
        self._count = 0

    @classmethod
    def spawn(cls, home: Home, *arguments: str, cwd: Path | None = None) -> Window:
        """A window on a `fimls lsp` of its own, which finds its engines in this home."""
        ours, theirs = socket.socketpair()
        home.logs.mkdir(exist_ok=True)
        with theirs, (home.logs / "stderr").open("ab") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "lsp_server", "lsp", *arguments],
                stdin=theirs,
                stdout=theirs,
                stderr=stderr,
                env=os.environ | home.environment,
                cwd=cwd,
            )
        return cls(ours, process)

    async def __aenter__(self) -> Window:
        self._reader, self._writer = await asyncio.open_connection(sock=self._channel)
        self._reading = asyncio.ensure_future(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Leaves as an editor does, unless the server has gone before."""
        if not self._reading.done():
            await self.request("shutdown")
            self.notify("exit")
        await self.ended()
        self._writer.close()
        if self.process is not None:
            await self.exit_status()

    async def ended(self) -> None:
        """Waits until the server closes its side."""
        await asyncio.wait_for(self._reading, PATIENCE_S)

    async def exit_status(self) -> int:
        """The process's status, when it has ended."""
        assert self.process is not None
        await until(lambda: self.process.poll() is not None)
        return self.process.returncode

    async def start(
        self,
        settings: dict[str, Any] | None = None,
        capabilities: dict[str, Any] = INLINE,
        **more: Any,
    ) -> None:
        """initialize and initialized."""
        params = {"processId": os.getpid(), "rootUri": None, "initializationOptions": settings}
        result = await self.request("initialize", params | {"capabilities": capabilities} | more)
        self.capabilities = result["capabilities"]
        self.notify("initialized", {})

    # ---- documents ----

    def open(self, text: str, uri: str = URI, language: str = "python") -> None:
        document = {"uri": uri, "languageId": language, "version": 1, "text": text}
        self.notify("textDocument/didOpen", {"textDocument": document})

    def change(
        self, version: int, text: str, where: dict[str, Any] | None = None, uri: str = URI
    ) -> None:
        """An edit of a range, or of the whole text."""
        edit = {"text": text} if where is None else {"text": text, "range": where}
        document = {"uri": uri, "version": version}
        self.notify("textDocument/didChange", {"textDocument": document, "contentChanges": [edit]})

    def reopen(self, text: str) -> None:
        """As open, and what was suggested for the document is forgotten, so that the engine will be
        asked again."""
        self.close_document()
        self.open(text)

    def close_document(self, uri: str = URI) -> None:
        self.notify("textDocument/didClose", {"textDocument": {"uri": uri}})

    def ask(
        self,
        line: int,
        character: int,
        uri: str = URI,
        *,
        menu: bool = False,
        invoked: bool = False,
        **context: Any,
    ) -> tuple[int, asyncio.Future[Any]]:
        """Asks for a suggestion; the request's id and its answer's items."""
        params: dict[str, Any] = {
            "textDocument": {"uri": uri},
            "position": {"line": line, "character": character},
            "context": {"triggerKind": 1 if invoked or menu else 2} | context,
        }
        number, answer = self.send(
            "textDocument/completion" if menu else "textDocument/inlineCompletion", params
        )

        async def items() -> Any:
            return (await asyncio.wait_for(answer, PATIENCE_S))["items"]

        return number, asyncio.ensure_future(items())

    async def suggestion(
        self, line: int, character: int, uri: str = URI, *, menu: bool = False
    ) -> dict[str, Any]:
        """Asks again and again, as someone types, until there is one; its item."""

        async def items() -> Any:
            return await self.ask(line, character, uri, menu=menu)[1]

        (item,) = await until(items)
        return item

    # ---- messages ----

    def send(self, method: str, params: Any = None) -> tuple[int, asyncio.Future[Any]]:
        self._count += 1
        self._waiting[self._count] = asyncio.get_running_loop().create_future()
        self._write(id=self._count, method=method, params=params)
        return self._count, self._waiting[self._count]

    async def request(self, method: str, params: Any = None) -> Any:
        """The result. Raises RpcError."""
        return await asyncio.wait_for(self.send(method, params)[1], PATIENCE_S)

    def cancel(self, number: int) -> None:
        self.notify("$/cancelRequest", {"id": number})

    async def command(self, name: str, *arguments: Any) -> Any:
        """The result of a command of the server. Raises RpcError."""
        params = {"command": name, "arguments": list(arguments)}
        return await self.request("workspace/executeCommand", params)

    def notify(self, method: str, params: Any = None) -> None:
        self._write(method=method, params=params)

    def end_of_input(self) -> None:
        """What the server sees when an editor closes its pipe."""
        self._writer.write_eof()

    def hang_up(self) -> None:
        self._writer.close()

    def _write(self, **message: Any) -> None:
        body = json.dumps({"jsonrpc": "2.0"} | message).encode()
        frame = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        if self._held is None:
            self._writer.write(frame)
        else:
            self._held += frame

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is said meanwhile comes in one piece."""
        self._held = bytearray()
        try:
            yield
        finally:
            said, self._held = self._held, None
            self._writer.write(said)

    async def _read(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                header = await self._reader.readuntil(b"\r\n\r\n")
                length = int(header.split(b"Content-Length: ")[1].split(b"\r\n")[0])
                self._take(json.loads(await self._reader.readexactly(length)))

    def _take(self, message: dict[str, Any]) -> None:
        method, params = message.get("method"), message.get("params")
        if method is None:
            self.answers[message["id"]] += 1
            waiting = self._waiting.pop(message["id"])
            if waiting.done():
                return
            if "error" in message:
                waiting.set_exception(RpcError(message["error"]))
            else:
                waiting.set_result(message["result"])
        elif method == "window/showMessage":
            self.shown.append(params["message"])
        elif method == "fimls/didChangeStatus":
            self.statuses.append(params)
        elif method == "$/progress":
            self.progress.append(params["value"]["kind"])
            self.reports.append(params["value"])
        elif method == "fimls/offerModel":
            self.offers.append(params)
        elif method == "window/showMessageRequest":
            titles = [action["title"] for action in params["actions"]]
            self.questions.append((params["message"], titles))
            if self.choice is not ...:
                chosen = [t for t in titles if self.choice and t.startswith(self.choice)]
                self._write(id=message["id"], result={"title": chosen[0]} if chosen else None)
        elif method == "workspace/configuration":
            if self.configuration is not ...:  # ...: a client that does not answer
                self._write(id=message["id"], result=[self.configuration])
        elif method == "workspace/applyEdit":
            self.edits.append(params["edit"])
            self._write(id=message["id"], result=self.applies)
        else:
            assert method == "window/workDoneProgress/create", f"an unexpected {method}"
            self.tokens.append(params["token"])
            self._write(id=message["id"], result=None)


@contextlib.asynccontextmanager
async def window_in_process(
    settings: dict[str, Any] | None = None,
    capabilities: dict[str, Any] = INLINE,
    configuration: Any = None,
    **more: Any,
) -> AsyncIterator[Window]:
    """A window on a server that runs in this process, where a test can put faults into it."""
    from lsp_server.protocol.app import run

    ours, theirs = socket.socketpair()
    with theirs:
        serving = asyncio.ensure_future(run(theirs.fileno(), theirs.fileno()))
        serving.add_done_callback(
            lambda _: theirs.shutdown(socket.SHUT_RDWR)
        )  # as the end of a process does
        try:
            async with Window(ours) as window:
                window.configuration = configuration
                await window.start(settings, capabilities, **more)
                yield window
        finally:
            await asyncio.wait_for(serving, PATIENCE_S)
            # The descriptor is closed when nobody reads it any more: its number may soon be
            # another's.
            await until(
                lambda: not any(thread.name == "lsp-reader" for thread in threading.enumerate())
            )


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Endpoint:
    """A completions endpoint on loopback. bodies: what it was asked; streams: the answers it is
    at."""

    def __init__(self, answer: Answer, tls: ssl.SSLContext | None = None) -> None:
        self.answer, self._tls = answer, tls
        self.bodies: list[dict[str, Any]] = []
        self.streams = 0

    async def __aenter__(self) -> Endpoint:
        app = web.Application()
        app.router.add_post("/v1/completions", self._handle)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.streams += 1
        try:
            return await self.answer(request)
        finally:
            self.streams -= 1


def chunk(text: str) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": {"token_logprobs": [-0.1]}}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def says(*texts: str) -> Answer:
    """An endpoint's whole answer, piece by piece."""
    return sends(*map(chunk, texts), b"data: [DONE]\n\n")


def sends(*parts: bytes) -> Answer:
    """An endpoint that sends these bytes and closes."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        return response

    return answer


def answers_with(status: int, body: str, content_type: str = "application/json") -> Answer:
    """An endpoint's answer that is not a stream."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, text=body, content_type=content_type)

    return answer


async def talks(request: web.Request) -> web.StreamResponse:
    """An endpoint's answer that never ends, nor goes round in loops, which would end it."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in itertools.count():
        await response.write(chunk(f"a{number}+"))
        await asyncio.sleep(0.01)
    raise AssertionError


def front_folder(folder: Path, **config: Any) -> Path:
    """A model folder as far as the front reads it: no weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(STARCODER2 | {"max_position_embeddings": 4096} | config)
    )
    write_tokenizer(folder)
    return folder


@contextlib.asynccontextmanager
async def window_on(
    answer: Answer, settings: dict[str, Any] | None = None, **more: Any
) -> AsyncIterator[tuple[Window, Endpoint]]:
    """A window in this process, its endpoint, and an open document "x = "; ready to be asked."""
    async with Endpoint(says("ready\n")) as endpoint:
        remote = {
            "remote.url": endpoint.url,
            "remote.format": "starcoder2",
            "remote.timeout": 10 * PATIENCE_S,
        }
        async with window_in_process(remote | (settings or {}), **more) as window:
            window.open("x = ")
            await window.suggestion(0, 4)
            window.reopen("x = ")
            endpoint.answer = answer
            endpoint.bodies.clear()
            yield window, endpoint
