"""One window's settings, prompter and engine: made from settings, made anew when those change, closed at the end."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lsp_server.documents import Snapshot
from lsp_server.scheduler import Scheduler
from lsp_server.settings import Reporter, from_environment, parse
from lsp_server.trace import Trace

if TYPE_CHECKING:  # loaded after `initialize` is answered
    from fim import Suggestion
    from lsp_server.completer import Prompter
    from lsp_server.engines import Engine, EngineState

logger = logging.getLogger(__name__)


class ShowMessage(Protocol):
    def __call__(self, message: str, *, error: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Answer:
    suggestion: Suggestion
    trace: Trace
    model: str


class Session:
    """Everything of a window that is not LSP.

    show_message is told what the user should read, each thing once; on_progress the share of the model that is
    loaded, 0 to 1, and None at the end.
    """

    def __init__(self, show_message: ShowMessage, on_progress: Callable[[float | None], None]) -> None:
        self._show_message, self._on_progress = show_message, on_progress
        self._reporter = Reporter()
        environment, problems = parse(from_environment(os.environ))
        self._base = self.settings = environment
        self._report(problems)
        self.scheduler = Scheduler()
        self.client = uuid.uuid4().hex  # tells this window from others in the engine's queue
        self.engine: Engine | None = None
        self._prompter: Prompter | None = None
        self._loading: asyncio.Task[None] | None = None

    def configure(self, raw: object, *, trusted: bool) -> None:
        """Takes settings as the client sends them. What only a trusted source may set (at start) stays from there."""
        self.settings, problems = parse(raw, base=self._base, trusted=trusted)
        if trusted:
            self._base = self.settings
        self._report(problems)
        logging.getLogger("lsp_server").setLevel(self.settings.log.level.upper())
        if not trusted and self._loading is not None:
            self.start()  # format and layout may have changed

    def start(self) -> None:
        """Gets ready in the background: the engine first, which takes longest."""
        self._loading = asyncio.ensure_future(self._load())

    async def _load(self) -> None:
        from fim import FormatError
        from model.errors import ModelError

        try:
            if self.engine is None:
                self.engine = self._make_engine()
            if self.settings.enabled:
                self.engine.start()
            from lsp_server.completer import Prompter

            self._prompter = await asyncio.to_thread(Prompter.for_settings, self.settings)
        except (ModelError, FormatError, OSError) as error:
            self._prompter = None
            self._report([str(error)], error=True)

    def _make_engine(self) -> Engine:
        if self.settings.remote.url:
            from lsp_server.engines import RemoteEngine

            return RemoteEngine(self.settings.remote)
        from lsp_server.local_engine import LocalEngine
        from model.hub import find_model

        return LocalEngine(find_model(self.settings.model), self.settings.engine, on_state=self._engine_changed)

    def _engine_changed(self, state: EngineState) -> None:
        self._on_progress(state.progress if state.name == "loading" else None)
        if state.name == "failed" and state.message:
            self._report([state.message], error=True)

    async def suggest(self, snapshot: Snapshot, path: str | None) -> Answer | None:
        """A suggestion worth showing, or None at once while anything is missing for it."""
        settings, prompter, engine = self.settings, self._prompter, self.engine
        if not settings.enabled or snapshot.language in settings.disabled_languages:
            return None
        if prompter is None or engine is None:
            return None
        work = self._complete(snapshot, prompter, engine, path)
        answer = await self.scheduler.latest(snapshot.uri, work)
        if answer is not None:
            logger.info("%s", answer.trace.to_json())
        return answer if answer is not None and not answer.suggestion.hidden else None

    async def _complete(
        self, snapshot: Snapshot, prompter: Prompter, engine: Engine, path: str | None
    ) -> Answer | None:
        from lsp_server.completer import complete
        from lsp_server.engines import EngineUnavailable

        try:
            suggestion, trace = await complete(
                snapshot, prompter, engine, self.settings, path=path, client=self.client
            )
        except EngineUnavailable as error:
            logger.info("no suggestion: %s", error)
            return None
        return Answer(suggestion, trace, self.settings.remote.model or self.settings.model)

    def _report(self, problems: list[str] | tuple[str, ...], *, error: bool = False) -> None:
        for problem in self._reporter.new(problems):
            logger.warning("%s", problem)
            self._show_message(problem, error=error)

    async def close(self) -> None:
        if self._loading is not None:
            self._loading.cancel()
        if self.engine is not None:
            await self.engine.close()
