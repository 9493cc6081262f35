"""In idle time the engine reads the prompt at the cursor, which the next request may need."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from lsp_server.completion.query import Query
from lsp_server.documents import Snapshot
from lsp_server.engines.interface import Engine
from lsp_server.scheduler import Background
from lsp_server.session.session import Session

# A fast key may make the prefill needless, and an answer on its way is sent first.
DELAY_S = 0.02


class Prefill:
    """The prefill of one window; a new one ends the one before.

    unanswered: the query at a cursor; None if its answer is known or being written.
    """

    def __init__(
        self,
        session: Session,
        unanswered: Callable[[Snapshot, str | None], Awaitable[Query | None]],
    ) -> None:
        self._session = session
        self._unanswered = unanswered
        self._background = Background()
        self._task: asyncio.Task[None] | None = None
        self._uri: str | None = None  # of the document, once its text is used

    def start(self, look: Callable[[], Snapshot | None], path: str | None) -> None:
        """look: the document with its cursor at that moment. Waits for a model that is loading."""
        self.close()
        self._uri = None
        self._task = self._background.start(self._run(look, path))

    def grow(self, query: Query, engine: Engine) -> None:
        """Has the larger prompts read, at a place where the engine has just taken a smaller one."""
        self.close()
        self._uri = query.snapshot.uri
        self._task = self._background.start(self._read(query, engine))

    async def _read(self, query: Query, engine: Engine) -> None:
        await asyncio.sleep(DELAY_S)
        await engine.prefill(replace(query.request, idle=True))

    def close(self, uri: str | None = None) -> None:
        """Ends the prefill of a document's text, or whichever there is."""
        if self._task is not None and uri in (None, self._uri):
            self._task.cancel()

    async def _run(self, look: Callable[[], Snapshot | None], path: str | None) -> None:
        session = self._session
        if session.engine is not None and session.engine.state.name == "failed":
            return  # only a request starts it again
        await session.settled()
        if not self._is_wanted(look()):
            return  # before `ready`, which starts the engine
        ready = await session.ready(wait=True)
        snapshot = look()
        if ready is None or snapshot is None or not self._is_wanted(snapshot):
            return
        _, engine = ready
        if not engine.has_idle_time:
            return
        self._uri = snapshot.uri
        await asyncio.sleep(DELAY_S)
        query = await self._unanswered(snapshot, path)
        if query is not None:
            await engine.prefill(replace(query.request, idle=True))

    def _is_wanted(self, snapshot: Snapshot | None) -> bool:
        return snapshot is not None and self._session.answers(snapshot.language, invoked=False)
