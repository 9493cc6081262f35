"""One window's settings, prompter and engine: made from settings, made anew when those change, closed at the end."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lsp_server.documents import Snapshot
from lsp_server.log import log_error
from lsp_server.scheduler import Scheduler
from lsp_server.settings import Reporter, from_environment, parse
from lsp_server.spawn import dismiss
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
    loaded, 0 to 1, and None at the end. spare is an engine process that waits to be told what to serve.
    """

    def __init__(
        self,
        show_message: ShowMessage,
        on_progress: Callable[[float | None], None],
        spare: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self._show_message, self._on_progress, self._spare = show_message, on_progress, spare
        self._reporter = Reporter()
        # Problems of the environment wait for `initialize`: before it there is nobody to show them to.
        environment, self._environment_problems = parse(from_environment(os.environ))
        self._base = self.settings = environment
        self.scheduler = Scheduler()
        self.client = uuid.uuid4().hex  # tells this window from others in the engine's queue
        self.engine: Engine | None = None
        self._prompter: Prompter | None = None
        self._prompter_pending = False
        self._language_told = False
        self._loading: asyncio.Task[None] | None = None

    def configure(self, raw: object, *, trusted: bool) -> None:
        """Takes settings as the client sends them. What only a trusted source may set (at start) stays from there."""
        self.settings, problems = parse(raw, base=self._base, trusted=trusted)
        if trusted:
            self._base = self.settings
        told = self._tell((*self._environment_problems, *problems))
        if told:  # without the values, which may be keys or the user's text
            logger.warning("showed the user %d problems with the settings", told)
        logging.getLogger("lsp_server").setLevel(self.settings.log.level.upper())
        if not trusted and self._loading is not None:
            self.start()  # format and layout may have changed

    def start(self) -> None:
        """Gets ready in the background: the engine first, which takes longest."""
        if self._loading is not None:
            self._loading.cancel()  # it works on settings of before
        self._loading = asyncio.ensure_future(self._load())

    async def _load(self) -> None:
        from fim import FormatError
        from model.errors import ModelError

        self._prompter_pending = True
        try:
            if self.engine is None:
                from lsp_server.local_engine import make_engine

                self.engine = make_engine(self.settings, spare=self._spare, on_state=self._engine_changed)
            if self.settings.enabled:
                self.engine.start()
            from lsp_server.completer import Prompter

            self._prompter = await asyncio.to_thread(Prompter.for_settings, self.settings)
        except FileNotFoundError as error:
            self._prompter = None
            self._report(f"{error.filename} is missing. Download the model again.")
        except (ModelError, FormatError, OSError) as error:
            self._prompter = None
            self._report(str(error))
        except Exception as error:
            self._prompter = None
            log_error(logger, error)
            self._report(f"The model could not be used ({type(error).__name__}). Choose another, or 'bundled'.")
        if self.engine is None or self.settings.remote.url or not self.settings.enabled:
            dismiss(self._spare)
        self._prompter_pending = False
        self._update_progress()

    def _engine_changed(self, state: EngineState) -> None:
        self._update_progress()
        if state.name == "failed" and state.message:
            self._report(state.message)

    def _update_progress(self) -> None:
        """Loading ends when a request would be answered: an engine that is shared may be ready before the prompter."""
        state = self.engine.state if self.engine is not None else None
        if state is not None and (state.name == "loading" or (state.name == "ready" and self._prompter_pending)):
            self._on_progress(state.progress)
        else:
            self._on_progress(None)

    async def suggest(self, snapshot: Snapshot, path: str | None) -> Answer | None:
        """A suggestion worth showing, or None at once while anything is missing for it."""
        settings, prompter, engine = self.settings, self._prompter, self.engine
        if not settings.enabled or snapshot.language in settings.disabled_languages:
            return None
        if prompter is None or engine is None:
            return None
        if engine.state.name != "ready":
            engine.start()  # where it has not begun, or has given up some time ago
            return None
        self._tell_of_language(snapshot.language, prompter)
        work = self._complete(snapshot, prompter, engine, path)
        answer = await self.scheduler.latest(snapshot.uri, work)
        if answer is not None:
            logger.info("%s", answer.trace.to_json())
        return answer if answer is not None and not answer.suggestion.hidden else None

    async def _complete(
        self, snapshot: Snapshot, prompter: Prompter, engine: Engine, path: str | None
    ) -> Answer | None:
        from fim import FormatError
        from lsp_server.completer import complete
        from lsp_server.engines import EngineUnavailable

        try:
            suggestion, trace = await complete(snapshot, prompter, engine, self.settings, path=path, client=self.client)
        except EngineUnavailable as error:
            logger.info("no suggestion: %s", error.message)
            if error.refused:
                self._tell((str(error),), error=True)
            return None
        except FormatError as error:
            self._report(str(error))
            return None
        return Answer(suggestion, trace, self.settings.remote.model or self.settings.model)

    def _tell_of_language(self, language: str, prompter: Prompter) -> None:
        """Once in a session: the model was not made for this language, and which one is."""
        if self._language_told or not prompter.languages or language in prompter.languages:
            return
        self._language_told = True
        better = prompter.other_languages
        advice = f"; for {language} set fimls.model to the folder of {better}" if better else ""
        self._tell((f"The model {self.settings.model!r} was trained on {', '.join(prompter.languages)} only{advice}.",))

    def _report(self, problem: str) -> None:
        """Shows the user why there are no suggestions, and logs it: once."""
        if self._tell((problem,), error=True):
            logger.error("%s", problem)

    def _tell(self, problems: Iterable[str], *, error: bool = False) -> int:
        """Shows the user those of the problems that are new; returns how many."""
        new = self._reporter.new(problems)
        for problem in new:
            self._show_message(problem, error=error)
        return len(new)

    async def close(self) -> None:
        if self._loading is not None:
            self._loading.cancel()
        await self.scheduler.close()
        dismiss(self._spare)
        if self.engine is not None:
            await self.engine.close()
