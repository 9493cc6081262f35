"""One window's settings, prompter and engine: made from settings, made anew when those change,
closed at the end."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lsp_server.engines.process import end_spare
from lsp_server.logs import log_error
from lsp_server.scheduler import Scheduler
from lsp_server.session.status import Status
from lsp_server.settings import Reporter, from_environment, parse

if TYPE_CHECKING:  # loaded after `initialize` is answered
    from lsp_server.completion.prompter import Prompter
    from lsp_server.engines.interface import Engine, EngineState

logger = logging.getLogger(__name__)
T = TypeVar("T")
START_POLL_S = 0.02


class ShowMessage(Protocol):
    def __call__(self, message: str, *, error: bool) -> None: ...


class Session:
    """Everything of a window that is not LSP.

    show_message is told what the user should read, each thing once; on_progress the share of the
    model that is loaded, 0 to 1, and None at the end; on_status that `status` may have changed.
    """

    def __init__(
        self,
        show_message: ShowMessage,
        on_progress: Callable[[float | None], None],
        on_status: Callable[[], None] = lambda: None,
    ) -> None:
        self._show_message, self._on_progress, self._on_status = (
            show_message,
            on_progress,
            on_status,
        )
        self._reporter = Reporter()
        # Problems of the environment wait for `initialize`: before it there is nobody to show them
        # to.
        environment, self._environment_problems = parse(from_environment(os.environ))
        self._base = self.settings = environment
        self.scheduler = Scheduler()
        self.client = uuid.uuid4().hex  # tells this window from others in the engine's queue
        self.client_name = ""
        self.client_shows_status = False  # what is in the status then needs no message window
        self.engine: Engine | None = None
        self.prompter: Prompter | None = None
        self._prompter_pending = False
        self.problem: str | None = None  # why there are no suggestions
        self._snoozed_until = 0.0  # by time.time()
        self._waking: asyncio.TimerHandle | None = None
        self._language_told = False
        self._loading: asyncio.Task[None] | None = None

    # ---- settings, model and engine ----

    def configure(self, raw: object, *, trusted: bool) -> None:
        """Takes settings as the client sends them. What only a trusted source may set (at start)
        stays from there."""
        before = self.settings
        self.settings, problems = parse(raw, base=self._base, trusted=trusted)
        if trusted:
            self._base = self.settings
        told = self._tell((*self._environment_problems, *problems))
        if told:  # without the values, which may be keys or the user's text
            logger.warning("showed the user %d problems with the settings", told)
        logging.getLogger("lsp_server").setLevel(self.settings.log.level.upper())
        if not trusted and self._loading is not None and self.settings != before:
            self.start()  # format and layout may have changed

    def start(self) -> None:
        """Gets ready in the background: the engine first, which takes longest."""
        if self._loading is not None:
            self._loading.cancel()  # it works on settings of before
        self._loading = asyncio.ensure_future(self._load())

    async def _load(self) -> None:
        from fim import FormatError
        from model.errors import ModelError

        self._prompter_pending, self.problem = True, None
        try:
            if self.engine is None:
                from lsp_server.engines.local import make_engine

                self.engine = make_engine(self.settings, on_state=self._engine_changed)
            if self.settings.enabled:
                self.engine.start()
            from lsp_server.completion.prompter import Prompter

            self.prompter = await asyncio.to_thread(Prompter.for_settings, self.settings)
        except FileNotFoundError as error:
            self.prompter = None
            self.report(f"{error.filename} is missing. Download the model again.")
        except (ModelError, FormatError, OSError) as error:
            self.prompter = None
            self.report(str(error))
        except Exception as error:
            self.prompter = None
            log_error(logger, error)
            self.report(
                f"The model could not be used ({type(error).__name__}). Choose another, or "
                "'bundled'."
            )
        if self.engine is None or self.settings.remote.url or not self.settings.enabled:
            end_spare()
        self._prompter_pending = False
        self._update_progress()

    def _engine_changed(self, state: EngineState) -> None:
        self._update_progress()
        if state.name == "failed" and state.message:
            self.report(state.message)

    def _update_progress(self) -> None:
        """Loading ends when a request would be answered: an engine that is shared may be ready
        before the prompter."""
        self._on_progress(self._progress())
        self._on_status()

    def _progress(self) -> float | None:
        state = self.engine.state if self.engine is not None else None
        if state is not None and (
            state.name == "loading" or (state.name == "ready" and self._prompter_pending)
        ):
            return state.progress
        return None

    async def settled(self) -> None:
        """Waits until the client's settings are there and taken; the engine may still be
        loading."""
        while self._loading is None or not self._loading.done():
            if self._loading is None:  # the client has not said yet that it is initialized
                await asyncio.sleep(START_POLL_S)
            else:  # changed settings begin it anew
                await asyncio.wait({self._loading})

    async def ready(self, *, wait: bool) -> tuple[Prompter, Engine] | None:
        """What answers a request; None where it cannot be answered now or, with wait, when the
        model has loaded."""
        if wait:
            await self.settled()
        if self.prompter is None or self.engine is None:
            return None
        if self.engine.state.name != "ready":
            self.engine.start()  # where it has not begun, or has given up some time ago
            if not wait or (await self.engine.wait_until_settled()).name != "ready":
                return None
        return self.prompter, self.engine

    async def tried(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The work's result; None where the engine or the settings allow of none: the status
        tells."""
        from fim import FormatError
        from lsp_server.engines.interface import EngineUnavailable

        try:
            result = await work
        except EngineUnavailable as error:
            logger.info("no suggestion: %s", error.message)
            if error.refused:
                self.report(str(error), quoted=True)
            else:  # it may pass: in the status, but no message
                self.problem = str(error)
            return None
        except FormatError as error:
            self.report(str(error))
            return None
        self.problem = None
        return result

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around what shows in the status, where it takes more than a moment."""
        self._on_status()
        try:
            yield
        finally:
            self._on_status()

    # ---- status ----

    @property
    def model_name(self) -> str:
        return self.settings.remote.model or self.settings.model

    @property
    def where(self) -> str:
        return f"at {self.settings.remote.url}" if self.settings.remote.url else "on this machine"

    def status(self, language: str | None = None) -> Status:
        """As it is for a document in this language, or for none in particular."""
        name = self.model_name
        if (off := self._off(language)) is not None:
            return Status("off", off, name)
        engine = self.engine.state if self.engine is not None else None
        share = self._progress()
        if self.problem is None and (share is not None or engine is None or self._prompter_pending):
            return Status("loading", f"Loading the model {name!r}.", name, share or 0.0)
        if engine is not None and engine.name == "failed":
            return Status("failed", engine.message or "The engine has stopped; see the log.", name)
        if self.problem is not None:
            return Status("failed", self.problem, name)
        message = f"The model {name!r} {self.where}. {self._about_language(language)}".strip()
        return Status("busy" if self.scheduler.busy else "ready", message, name)

    def _off(self, language: str | None, *, snoozed: bool = True) -> str | None:
        """Why nothing is suggested by itself, and the remedy."""
        if not self.settings.enabled:
            return "Switched off: set fimls.enabled to true."
        if language is not None and language in self.settings.disabled_languages:
            return f"Off for {language}, which is in fimls.disabledLanguages."
        if snoozed and self._snoozed_until > time.time():
            return f"Snoozed until {time.strftime('%H:%M', time.localtime(self._snoozed_until))}."
        return None

    def answers(self, language: str, *, invoked: bool) -> bool:
        """Whether requests for such a document are answered at all."""
        return self._off(language, snoozed=not invoked) is None

    def snooze(self, minutes: float) -> None:
        """No automatic suggestions for so long; 0 ends it."""
        self._snoozed_until = time.time() + 60 * minutes if minutes > 0 else 0.0
        if self._waking is not None:
            self._waking.cancel()
        self._waking = (
            asyncio.get_running_loop().call_later(60 * minutes, self._on_status)
            if minutes > 0
            else None
        )
        self._on_status()

    # ---- what the user is told ----

    def _about_language(self, language: str | None) -> str:
        """That the model was not made for a language, and which one is; "" if it was."""
        prompter = self.prompter
        if (
            prompter is None
            or not language
            or not prompter.languages
            or language in prompter.languages
        ):
            return ""
        better = prompter.other_languages
        advice = f"; for {language} set fimls.model to the folder of {better}" if better else ""
        return (
            f"The model {self.settings.model!r} was trained on {', '.join(prompter.languages)} "
            f"only{advice}."
        )

    def tell_of_language(self, language: str) -> None:
        """Once in a session."""
        advice = "" if self._language_told else self._about_language(language)
        if advice:
            self._language_told = True
            self._tell((advice,), in_status=True)

    def report(self, problem: str, *, quoted: bool = False) -> None:
        """Shows the user why there are no suggestions, and logs it, once; not if it quotes what may
        be the user's."""
        self.problem = problem
        self._on_status()
        if self._tell((problem,), error=True, in_status=True) and not quoted:
            logger.error("%s", problem)

    def _tell(
        self, problems: Iterable[str], *, error: bool = False, in_status: bool = False
    ) -> int:
        """Shows the user those of the problems that are new; returns how many."""
        new = self._reporter.new(problems)
        if not (in_status and self.client_shows_status):
            for problem in new:
                self._show_message(problem, error=error)
        return len(new)

    async def close(self) -> None:
        if self._loading is not None:
            self._loading.cancel()
        if self._waking is not None:
            self._waking.cancel()
        await self.scheduler.close()
        end_spare()
        if self.engine is not None:
            await self.engine.close()
