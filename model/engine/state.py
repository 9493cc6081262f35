"""The state of an engine process: loading, then ready or failed."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from model.engine.options import Launch
from model.errors import ModelError

if TYPE_CHECKING:  # torch is loaded on a thread of its own, after the socket answers
    from model.engine.worker import Engine

log = logging.getLogger(__name__)


@dataclass(slots=True)
class EngineProcess:
    """What the loader, the HTTP handlers and the main loop share."""

    launch: Launch
    key: str | None = None  # what a client must send; None where the socket is private
    engine: Engine | None = None
    progress: float = 0.0
    failure: str | None = None
    started: float = field(default_factory=time.monotonic)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    told_to: bool = False  # by a front, for good or for another version: nothing more is written

    @property
    def state(self) -> str:
        if self.failure:
            return "failed"
        if self.engine:
            return "ready"
        return "loading"

    def load(self) -> None:
        """Imports torch and loads the model. Runs on a thread."""
        try:
            from model.engine.loading import load_engine

            engine = load_engine(self.launch, self._report)
            engine.start()
            self.engine = engine
            log.info("ready after %.2f s", time.monotonic() - self.started)
        except ModelError as error:
            self.failure = str(error)
        except Exception as error:
            log.exception("loading failed")
            self.failure = f"The model could not be loaded ({type(error).__name__}: {error})."

    def _report(self, share: float) -> None:
        self.progress = share
