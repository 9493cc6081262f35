"""The model that answers while the chosen one cannot."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lsp_server.daemon import FILES_TIMEOUT_S, in_daemon
from lsp_server.logs import log_error
from lsp_server.scheduler import Background

if TYPE_CHECKING:  # loaded after `initialize` is answered
    from lsp_server.engines.interface import Engine, EngineState
    from lsp_server.session.prompter import Prompter
    from lsp_server.settings import Settings

logger = logging.getLogger(__name__)
BUNDLED = "bundled"
LARGE_BYTES = 2**26  # of weights; a smaller model loads as fast as the bundled one
CLOSE_S = 1.0  # for an engine to take notice


@dataclass(frozen=True, slots=True)
class RunningModel:
    """A model that answers: the prompter makes the requests, the engine answers them."""

    name: str
    prompter: Prompter
    engine: Engine


def load_modules() -> None:
    """Loads what a window needs to answer, which takes long: not on the event loop."""
    import lsp_server.engines.local
    import lsp_server.session.prompter  # noqa: F401

    # The garbage collector need not look at them again: that stops all threads for 80 ms when
    # snippets of other files are looked for.
    gc.freeze()


async def make_prompter(settings: Settings) -> Prompter:
    """Raises ModelError, FormatError, OSError, TimeoutError."""
    from lsp_server.session.prompter import Prompter

    return await in_daemon(lambda: Prompter.for_settings(settings), FILES_TIMEOUT_S)


async def make_engine(settings: Settings, on_state: Callable[[EngineState], None]) -> Engine:
    """Raises ModelError, OSError, TimeoutError."""
    from lsp_server.engines import local

    return await in_daemon(lambda: local.make_engine(settings, on_state=on_state), FILES_TIMEOUT_S)


async def is_large(settings: Settings) -> bool:
    """Raises ModelError, OSError, TimeoutError."""
    from model.weights.folder import find_model

    def size() -> int:
        return sum(file.stat().st_size for file in find_model(settings.model).weight_files)

    return await in_daemon(size, FILES_TIMEOUT_S) >= LARGE_BYTES


class StandIn:
    """Answers while the chosen model loads, or where it cannot be used.

    It is the model that answered before another was chosen, or else the bundled one, which is
    started for it. When the chosen one is ready its engine is released. client: names the window in
    the engines' queues. on_change is called when `model` has changed.
    """

    def __init__(self, client: str, on_change: Callable[[], None]) -> None:
        self.model: RunningModel | None = None
        self._client = client
        self._on_change = on_change
        self._starting: asyncio.Task[None] | None = None
        self._tried = False  # to start the bundled model, since the last `end`
        self._delayed = False  # it is not certain yet whether it is needed
        self._background = Background()
        self._released: list[Engine] = []  # they may still be answering

    @property
    def coming(self) -> asyncio.Task[None] | None:
        """What ends when the bundled model has come, is not needed or cannot come; None where that
        is past."""
        starting = self._starting
        return None if starting is None or starting.done() else starting

    def keep(self, model: RunningModel) -> None:
        """Lets a model go on that answers already."""
        self.end()
        self._set(model)

    def start(self, settings: Settings, after_s: float = 0.0) -> None:
        """Lets the bundled model answer, unless it was tried before.

        after_s: the chosen model loads; unless that takes longer (until `end` is called), nothing
        needs to stand in for it. 0: it failed.
        """
        if self.model is not None or (self._tried and (after_s or not self._delayed)):
            return
        if self._starting is not None:
            self._starting.cancel()
        self._tried = True
        self._delayed = bool(after_s)
        self._starting = asyncio.ensure_future(self._start(settings, after_s))

    def end(self, *, release: bool = True) -> None:
        """The chosen model answers from now on. release: it has another engine."""
        self._tried = False
        if self._starting is not None:
            self._starting.cancel()  # it releases what it has started
            self._starting = None
        if self.model is not None:
            self._let_go(self.model.engine, release=release)
            self._set(None)

    def let_go(self, engine: Engine) -> None:
        """Releases an engine that is no longer needed; what it is answering is still answered."""
        self._let_go(engine, release=True)

    async def close(self) -> None:
        """Releases everything that stands in."""
        starting = self._starting
        self.end()
        self._tried = True  # nothing starts any more
        if starting is not None:
            await asyncio.wait({starting})
        await self._background.close(CLOSE_S)
        for engine in self._released:
            await engine.close()

    def _let_go(self, engine: Engine, *, release: bool) -> None:
        self._released.append(engine)
        if release:
            self._background.start(engine.release(self._client))

    def _set(self, model: RunningModel | None) -> None:
        self.model = model
        self._on_change()

    async def _start(self, settings: Settings, after_s: float) -> None:
        bundled = replace(settings, model=BUNDLED, format="auto", layout="auto")
        engine: Engine | None = None
        try:
            if after_s:
                await asyncio.sleep(after_s)
                if not await is_large(settings):
                    return
                self._delayed = False
            prompter = await make_prompter(bundled)
            engine = await make_engine(bundled, lambda state: self._on_change())
            engine.start()
            if (await engine.wait_until_settled()).name == "ready":
                self._set(RunningModel(BUNDLED, prompter, engine))
                engine = None
        except Exception as error:
            log_error(logger, error)  # then nothing answers until the chosen model can
        finally:
            if engine is not None:
                self.let_go(engine)
