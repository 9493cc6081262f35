"""Answers from the cache or from the engine; slow answers are returned in part.

Loaded after `initialize` is answered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lsp_server.completion.answer_cache import Memory
from lsp_server.completion.completer import (
    Completion,
    Place,
    Question,
    begin,
    finish,
    wait_for_lines,
)
from lsp_server.completion.offers import Offers
from lsp_server.completion.prefill import Prefill
from lsp_server.completion.prompter import Prompter
from lsp_server.completion.stream import Generation
from lsp_server.completion.unfinished import Unfinished
from lsp_server.documents import Snapshot
from lsp_server.scheduler import Background


@dataclass(frozen=True, slots=True)
class Made:
    """A completion, and what goes on where only its first lines are there yet."""

    completion: Completion
    rest: tuple[Question, Generation] | None = None

    def end(self) -> None:
        if self.rest is not None:
            self.rest[1].end()


class Asking:
    """What a window has asked, is being answered, and will ask next."""

    def __init__(self, background: Background) -> None:
        self.offers, self._memory = Offers(), Memory()
        self.unfinished = Unfinished(self._memory, self.offers, background)
        self._prefill = Prefill(self._memory, background)
        self._prompter: Prompter | None = None

    def made_by(self, prompter: Prompter) -> None:
        """What another one made would be made differently by now."""
        if self._prompter is not prompter:
            self.offers.forget()
            self._memory.forget()
            self.stop()
            self._prompter = prompter

    async def one(self, place: Place, *, cut: bool) -> Made:
        """One suggestion. cut: at the time budget it may be its first lines alone. Raises as
        `complete`."""
        question = self._memory.question(place)
        if (known := self._memory.find(question)) is not None:
            return Made(await finish(question, known, from_memory=True))
        limits = (
            (place.prompter.time_budget / 1000, place.settings.patience)
            if cut
            else (math.inf, math.inf)
        )
        self.unfinished.end_all()  # it would be in the way
        generation = begin(question)
        goes_on = False
        try:
            state = await wait_for_lines(question, generation, *limits)
            done = await finish(question, generation, state)
            self._memory.keep(question, generation)
            goes_on = state == "cut" and not done.suggestion.hidden
            return Made(done, (question, generation) if goes_on else None)
        finally:
            if not goes_on:
                generation.end()

    def prefill(self, place: Place) -> None:
        """The cursor stands there: in idle time the engine reads the prompt that a request would
        have."""
        self.made_by(place.prompter)
        if not self.unfinished.leads_to(place.snapshot):
            self._prefill.start(place)

    def edited(self, now: Snapshot) -> None:
        """Ends what the text has departed from."""
        self.unfinished.edited(now)
        self._prefill.close(now.uri)

    def forget(self, uri: str) -> None:
        """A document was closed."""
        self.offers.close(uri)
        self.unfinished.end(uri)
        self._prefill.close(uri)
        self._memory.forget(uri)

    def stop(self) -> None:
        """Ends what goes on in the background."""
        self.unfinished.end_all()
        self._prefill.close()
