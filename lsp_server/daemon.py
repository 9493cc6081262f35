"""Work that reads files, on a thread that neither stops the event loop nor keeps a process alive.

A dead network mount may hold such a thread for ever; threads of asyncio.to_thread would be waited
for at the process's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
FILES_TIMEOUT_S = 60.0  # for the files of a model, and the user's own


async def in_daemon(work: Callable[[], T], timeout_s: float | None = None) -> T:
    """What the work returns or raises. Raises TimeoutError; the thread then goes on by itself."""
    return await awaited(start_daemon(work), timeout_s)


def start_daemon(work: Callable[[], T]) -> Future[T]:
    """Starts the work. The future takes what it returns or raises, and cannot be cancelled."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="fimls-files", daemon=True).start()
    return future


async def awaited(future: Future[T], timeout_s: float | None = None) -> T:
    """What a future of `start_daemon` takes. Raises that, or TimeoutError."""
    if future.done():
        return future.result()
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def done(_: Future[T]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell)

    future.add_done_callback(done)
    await asyncio.wait_for(waiter, timeout_s)
    return future.result()
