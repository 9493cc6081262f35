"""The engine process: the OpenAI completions dialect over a private Unix socket, or TCP with a key.

    python -m model.engine '{"listen": "unix:/path/to.sock"}'
    FIMLS_API_KEY=... python -m model.engine '{"listen": "tcp:127.0.0.1:8080", "model": "FOLDER"}'

POST /v1/completions   prompt as token ids (or as text, in which sentinels count), stream,
                       logprobs, stop, seed; closing the stream cancels
GET  /v1/models
GET  /fimls/status     state of the engine, for attaching and for `fimls engine status`
POST /fimls/prefill    fills the cache for a prompt, generates nothing
POST /fimls/priority   whether anybody waits for a streamed answer that is being written: its id,
                       and "idle" or null
POST /fimls/stop
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web
from filelock import FileLock, Timeout

from model.engine.options import BadOptions, Launch, parse_launch
from model.errors import BadRequest, ModelError
from model.machine import memory_bytes

if TYPE_CHECKING:  # torch is loaded on a thread of its own, after the socket answers
    from model.engine.worker import Engine, Event, Job, Request

log = logging.getLogger("model.engine.http_server")

PROTOCOL = 1  # of the calls under /fimls/; a front attaches only to an engine that says the same
HEAVY_PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes")
MAX_BODY = 16 * 2**20
FAILED_LINGER_S = 5.0  # how long an engine that could not load tells why
LAST_SAVE_S = 5.0  # how long an engine that ends may take to write to disk what it has computed
NICE = 5  # typing comes before completing


@dataclass(slots=True)
class EngineProcess:
    """The state behind the handlers."""

    launch: Launch
    key: str | None = None
    engine: Engine | None = None
    progress: float = 0.0
    failure: str | None = None
    started: float = field(default_factory=time.monotonic)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    jobs: dict[str, Job] = field(default_factory=dict)  # by their answers' ids
    told_to: bool = False  # by a front, for good or for another version: nothing more is written

    @property
    def state(self) -> str:
        return "failed" if self.failure else "ready" if self.engine else "loading"

    def load(self) -> None:
        """Runs on a thread: imports torch, loads the model."""
        try:
            from model.engine.loading import load_engine

            def report(share: float) -> None:
                self.progress = share

            engine = load_engine(self.launch, report)
            engine.start()
            self.engine = engine
            log.info("ready after %.2f s", time.monotonic() - self.started)
        except ModelError as error:
            self.failure = str(error)
        except Exception as error:
            log.exception("loading failed")
            self.failure = f"The model could not be loaded ({type(error).__name__}: {error})."


PROCESS = web.AppKey("process", EngineProcess)


def make_app(process: EngineProcess) -> web.Application:
    app = web.Application(middlewares=[require_key, errors_as_json], client_max_size=MAX_BODY)
    app[PROCESS] = process
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/completions", completions)
    app.router.add_get("/fimls/status", status)
    app.router.add_post("/fimls/prefill", completions)
    app.router.add_post("/fimls/priority", prioritize)
    app.router.add_post("/fimls/stop", stop)
    return app


@web.middleware
async def require_key(request: web.Request, handler: Any) -> web.StreamResponse:
    """Over TCP only the key lets one in; a Unix socket is private by its permissions."""
    key = request.app[PROCESS].key
    if key is not None:
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
            return problem(401, "The API key is missing or wrong.")
    response: web.StreamResponse = await handler(request)
    return response


@web.middleware
async def errors_as_json(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except BadRequest as error:
        return problem(400, str(error))
    except web.HTTPException as error:
        return problem(error.status, error.reason)
    return response


def problem(status: int, message: str) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": "invalid_request_error"}}, status=status
    )


async def status(request: web.Request) -> web.Response:
    process = request.app[PROCESS]
    engine = process.engine
    return web.json_response(
        {
            "server": "fimls",
            "version": process.launch.version,
            "protocol": PROTOCOL,
            "pid": os.getpid(),
            "state": process.state,
            "progress": process.progress,
            "message": process.failure,
            "model": process.launch.model,
            "device": str(engine.model.decoder.device) if engine else None,
            "dtype": str(engine.model.decoder.dtype).removeprefix("torch.") if engine else None,
            "weights": engine.model.decoder.scheme if engine else None,
            "upgraded": engine.upgraded if engine else False,
            "busy": engine.busy if engine else False,
            "waiting": len(engine.queue) if engine else 0,
            "served": engine.served if engine else 0,
            "forward_passes": {"calls": engine.passes, "positions": engine.positions}
            if engine
            else None,
            "idle_s": engine.idle_s if engine else 0.0,
            "cache_bytes": engine.prefixes.nbytes if engine else 0,
            "cache_sequences": len(engine.prefixes) if engine else 0,
            "cache_restored": engine.prefixes.restored if engine else 0,
            "memory_bytes": memory_bytes(),
            "packages": [name for name in HEAVY_PACKAGES if name in sys.modules],
        }
    )


async def models(request: web.Request) -> web.Response:
    return web.json_response(
        {"object": "list", "data": [model_entry(request.app[PROCESS].launch.model)]}
    )


def model_entry(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "fimls"}


async def stop(request: web.Request) -> web.Response:
    process = request.app[PROCESS]
    process.told_to = True
    process.stopping.set()
    return web.json_response({"stopping": True})


async def completions(request: web.Request) -> web.StreamResponse:
    process = request.app[PROCESS]
    if process.engine is None:
        return problem(503, process.failure or "The model is loading.")
    from model.engine.openai_api import Answer, parse_request

    body = await json_object(request)
    wanted = parse_request(
        body, process.engine.model, prefill_only=request.path == "/fimls/prefill"
    )
    answer = Answer(process.launch.model, logprobs=body.get("logprobs") not in (None, False))
    if not body.get("stream"):
        async for event in run(process, wanted, answer.id):
            answer.add(event)
        status, whole = answer.whole()
        return web.json_response(whole, status=status)
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    )
    await response.prepare(request)
    with contextlib.suppress(
        ConnectionError
    ):  # the client has gone: an ordinary way to end a request
        async with contextlib.aclosing(run(process, wanted, answer.id)) as events:
            async for event in events:
                await response.write(b"data: " + json.dumps(answer.chunk(event)).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
    return response


async def json_object(request: web.Request) -> dict[str, Any]:
    """Raises BadRequest."""
    try:
        body = await request.json()
    except (
        ValueError,
        RecursionError,
        LookupError,
    ):  # the latter two: bottomless nesting, an unknown charset
        raise BadRequest("The body is not JSON.") from None
    if not isinstance(body, dict):
        raise BadRequest("The body is not a JSON object.")
    return body


async def prioritize(request: web.Request) -> web.Response:
    """That the answer has ended meanwhile is no error."""
    from model.engine.openai_api import is_idle

    process, body = request.app[PROCESS], await json_object(request)
    idle, job = is_idle(body), process.jobs.get(str(body.get("id")))
    if process.engine is not None and job is not None:
        process.engine.queue.prioritize(job, idle=idle)
    return web.json_response({"known": job is not None})


async def run(process: EngineProcess, request: Request, name: str) -> AsyncGenerator[Event]:
    """The events of one request. Leaving early, as when the client has gone, cancels it."""
    from model.engine.worker import Failed, Finished

    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()

    def emit(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: the process is going
            loop.call_soon_threadsafe(events.put_nowait, event)

    assert process.engine is not None
    job = process.jobs[name] = process.engine.submit(request, emit)
    try:
        while True:
            event = await events.get()
            yield event
            if isinstance(event, Finished | Failed):
                return
    finally:
        del process.jobs[name]
        job.cancel()


async def serve(launch: Launch, key: str | None) -> None:
    process = EngineProcess(launch, key)
    # handler_cancellation: a client that closes its stream cancels the handler, and so the job.
    runner = web.AppRunner(
        make_app(process), handler_cancellation=True, access_log=None, shutdown_timeout=0.5
    )
    await runner.setup()
    try:
        kind, _, where = launch.listen.partition(":")
        if kind == "unix":
            listener = private_socket(Path(where))
            await web.SockSite(runner, listener).start()
        else:
            host, _, port = where.rpartition(":")
            await web.TCPSite(runner, host, int(port)).start()
            print(f"listening on http://{host}:{runner.addresses[0][1]}/v1", flush=True)
        threading.Thread(target=process.load, name="loader", daemon=True).start()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError):  # Windows
                loop.add_signal_handler(name, process.stopping.set)
        await until_done(process)
    finally:
        engine = process.engine
        if engine is not None:
            engine.close(save=not process.told_to)
        await runner.cleanup()
        if engine is not None:
            await asyncio.to_thread(engine.join, LAST_SAVE_S)


async def until_done(process: EngineProcess) -> None:
    """Returns when the engine is told to stop, has been idle long enough, or could not load the
    model."""
    timeout = process.launch.options.idle_timeout
    while True:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.stopping.wait(), min(1.0, timeout / 4))
            return
        if process.failure is not None:
            log.error("%s", process.failure)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.stopping.wait(), FAILED_LINGER_S)
            return
        engine = process.engine
        if process.launch.ends_when_idle and engine is not None and engine.idle_s > timeout:
            log.info("idle for %.0f s", timeout)
            return


def private_socket(path: Path) -> socket.socket:
    """Binds a Unix socket that only this user may open. A stale file is in the way only if nobody
    holds the lock."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    old = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old)
    return listener


