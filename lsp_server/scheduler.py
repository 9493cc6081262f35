"""Latest wins: at most one piece of work for each key. And background tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from lsp_server.logs import log_error

logger = logging.getLogger(__name__)
T = TypeVar("T")
CLOSE_S = 1.0


class Scheduler:
    """Runs one piece of work for each key; a newer one cancels the older."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[Any]] = {}

    def latest(self, key: str, work: Coroutine[Any, Any, T]) -> asyncio.Future[T | None]:
        """Starts the work. The result is None if newer work for the key, or `close`, cancels it.

        Cancelling the future cancels the work.
        """
        self.close(key)
        task = asyncio.ensure_future(work)
        result: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()
        self._running[key] = task

        def end(_: object) -> None:
            if self._running.get(key) is task:
                del self._running[key]
            if result.done():
                return
            if task.cancelled():
                result.set_result(None)
            elif (error := task.exception()) is not None:
                result.set_exception(error)
            else:
                result.set_result(task.result())

        task.add_done_callback(end)
        result.add_done_callback(lambda _: task.cancel())
        return result

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def close(self, key: str) -> None:
        """Cancels the work for a key."""
        if (task := self._running.pop(key, None)) is not None:
            task.cancel()

    async def close_all(self) -> None:
        """Cancels all work, and waits a moment until it has ended."""
        tasks = list(self._running.values())
        for key in list(self._running):
            self.close(key)
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)


class Background:
    """Tasks that nobody waits for; an error in one is logged."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self._end)
        return task

    async def close(self, patience_s: float) -> None:
        """Waits so long for the tasks, then cancels them."""
        if not self.tasks:
            return
        _, late = await asyncio.wait({*self.tasks}, timeout=patience_s)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    def _end(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log_error(logger, error)
