"""The main program of an engine: the spare process, the lock, the socket, and the end.

python -m model.engine '{"listen": "unix:/path/to.sock"}'
FIMLS_API_KEY=... python -m model.engine '{"listen": "tcp:127.0.0.1:8080", "model": "FOLDER"}'
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from aiohttp import web
from filelock import FileLock, Timeout

from model.engine.http.addresses import answers, listen, read_key
from model.engine.http.routes import make_app
from model.engine.loading import EngineProcess
from model.engine.log import OneLine, PrivateLog, Sparing, visible
from model.engine.options import BadOptions, Launch, parse_launch
from model.engine.rendezvous import lock_of
from model.errors import NO_MEMORY, NO_MEMORY_STATUS, lacks_memory

log = logging.getLogger(__name__)

FAILED_LINGER_S = 5.0  # how long an engine that could not load tells why
RELEASED_S = 0.5  # idle time of an engine that nobody needs
LAST_SAVE_S = 5.0  # how long an engine that ends may take to write to disk what it has computed
LOCK_PATIENCE_S = 10.0
NICE = 5  # typing comes before completing


def main(arguments: list[str]) -> int:
    """Runs an engine until it ends; returns the exit status."""
    set_up()
    text = " ".join(arguments)
    if text == "--spare":
        text = wait_as_spare()
        if not text:
            return 0
    try:
        launch = parse_launch(text)
        log_to(launch.log)
        kind, _, address = launch.listen.partition(":")
        if kind == "tcp":
            asyncio.run(serve(EngineProcess(launch, read_key())))
            return 0
        return serve_locally(launch, Path(address))
    except BadOptions as error:
        return complain(f"fimls engine: {error}")


def serve_locally(launch: Launch, path: Path) -> int:
    """An engine for this user's windows. Raises BadOptions where it cannot listen there."""
    lock = take_lock(path)
    if lock is None:
        return 0  # another window's engine is there, which is as good
    try:
        asyncio.run(serve(EngineProcess(launch)))
    finally:
        path.unlink(missing_ok=True)
        lock.release()
    return 0


def set_up() -> None:
    """Settings of the process that hold before torch is loaded."""
    if sys.platform != "win32":
        os.nice(NICE)
    # Threads that spin for long at a barrier starve each other on a busy machine: several times
    # slower there, no gain on an idle one (benchmarks/RESULTS.md). Read by OpenMP when torch is
    # loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    sys.setswitchinterval(0.001)  # the worker's Python must not hold up the socket
    os.umask(0o077)  # everything that an engine writes is its user's alone
    handler = logging.StreamHandler()
    handler.addFilter(Sparing())
    handler.setFormatter(OneLine())
    logging.basicConfig(level="INFO", handlers=[handler])


def log_to(path: str) -> None:
    """Keeps the log from growing, where descriptors 1 and 2 lead to this file."""
    with contextlib.suppress(OSError):
        if path and os.path.samestat(os.fstat(2), Path(path).stat()):
            logging.basicConfig(level="INFO", handlers=[PrivateLog(Path(path), [2, 1])], force=True)


def complain(message: str) -> int:
    print(visible(message), file=sys.stderr)
    return 2


def wait_as_spare() -> str:
    """Imports torch, which takes most of an engine's start, while a window finds out which engine
    it wants.

    Returns the line of JSON on stdin that says which; "" when the window ends without one. Of
    several spares at once only one imports: the others' windows will share its engine.
    """
    lock = FileLock("spare.lock", mode=0o600)  # in the runtime folder, where engines run
    with contextlib.suppress(Timeout):
        lock.acquire(timeout=0)
        threading.Thread(target=lambda: __import__("torch"), name="spare", daemon=True).start()
    line = sys.stdin.readline()
    lock.release()
    return line


def take_lock(path: Path, patience_s: float = LOCK_PATIENCE_S) -> FileLock | None:
    """The lock that the one engine on this socket holds for its lifetime; None when another engine
    is there.

    An engine that is just ending may hold the lock a moment longer than it answers: this waits for
    it.
    """
    lock = lock_of(path)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            lock.acquire(timeout=0)
            return lock
        except Timeout:
            if answers(path) or time.monotonic() > deadline:
                return None
            time.sleep(0.05)


def in_trouble(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Ends the process where not even a connection gets the memory that it wants: it could answer
    nobody any more, and each try would be logged."""
    error = context.get("exception")
    if error is not None and lacks_memory(error):
        with contextlib.suppress(MemoryError):
            log.error("%s", NO_MEMORY)
        os._exit(NO_MEMORY_STATUS)
    loop.default_exception_handler(context)


async def serve(process: EngineProcess) -> None:
    """Answers at once, loads the model meanwhile, and returns when the engine should end."""
    # handler_cancellation: a client that closes its stream cancels the handler, and so the job.
    runner = web.AppRunner(
        make_app(process), handler_cancellation=True, access_log=None, shutdown_timeout=0.5
    )
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(in_trouble)
    await runner.setup()
    try:
        await listen(runner, process)
        loader = threading.Thread(target=process.load, name="loader", daemon=True)
        loader.start()
        for name in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError):  # Windows
                loop.add_signal_handler(name, process.stopping.set)
        await until_done(process)
    finally:
        engine = process.engine
        if engine is not None:
            engine.close(save=not process.told_to)
        if process.port is not None:
            await process.port.close()
        await runner.cleanup()
        if engine is not None:
            await asyncio.to_thread(engine.join, LAST_SAVE_S)
            await asyncio.to_thread(loader.join, LAST_SAVE_S)  # it may be writing weights


async def until_done(process: EngineProcess) -> None:
    """Returns when the engine is told to stop, has been idle long enough, or could not load the
    model."""
    idle_timeout = process.launch.options.idle_timeout
    poll_s = min(1.0, idle_timeout / 4)
    while not await stopped_within(process, poll_s):
        if process.failure is not None:
            log.error("%s", process.failure)
            await stopped_within(process, FAILED_LINGER_S)
            return
        if not process.launch.ends_when_idle:
            continue
        timeout = min(idle_timeout, RELEASED_S) if process.is_released else idle_timeout
        idle_s = process.engine.idle_s if process.engine is not None else 0.0
        if idle_s > timeout or (process.is_released and process.engine is None):
            log.info("not needed" if process.is_released else f"idle for {timeout:.0f} s")
            return


async def stopped_within(process: EngineProcess, seconds: float) -> bool:
    """Waits until the engine is told to stop, at most so long."""
    try:
        await asyncio.wait_for(process.stopping.wait(), seconds)
    except TimeoutError:
        return False
    return True
