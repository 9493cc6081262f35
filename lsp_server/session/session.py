"""One window's settings, prompter, engine and status."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lsp_server.daemon import FILES_TIMEOUT_S, in_daemon
from lsp_server.engines.process import end_spare
from lsp_server.logs import log_error
from lsp_server.scheduler import Scheduler
from lsp_server.session.layers import SettingsLayers
from lsp_server.session.stand_in import (
    BUNDLED,
    RunningModel,
    StandIn,
    load_modules,
    make_engine,
    make_prompter,
)
from lsp_server.settings import Reporter
from lsp_server.user_settings import store_model

if TYPE_CHECKING:  # loaded after `initialize` is answered
    from lsp_server.engines.interface import Engine, EngineState
    from lsp_server.session.prompter import Prompter
    from lsp_server.settings import Settings

logger = logging.getLogger(__name__)
START_POLL_S = 0.02
STAND_IN_AFTER_S = 3.0  # of loading
RETRY_S = 300.0  # from a failure of the chosen model, while another one stands in


@dataclass(frozen=True, slots=True)
class Status:
    """The state of one window, as an editor shows it in its status bar."""

    state: Literal["loading", "ready", "busy", "off", "failed"]
    message: str  # it names the remedy if the state is "failed" or "off"
    model: str
    progress: float | None = None  # 0 to 1 while the model is loading

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class ShowMessage(Protocol):
    def __call__(self, message: str, *, error: bool) -> None: ...


class Session:
    """The settings of one window, and the prompter and the engine that are made from them.

    New settings make a new prompter; the engine stays unless another model is chosen. While the
    chosen model loads, or if it cannot be used, another one stands in for it: `prompter` and
    `engine` are always of the model that answers now.

    show_message is called with what the user should read, each thing once. on_progress is called
    with the share of the model that is loaded, 0 to 1, and with None at the end. on_status is
    called when `status` may have changed.
    """

    def __init__(
        self,
        show_message: ShowMessage,
        on_progress: Callable[[float | None], None],
        on_status: Callable[[], None] = lambda: None,
    ) -> None:
        self.client = uuid.uuid4().hex  # names this window in the engine's queue
        self.client_name = ""
        self.client_shows_status = False  # then nothing in the status needs a message
        self.requests = Scheduler()  # for suggestions, by document
        self.edits = Scheduler()  # fill-in edits, by document
        self.problem: str | None = None  # why there are no suggestions
        self._has_answered = False  # the engine, which has been asked
        self.messages_shown = 0
        self._failures = 0  # of the engine in a row
        self._layers = SettingsLayers()
        # The chosen model's:
        self._engine: Engine | None = None
        self._prompter: Prompter | None = None
        self._prompter_pending = False
        self._load_problem: str | None = None  # why it cannot be used
        self._loading: asyncio.Task[None] | None = None
        self._retry_at = 0.0  # by time.monotonic()
        self._stand_in = StandIn(self.client, on_status)
        self._show_message = show_message
        self._on_progress = on_progress
        self._on_status = on_status
        self._reporter = Reporter()
        self._snoozed_until = 0.0  # by time.time()
        self._waking: asyncio.TimerHandle | None = None
        self._language_told = False

    # ---- settings, model and engine ----

    @property
    def settings(self) -> Settings:
        return self._layers.settings

    def configure(self, raw: object, *, trusted: bool) -> None:
        """Reads the client's settings. trusted: they are the user's own, not a workspace's."""
        before = self.settings
        problems = self._layers.take(raw, trusted=trusted)
        # Those of the environment are shown after `initialize`: nobody could see them before.
        told = self._tell((*self._layers.problems, *problems))
        if told:  # the log holds no values: they may be keys or the user's text
            logger.warning("showed the user %d problems with the settings", told)
        logging.getLogger("lsp_server").setLevel(self.settings.log.level.upper())
        if not trusted and self._loading is not None and self.settings != before:
            self.start()  # format and layout may have changed

    def start(self) -> None:
        """Starts the engine and makes the prompter, in the background."""
        if self._loading is not None:
            self._loading.cancel()  # it uses the earlier settings
        self._loading = asyncio.ensure_future(self._load())

    async def _load(self) -> None:
        self._prompter_pending = True
        self.problem = None
        self._load_problem = await self._make()
        if self._load_problem is not None:
            self._prompter = None
            self.report(self._load_problem)
            self._cover()
        if not self._needs_engine:
            end_spare()
        self._prompter_pending = False
        self._hand_over()
        self._update_progress()

    async def _make(self) -> str | None:
        """Makes the engine and the prompter of the chosen model, and starts the engine if
        suggestions are on. Returns what is wrong."""
        await in_daemon(load_modules)
        from fim import FormatError
        from model.errors import NO_MEMORY, ModelError, lacks_memory

        settings = self.settings
        try:
            if self._engine is None:
                self._engine = await make_engine(settings, self._engine_changed)
            if settings.enabled:
                self._engine.start()  # first: it takes longest
            self._prompter = await make_prompter(settings)
        except TimeoutError:
            return (
                f"The files of the model {settings.model!r} cannot be read: the disk does not "
                "answer. Look after it, or choose another model."
            )
        except FileNotFoundError as error:
            return f"{error.filename} is missing. Download the model again."
        except (ModelError, FormatError, OSError) as error:
            return str(error)
        except Exception as error:
            log_error(logger, error)
            if lacks_memory(error):
                return NO_MEMORY
            return (
                f"The model could not be used ({type(error).__name__}). Choose another, or "
                "'bundled'."
            )
        return None

    def _engine_changed(self, state: EngineState) -> None:
        if self._engine is None or self._engine.state is not state:
            return  # it is another model's by now
        if state.name == "failed" and state.message:
            self.report(state.message)
        if state.name == "failed":
            self._retry_at = time.monotonic() + RETRY_S
            self._cover()
        elif state.name == "loading":
            self._cover(STAND_IN_AFTER_S)
        self._hand_over()
        self._update_progress()

    # ---- a model that stands in, and the choice of another ----

    @property
    def prompter(self) -> Prompter | None:
        other = self._stand_in.model
        return self._prompter if other is None else other.prompter

    @property
    def engine(self) -> Engine | None:
        other = self._stand_in.model
        return self._engine if other is None else other.engine

    @property
    def _chosen_answers(self) -> bool:
        """Whether the chosen model can answer requests."""
        engine = self._engine
        ready = engine is not None and engine.state.name == "ready"
        return ready and self._prompter is not None and not self._prompter_pending

    @property
    def _needs_engine(self) -> bool:
        """Whether an engine here runs or starts, be it for the bundled model."""
        settings = self.settings
        here = settings.enabled and not settings.remote.url
        return here and (self._engine is not None or settings.model != BUNDLED)

    def _cover(self, after_s: float = 0.0) -> None:
        """Lets the bundled model stand in for the chosen one."""
        settings = self.settings
        if settings.enabled and settings.model != BUNDLED and not settings.remote.url:
            self._stand_in.start(settings, after_s)

    def _hand_over(self) -> None:
        """Lets the chosen model answer as soon as it can."""
        if self._chosen_answers:
            other = self._stand_in.model
            assert self._engine is not None
            self._stand_in.end(
                release=other is None or other.engine.address != self._engine.address
            )

    async def choose(self, name: str) -> None:
        """Keeps the choice of a model for this user and loads it; until it is ready the one that
        answers now goes on. Raises ModelError, OSError, TimeoutError with the remedy."""
        from model.errors import ModelError

        if self.settings.remote.url:
            raise ModelError(
                f"Suggestions come from {self.settings.remote.url}. Remove the setting "
                "fimls.remote.url to use a model on this machine."
            )
        if (problem := self._layers.who_sets_model()) is not None:
            raise ModelError(problem)
        await in_daemon(lambda: store_model(name), FILES_TIMEOUT_S)
        before = self.settings.model
        await in_daemon(self._layers.read_again, FILES_TIMEOUT_S)
        failed = self._load_problem is not None or (
            self._engine is not None and self._engine.state.name == "failed"
        )
        if self.settings.model == before and not failed:
            return
        if self._prompter is not None and self._engine is not None and self._chosen_answers:
            self._stand_in.keep(RunningModel(before, self._prompter, self._engine))
        elif self._engine is not None:
            self._stand_in.let_go(self._engine)
        self._engine = None
        self._prompter = None
        self.start()

    @property
    def sent_settings(self) -> str:
        """What the editor has set, for SettingsLayers.from_json."""
        return self._layers.to_json()

    # ---- progress ----

    def _update_progress(self) -> None:
        self._on_progress(self._progress())
        self._on_status()

    def _progress(self) -> float | None:
        """The share of the model that is loaded; None if it is not loading.

        Loading goes on until requests are answered: an engine that other windows share may be ready
        before the prompter is.
        """
        if self._engine is None:
            return None
        state = self._engine.state
        if state.name == "loading" or (state.name == "ready" and self._prompter_pending):
            return state.progress
        return None

    async def settled(self) -> None:
        """Waits until the client's settings are there and used. The engine may still be loading."""
        while self._loading is None:  # the client has not sent `initialized`
            await asyncio.sleep(START_POLL_S)
        while not self._loading.done():  # new settings start it again
            await asyncio.wait({self._loading})

    async def ready(self, *, wait: bool) -> tuple[Prompter, Engine] | None:
        """The prompter and the engine that answer a request; None if they cannot.

        wait: waits for a model that is loading.
        """
        if wait:
            await self.settled()
        if self._stand_in.model is not None:
            self._start_chosen()
        while True:
            engine = self.engine
            if engine is not None and self.prompter is not None:
                if engine.state.name == "ready":
                    return self.prompter, engine
                engine.start()  # it failed some time ago
            if not wait or not await self._wait_for(engine):
                return None

    def _start_chosen(self) -> None:
        """Starts the chosen model's engine again where it was lost, or failed some time ago."""
        engine = self._engine
        if engine is None:
            return
        name = engine.state.name
        if name == "absent" or (name == "failed" and time.monotonic() > self._retry_at):
            engine.start()

    async def _wait_for(self, engine: Engine | None) -> bool:
        """Waits until an engine that is loading is settled, or another model stands in or cannot;
        whether there was anything to wait for."""
        waiting: set[asyncio.Future[Any]] = set()
        if engine is not None and self.prompter is not None and engine.state.name == "loading":
            waiting.add(asyncio.ensure_future(engine.wait_until_settled()))
        if self._stand_in.coming is not None:
            waiting.add(asyncio.ensure_future(asyncio.wait({self._stand_in.coming})))
        if not waiting:
            return False
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
        return True

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Catches EngineUnavailable and FormatError in the block: the status then says why, and a
        message if it does not pass by itself."""
        from fim import FormatError
        from lsp_server.engines.interface import EngineUnavailable

        try:
            yield
        except EngineUnavailable as error:
            logger.info("no suggestion: %s", error.message)
            self.problem = str(error)
            self._failures += 1
            if self._failures >= error.tell_after:
                self._tell((self.problem,), cause=error.message, error=True, in_status=True)
        except FormatError as error:
            self.report(str(error))
        self._on_status()

    def engine_answers(self) -> None:
        """The trouble, if there was any, is over."""
        self._has_answered = True
        self.problem = None
        self._failures = 0

    @contextmanager
    def working(self) -> Iterator[None]:
        """The status is told when the work in the block begins and ends."""
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
    def answering_model(self) -> str:
        """The name of the chosen model, or of the one that stands in for it."""
        other = self._stand_in.model
        return self.model_name if other is None else other.name

    @property
    def where(self) -> str:
        return f"at {self.settings.remote.url}" if self.settings.remote.url else "on this machine"

    def status(self, language: str | None = None) -> Status:
        """The status for a document in this language, or for no document."""
        name = self.model_name
        off = self._off(language)
        if off is not None:
            return Status("off", off, name)
        engine = self._engine.state if self._engine is not None else None
        share = self._progress()
        if self._stand_in.model is not None:
            return self._status_of_stand_in(self._stand_in.model.name, share)
        if self.problem is None and (share is not None or engine is None or self._prompter_pending):
            return Status("loading", f"Loading the model {name!r}.", name, share or 0.0)
        if engine is not None and engine.name == "failed":
            return Status("failed", engine.message or "The engine has stopped; see the log.", name)
        if self.problem is not None:
            return Status("failed", self.problem, name)
        where = self.where
        if self.settings.remote.url and not self._has_answered:
            where += " has not been asked yet"  # whether it would answer nobody knows
        message = f"The model {name!r} {where}. {self._about_language(language)}".strip()
        busy = self.requests.busy or self.edits.busy
        return Status("busy" if busy else "ready", message, name)

    def _status_of_stand_in(self, other: str, share: float | None) -> Status:
        name = self.model_name
        problem = self._load_problem
        if self._engine is not None and self._engine.state.name == "failed":
            problem = self._engine.state.message or "The engine has stopped; see the log."
        if problem is not None:
            return Status("failed", f"{problem} Meanwhile {other!r} answers.", name)
        message = f"{name!r} is loading ({share or 0:.0%}), {other!r} answers meanwhile."
        return Status("loading", message, name, share or 0.0)

    def _off(self, language: str | None, *, snoozed: bool = True) -> str | None:
        """Why there are no automatic suggestions, and the remedy; None if there are."""
        if not self.settings.enabled:
            return "Switched off: set fimls.enabled to true."
        if language is not None and language in self.settings.disabled_languages:
            return f"Off for {language}, which is in fimls.disabledLanguages."
        if snoozed and self._snoozed_until > time.time():
            return f"Snoozed until {time.strftime('%H:%M', time.localtime(self._snoozed_until))}."
        return None

    def answers(self, language: str, *, invoked: bool) -> bool:
        """Whether requests for a document in this language are answered at all."""
        return self._off(language, snoozed=not invoked) is None

    def snooze(self, minutes: float) -> None:
        """Ends automatic suggestions for so long; 0 brings them back."""
        seconds = 60 * minutes
        self._snoozed_until = time.time() + seconds
        if self._waking is not None:
            self._waking.cancel()
        self._waking = asyncio.get_running_loop().call_later(seconds, self._on_status)
        self._on_status()

    # ---- what the user is told ----

    def _about_language(self, language: str | None) -> str:
        """Says that the model was not trained on a language, and which model was; "" if it was."""
        if self._prompter is None or not language:
            return ""  # nor is it said of a model that stands in
        known = self._prompter.languages
        better = self._prompter.other_languages
        if not known or language in known:
            return ""
        advice = f"; for {language} set fimls.model to the folder of {better}" if better else ""
        return f"The model {self.settings.model!r} was trained on {', '.join(known)} only{advice}."

    def tell_of_language(self, language: str) -> None:
        """Tells the user, once in a session, if the model was not trained on a language."""
        advice = "" if self._language_told else self._about_language(language)
        if advice:
            self._language_told = True
            self._tell((advice,), in_status=True)

    def report(self, problem: str) -> None:
        """Shows the user, once, why there are no suggestions, and logs it."""
        self.problem = problem
        self._on_status()
        if self._tell((problem,), error=True, in_status=True):
            logger.error("%s", problem)

    def report_once(self, problem: str) -> None:
        """Shows the user something that does not keep suggestions from coming."""
        self._tell((problem,))

    def say_why_nothing(self, language: str) -> None:
        """Answers an explicit request in words, if there is anything to say."""
        status = self.status(language)
        if status.state in ("failed", "off"):
            self._show(status.message, error=status.state == "failed")

    def _tell(
        self,
        problems: Iterable[str],
        *,
        cause: str | None = None,
        error: bool = False,
        in_status: bool = False,
    ) -> int:
        """Shows the user the problems that are new; returns how many there are.

        cause: of the only one, where its words vary. in_status: the status has it, too.
        """
        new = tuple(problems)
        if cause is None:
            new = self._reporter.new(new)
        elif not self._reporter.new((cause,)):
            new = ()
        if not (in_status and self.client_shows_status):
            for problem in new:
                self._show(problem, error=error)
        return len(new)

    def _show(self, message: str, *, error: bool) -> None:
        self.messages_shown += 1
        self._show_message(message, error=error)

    def close_work(self, uri: str) -> None:
        """Cancels the work for a document, whose text is another one now."""
        self.requests.close(uri)
        self.edits.close(uri)

    async def close(self) -> None:
        if self._loading is not None:
            self._loading.cancel()
        if self._waking is not None:
            self._waking.cancel()
        await self.requests.close_all()
        await self.edits.close_all()
        end_spare()
        engine = self._engine
        self._engine = None
        if engine is not None:
            await engine.close()
        await self._stand_in.close()
