"""How a window asks the engine: what is known is not asked, what was begun is taken up, what takes long comes in parts.

Loaded after `initialize` is answered.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from fim import FormatError, Suggestion
from lsp_server.ahead import Ahead
from lsp_server.answers import Answers
from lsp_server.completer import Completion, Prompter, Question, ask, finish, wait_for_lines
from lsp_server.documents import Snapshot
from lsp_server.engines import Engine, EngineUnavailable
from lsp_server.generation import Generation
from lsp_server.offers import Offer, Offers
from lsp_server.session import Session
from lsp_server.settings import Settings

logger = logging.getLogger(__name__)
T = TypeVar("T")
BUNDLED_BUDGET_MS, BUDGET_MS = 100.0, 300.0


@dataclass(frozen=True, slots=True)
class Made:
    """A completion, and what goes on where only its first lines are there yet."""

    completion: Completion
    rest: tuple[Question, Generation] | None = None

    def end(self) -> None:
        if self.rest is not None:
            self.rest[1].end()


class Asking:
    """A session's questions, their answers, and its work in the background."""

    def __init__(self, session: Session, offers: Offers) -> None:
        self._session, self._offers = session, offers
        self._known = Answers()
        self._ahead = Ahead(self._known, offers, session.client)
        self._made_with: Prompter | None = None
        self._focusing: asyncio.Task[None] | None = None

    def made_by(self, prompter: Prompter) -> None:
        """What another one made would be made differently by now."""
        if self._made_with is not prompter:
            self._offers.forget()
            self._known.forget()
            self._ahead.end_all()
            self._made_with = prompter

    async def going_on(self, snapshot: Snapshot, *, whole: bool) -> tuple[Offer, Suggestion] | None:
        """See Ahead.going_on."""
        return await self._ahead.going_on(snapshot, whole=whole, patience_s=self._session.settings.patience)

    async def one(
        self, snapshot: Snapshot, prompter: Prompter, engine: Engine, settings: Settings, path: str | None, *, cut: bool
    ) -> Made:
        """One suggestion. cut: at the time budget it may be its first lines alone. Raises as `complete`."""
        question = self._known.question(snapshot, prompter, settings, path=path, client=self._session.client)
        if (known := self._known.find(question)) is not None:
            return Made(await finish(question, known, from_memory=True))
        limits = (budget_s(settings), settings.patience) if cut else (math.inf, math.inf)
        begun, goes_on = self._ahead.take(question), False
        generation = ask(engine, question) if begun is None else begun
        try:
            try:
                state = await wait_for_lines(question, generation, *limits)
            except EngineUnavailable:
                if begun is None:
                    raise
                generation = ask(engine, question)  # what was begun in idle time had to make way for others
                state = await wait_for_lines(question, generation, *limits)
            done = await finish(question, generation, state)
            self._known.keep(question, generation)
            goes_on = state == "cut" and not done.suggestion.hidden
            return Made(done, (question, generation) if goes_on else None)
        finally:
            if not goes_on:
                generation.end()

    async def tried(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The work's result; None where the engine or the settings allow of none: the status tells."""
        try:
            result = await work
        except EngineUnavailable as error:
            logger.info("no suggestion: %s", error.message)
            if error.refused:
                self._session.report(str(error), quoted=True)
            else:  # it may pass: in the status, but no message
                self._session.problem = str(error)
            return None
        except FormatError as error:
            self._session.report(str(error))
            return None
        self._session.problem = None
        return result

    # ---- what no request waits for ----

    def go_on(self, made: Made, offer: Offer, grown: Callable[[Completion], None]) -> None:
        """The rest of it makes the offer longer, line by line; `grown` hears of it."""
        if made.rest is not None:
            self._ahead.go_on(*made.rest, offer, grown)

    def look_ahead(self, offer: Offer, prompter: Prompter, engine: Engine, path: str | None) -> None:
        """Asks in idle time what comes behind an offer that is shown whole."""
        if not self._ahead.is_unfinished(offer):
            self._ahead.ask(offer, prompter, engine, self._session.settings, path)

    def focused(self, look: Callable[[], Snapshot | None], path: str | None) -> None:
        """The cursor stands where `look` sees it: in idle time the engine reads the prompt that a request would have.

        Where the model is still loading, that is afterwards.
        """
        if self._focusing is not None:
            self._focusing.cancel()
        self._focusing = asyncio.ensure_future(self._prefill(look, path))

    async def _prefill(self, look: Callable[[], Snapshot | None], path: str | None) -> None:
        session = self._session
        if session.engine is not None and session.engine.state.name == "failed":
            return  # only somebody who asks for something has it started again
        ready, snapshot = await session.ready(wait=True), look()
        if ready is not None and snapshot is not None and session.answers(snapshot.language, invoked=False):
            self.made_by(ready[0])
            self._ahead.prefill(snapshot, *ready, session.settings, path)

    def edited(self, now: Snapshot) -> None:
        """Ends what the text has departed from."""
        self._ahead.edited(now)

    def end(self, uri: str) -> None:
        """Ends the answer that goes on for a document."""
        self._ahead.end(uri)

    def forget(self, uri: str) -> None:
        """A document was closed."""
        self._ahead.end(uri)
        self._known.forget(uri)

    def stop(self) -> None:
        if self._focusing is not None:
            self._focusing.cancel()
        self._ahead.end_all()


def budget_s(settings: Settings) -> float:
    """The time budget in seconds."""
    small = settings.model == "bundled" and not settings.remote.url
    usual = BUNDLED_BUDGET_MS if small else BUDGET_MS
    return (usual if settings.time_budget is None else settings.time_budget) / 1000
