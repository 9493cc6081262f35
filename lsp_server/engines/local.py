"""The engine process here: found, started, attached to, replaced, and started again if it dies."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import subprocess
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import aiohttp

from lsp_server import __version__
from lsp_server.engines.http import HttpClient, Where
from lsp_server.engines.interface import (
    CompletionRequest,
    Engine,
    EngineState,
    EngineUnavailable,
    Piece,
)
from lsp_server.engines.process import end_spare, start_engine
from lsp_server.engines.remote import RemoteEngine
from lsp_server.folders import cache_folder, runtime_folder
from lsp_server.logs import engine_log
from lsp_server.settings import Settings
from model.engine.options import EngineOptions, Launch
from model.engine.rendezvous import HOST, PORT, read_address, suffix
from model.errors import NO_MEMORY, NO_MEMORY_STATUS
from model.weights.files import ModelFiles
from model.weights.folder import find_model

logger = logging.getLogger(__name__)

POLL_S = 0.05
MAX_PAUSE_S = 60.0
RESTARTS = 3  # in a row without an answer, before the user is told
STEADY_S = 30.0  # after so long an engine is restarted without a pause


class LocalEngine:
    """A window's side of the engine that it shares with the user's other windows.

    The engine itself holds a lock for its lifetime, so however many windows start one at once, one
    stays. An engine that is gone (idle, killed, out of memory) is noticed by the next request,
    which gets no answer and starts it again, after pauses that grow while it keeps dying.
    """

    has_idle_time = True

    def __init__(
        self,
        folder: ModelFiles,
        options: EngineOptions,
        *,
        on_state: Callable[[EngineState], None] = lambda state: None,
    ) -> None:
        self._options = options
        self._on_state = on_state
        self._model = "bundled"
        if not folder.is_bundled:
            self._model = str(folder.path.resolve())
        self.socket = socket_path(folder, options)
        self.address = str(self.socket)
        self._client = local_client(self.socket, self._model)
        self.state = EngineState("absent")
        self.prefill_per_s: float | None = None
        self._starting: asyncio.Task[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ready_since = 0.0
        self._pause = 0.0
        self._not_before = 0.0

    def start(self) -> None:
        if self.state.name in ("ready", "loading") or time.monotonic() < self._not_before:
            return
        self._process = None  # forget the earlier process
        self._set(EngineState("loading"))
        try:
            if not self.socket.exists():
                self._spawn()  # first: the engine takes longest
        except OSError as error:
            self._fail(f"The engine could not be started ({error}).")
        else:
            self._starting = asyncio.ensure_future(self._bring_up())

    async def wait_until_settled(self) -> EngineState:
        if self._starting is not None:
            await asyncio.shield(self._starting)
        return self.state

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        if self.state.name != "ready":
            self.start()
            words = self.state.message or "The model is loading"
            raise EngineUnavailable(words, tell_after=RESTARTS)
        pieces = self._client.stream(request)
        try:
            async for piece in pieces:
                self.prefill_per_s = piece.prefill_per_s or self.prefill_per_s
                yield piece
        except EngineUnavailable as error:
            status = await self._client.call("GET", "/fimls/status")
            if status is None and self.state.name == "ready":
                self._lost()
            raise EngineUnavailable(
                error.message,
                quoted=error.quoted,
                remedy=f"Its log is {engine_log()}.",
                tell_after=RESTARTS if status is None else 1,
            ) from None
        finally:
            await pieces.aclose()

    async def prefill(self, request: CompletionRequest) -> None:
        if self.state.name == "ready":
            await self._client.prefill(request)

    async def release(self, client: str) -> None:
        if self._starting is not None:
            self._starting.cancel()
        if self.state.name == "loading" and self._process is not None:
            if self._process.poll() is None:
                self._process.terminate()  # a window that waits for it, too, starts another
            return
        await self._client.call("POST", f"/fimls/release?client={client}")

    async def close(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        await self._client.close()

    def _set(self, state: EngineState) -> None:
        if state.name == "ready":
            end_spare()  # the engine was there already
        if state != self.state:
            self.state = state
            self._on_state(state)

    def _fail(self, message: str) -> None:
        self._grow_pause()
        self._set(EngineState("failed", message=message))

    def _lost(self) -> None:
        """Starts an engine that has gone: at once if it was steady, else after a growing pause."""
        now = time.monotonic()
        if now - self._ready_since > STEADY_S:
            self._pause = 1.0
            self._not_before = now
        else:
            self._grow_pause()
        logger.info("the engine has gone; starting it again after %.0f s", self._not_before - now)
        self._set(EngineState("absent"))
        self.start()

    def _grow_pause(self) -> None:
        self._not_before = time.monotonic() + self._pause
        self._pause = min(MAX_PAUSE_S, max(1.0, 2 * self._pause))

    async def _bring_up(self) -> None:
        """Attaches to an engine, or starts or replaces it, until it is ready, failed or late."""
        deadline = time.monotonic() + self._options.start_timeout
        replacing = False
        try:
            while time.monotonic() < deadline:
                status = await self._client.call("GET", "/fimls/status")
                if status is None:
                    self._see_to_process()
                elif status.get("version") != __version__ or status.get("model") != self._model:
                    if not replacing:
                        logger.info("replacing an engine of another version or model")
                    replacing = True
                    await self._client.call("POST", "/fimls/stop")
                    self._process = None
                else:
                    self._attach(status)
                if self.state.name != "loading":
                    return
                await asyncio.sleep(POLL_S)
            self._fail(
                f"The engine did not get ready within {self._options.start_timeout:.0f} s. Its "
                f"log is {engine_log()}."
            )
        # ValueError, TypeError: something else answers on the socket.
        except (OSError, ValueError, TypeError) as error:
            self._fail(f"The engine could not be started ({error}).")

    def _see_to_process(self) -> None:
        """Nobody answers: starts a process if there is none, and fails if ours has failed."""
        if self._process is None:
            self._spawn()
            return
        code = self._process.poll()
        if code is not None:
            self._process = None  # with status 0 it has found another engine on the socket
            if code:
                self._fail(_why_ended(code))

    def _attach(self, status: dict[str, Any]) -> None:
        """An engine answers, ours or another window's: its state becomes the state here."""
        if status.get("state") == "ready":
            self._ready_since = time.monotonic()
            self.prefill_per_s = status.get("prefill_per_s") or self.prefill_per_s
            self._set(EngineState("ready", 1.0))
        elif status.get("state") == "failed":
            self._fail(str(status.get("message")))
        else:
            self._set(EngineState("loading", float(status.get("progress") or 0.0)))

    def _spawn(self) -> None:
        """Starts an engine. If another one is on the socket already, it ends at once."""
        launch = Launch(
            listen=f"{'loopback' if self.socket.suffix == PORT else 'unix'}:{self.socket}",
            model=self._model,
            version=__version__,
            cache_folder=str(cache_folder().absolute()),
            log=str(engine_log().absolute()),
            options=self._options,
        )
        self._process = start_engine(launch)


