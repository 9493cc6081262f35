"""Work that reads files, on a thread that neither stops the event loop nor keeps a process alive.

A dead network mount may hold such a thread for ever; threads of asyncio.to_thread would be waited
for at the process's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
FILES_TIMEOUT_S = 60.0  # for the files of a model, and the user's own


async def in_daemon(work: Callable[[], T], timeout_s: float | None = None) -> T:
    """What the work returns or raises. Raises TimeoutError; the thread then goes on by itself."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(how: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            how(value)

    def run() -> None:
        how: Callable[[Any], None]
        value: Any
        try:
            value = work()
            how = future.set_result
        except BaseException as error:
            value = error
            how = future.set_exception
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, how, value)

    threading.Thread(target=run, name="fimls-files", daemon=True).start()
    return await asyncio.wait_for(future, timeout_s)
