"""Latest wins: per document at most one request is being worked on. And work that nobody waits
for."""

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
    """Runs one piece of work a key; a newer one cancels the older."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[Any]] = {}

    async def latest(self, key: str, work: Coroutine[Any, Any, T]) -> T | None:
        """The work's result, or None when newer work for the key, or `drop`, ended it.

        Cancelling the caller cancels the work.
        """
        self.drop(key)
        task = self._running[key] = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            if self._running.get(key) is task:
                del self._running[key]
        return None if task.cancelled() else task.result()

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def drop(self, key: str) -> None:
        """Ends what runs for a key."""
        if (task := self._running.pop(key, None)) is not None:
            task.cancel()

    async def close(self) -> None:
        """Ends whatever runs, and waits a moment until it has."""
        tasks = list(self._running.values())
        for key in list(self._running):
            self.drop(key)
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)


class Background:
    """Tasks that nobody waits for; what goes wrong in one is logged."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log_error(logger, error)