def answers(path: Path) -> bool:
    """Whether a process listens on this Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def take_lock(path: Path, patience_s: float = 10.0) -> FileLock | None:
    """The lock that the one engine on this socket holds for its lifetime; None when another engine
    is there.

    An engine that is just going may hold the lock a moment longer than it answers: this waits for
    it.
    """
    lock = FileLock(path.with_suffix(".lock"))
    deadline = time.monotonic() + patience_s
    while True:
        try:
            lock.acquire(timeout=0)
            return lock
        except Timeout:
            if answers(path) or time.monotonic() > deadline:
                return None
            time.sleep(0.05)


def wait_as_spare() -> str:
    """Imports torch, which takes most of an engine's start, while a window finds out which engine
    it wants.

    Returns the line of JSON on stdin that says which; "" when the window ends without one. Of
    several spares at once only one imports: the others' windows will share its engine.
    """
    lock = FileLock("spare.lock")  # in the runtime folder, where engines run
    try:
        lock.acquire(timeout=0)
        threading.Thread(target=lambda: __import__("torch"), name="spare", daemon=True).start()
    except Timeout:
        pass
    line = sys.stdin.readline()
    lock.release()
    return line


def main(arguments: list[str]) -> int:
    if hasattr(os, "nice"):
        os.nice(NICE)
    # Threads that spin for long at a barrier starve each other on a busy machine: several times
    # slower there, no gain on an idle one (benchmarks/RESULTS.md). Read by OpenMP when torch is
    # loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    sys.setswitchinterval(0.001)  # the worker's Python must not hold up the socket
    logging.basicConfig(level="INFO", format="%(asctime)s %(process)d %(levelname)s %(message)s")
    text = " ".join(arguments)
    if arguments == ["--spare"]:
        text = wait_as_spare()
        if not text:
            return 0
    try:
        launch = parse_launch(text)
    except BadOptions as error:
        print(f"fimls engine: {error}", file=sys.stderr)
        return 2
    kind, _, where = launch.listen.partition(":")
    key = os.environ.pop("FIMLS_API_KEY", None) if kind == "tcp" else None
    if kind == "tcp" and not key:
        print("Set FIMLS_API_KEY: an engine on a network port wants a key.", file=sys.stderr)
        return 2
    lock = None
    if kind == "unix":
        lock = take_lock(Path(where))
        if lock is None:
            return 0  # another window's engine is there, which is as good
    try:
        asyncio.run(serve(launch, key))
    finally:
        if lock is not None:
            Path(where).unlink(missing_ok=True)
            lock.release()
    return 0
