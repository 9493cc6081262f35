"""What will be asked next is asked in the engine's idle time, one thing at a time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from fim import FormatError
from lsp_server.completion.answer_cache import Memory
from lsp_server.completion.completer import Place, Question, begin
from lsp_server.completion.offers import Offer
from lsp_server.completion.stream import Generation
from lsp_server.documents import Snapshot
from lsp_server.engines.interface import Engine, EngineUnavailable
from lsp_server.scheduler import Background

FIRST_S = 0.02  # the answer that it comes behind is sent first, and a fast key may make it needless


@dataclass(slots=True, eq=False)
class Expected:
    """What will be asked when an offer is accepted; without one, where the cursor stands: that
    prompt is only read."""

    uri: str
    offer: Offer | None = None
    begun: tuple[Question, Generation] | None = None


class Ahead:
    """A window's."""

    def __init__(self, memory: Memory, background: Background) -> None:
        self._memory, self._background = memory, background
        self._expected: Expected | None = None
        self._task: asyncio.Task[None] | None = None
        self._offered_last = (
            "",
            "",
        )  # an offer's id and text: for the keys that type it, once is enough

    def prefill(self, place: Place) -> None:
        """The cursor stands there now: has the prompt read that a request would have."""
        if may_idle(place.engine):
            self._start(Expected(place.snapshot.uri), place)

    def answer_behind(self, offer: Offer, place: Place) -> None:
        """The offer is shown whole: asks as if it were accepted."""
        this = (offer.id, offer.suggestion.text)
        if may_idle(place.engine) and this != self._offered_last:
            self._start(
                Expected(place.snapshot.uri, offer), replace(place, snapshot=accepted(offer))
            )
            self._offered_last = this

    def take(self, question: Question) -> Generation | None:
        """The answer to this question, if it was asked ahead and has begun to come; the caller's
        from now on."""
        expected = self._expected
        if expected is None or expected.begun is None:
            return None
        asked, generation = expected.begun
        if not (generation.text and generation.running and asked.key == question.key):
            return None
        expected.begun = None
        self.end()
        generation.wait_for(True)
        return generation

    def edited(self, now: Snapshot) -> None:
        """Ends what the text has departed from."""
        expected = self._expected
        if expected is None or expected.uri != now.uri:
            return
        if expected.offer is None or expected.offer.stands(now) is None:
            self.end()

    def forget(self, uri: str) -> None:
        """A document was closed."""
        if self._expected is not None and self._expected.uri == uri:
            self.end()

    def end(self) -> None:
        self._expected, self._offered_last = None, ("", "")
        if self._task is not None:
            self._task.cancel()

    def _start(self, expected: Expected, place: Place) -> None:
        self.end()
        self._expected = expected
        self._task = self._background.start(self._ask(expected, place))

    async def _ask(self, expected: Expected, place: Place) -> None:
        await asyncio.sleep(FIRST_S)
        try:
            question = self._memory.question(place, here=expected.offer is None)
            idle = replace(question, request=replace(question.request, idle=True))
            if self._memory.find(idle) is not None:
                pass
            elif expected.offer is None:
                await place.engine.prefill(idle.request)
            else:
                generation = begin(idle)
                expected.begun = idle, generation
                await generation.finished()
                self._memory.keep(idle, generation)
        except (EngineUnavailable, FormatError):
            pass  # whoever asks for it will hear of it
        finally:
            if expected.begun is not None:
                expected.begun[1].end()
            if self._expected is expected:
                self._expected = None


def may_idle(engine: Engine) -> bool:
    return engine.has_idle_time and engine.state.name == "ready"


def accepted(offer: Offer) -> Snapshot:
    """The document with the whole offer in it and the cursor behind."""
    before, text = offer.snapshot, offer.suggestion.text
    start, end = before.offset, before.offset + offer.suggestion.replace[1]
    return replace(
        before, text=before.text[:start] + text + before.text[end:], offset=start + len(text)
    )
