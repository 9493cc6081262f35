"""In idle time the engine reads the prompt that a request at the cursor would have."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from fim import FormatError
from lsp_server.completion.answer_cache import Memory
from lsp_server.completion.completer import Place
from lsp_server.scheduler import Background

# A fast key may make the prefill needless, and an answer on its way is sent first.
DELAY_S = 0.02


class Prefill:
    """The prefill of one window; a new one ends the one before."""

    def __init__(self, memory: Memory, background: Background) -> None:
        self._memory = memory
        self._background = background
        self._uri: str | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, place: Place) -> None:
        """The cursor stands there now."""
        engine = place.engine
        if engine.has_idle_time and engine.state.name == "ready":
            self.close()
            self._uri = place.snapshot.uri
            self._task = self._background.start(self._run(place))

    def close(self, uri: str | None = None) -> None:
        """Ends the prefill of a document, or whichever there is."""
        if self._task is not None and uri in (None, self._uri):
            self._task.cancel()

    async def _run(self, place: Place) -> None:
        await asyncio.sleep(DELAY_S)
        try:
            question = self._memory.question(place)
        except FormatError:
            return  # the next request tells the user
        if self._memory.find(question) is None:
            await place.engine.prefill(replace(question.request, idle=True))