def _why_ended(status: int) -> str:
    """The message for an exit status; a negative one is a signal."""
    if status == NO_MEMORY_STATUS:
        return NO_MEMORY
    if status < 0:
        return (
            f"The engine was ended by signal {-status}, as where memory is lacking. Close what "
            f"else uses it. Its log is {engine_log()}."
        )
    return f"The engine ended with status {status}. Its log is {engine_log()}."


def make_engine(
    settings: Settings, *, on_state: Callable[[EngineState], None] = lambda state: None
) -> Engine:
    """An endpoint elsewhere, or the engine here, by the settings. Raises ModelError, OSError."""
    if settings.remote.url:
        return RemoteEngine(settings.remote)
    return LocalEngine(find_model(settings.model), settings.engine, on_state=on_state)


def local_client(socket: Path, model: str = "") -> HttpClient:
    """The dialect over an engine's Unix socket, or its port."""

    def connector() -> aiohttp.BaseConnector:
        if socket.suffix == PORT:
            return aiohttp.TCPConnector(limit=0)
        return aiohttp.UnixConnector(path=str(socket), limit=0)

    def at_port() -> Where:
        address = read_address(socket)
        headers = {"Authorization": f"Bearer {address.key}"}
        return Where(f"http://{HOST}:{address.port}", headers)

    where = at_port if socket.suffix == PORT else Where("http://engine")
    return HttpClient(where, connector, model=model, extensions=True, name="The engine")


def socket_path(folder: ModelFiles, options: EngineOptions) -> Path:
    """The name of the one engine that serves these files with these options for this user: its
    socket, or the file that says where its port is."""
    name = json.dumps([folder.identity, options.identity])
    return runtime_folder() / f"{hashlib.sha256(name.encode()).hexdigest()[:12]}{suffix()}"
