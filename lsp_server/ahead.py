"""Work that no request waits for: the rest of an answer that was shown in part, and what will be asked next.

Both go on in the background, the first for each document, the second one at a time and only in the engine's idle time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from fim import FormatError, Suggestion
from lsp_server.answers import Answers, key_of
from lsp_server.completer import Completion, Prompter, Question, ask, finish
from lsp_server.documents import Snapshot
from lsp_server.engines import Engine, EngineUnavailable
from lsp_server.generation import Bell, Generation
from lsp_server.log import log_error
from lsp_server.offers import Offer, Offers
from lsp_server.settings import Settings

logger = logging.getLogger(__name__)
FIRST_S = 0.02  # the answer that it comes behind is sent first, and a fast key may make it needless


@dataclass(slots=True, eq=False)
class Unfinished:
    """An answer of which some lines were shown, and which goes on."""

    question: Question
    generation: Generation
    offer: Offer
    grown: Bell = field(default_factory=Bell)

    def follows(self, now: Snapshot, *, to_cursor: bool = False) -> bool:
        """Whether all that happened to the text is that some of the answer was typed, as far as it has come."""
        before = self.question.snapshot
        start, grown = before.offset, len(now.text) - len(before.text)
        if grown < 0 or now.window_start != before.window_start or (to_cursor and now.offset != start + grown):
            return False
        written = self.generation.text.replace("\r\n", "\n")
        if self.question.shaper.crlf:
            written = written.replace("\n", "\r\n")
        both = min(grown, len(written))
        return (
            now.text[start : start + both] == written[:both]
            and now.text[:start] == before.text[:start]
            and now.text[start + grown :] == before.text[start:]
        )


@dataclass(slots=True, eq=False)
class Asked:
    """What is asked ahead of its time: as if an offer were accepted. Without one, a prompt that is only read."""

    offer: Offer | None = None
    question: Question | None = None
    generation: Generation | None = None
    task: asyncio.Task[None] | None = None


class Ahead:
    """A window's background work."""

    def __init__(self, answers: Answers, offers: Offers, client: str) -> None:
        self._answers, self._offers, self._client = answers, offers, client
        self._unfinished: dict[str, Unfinished] = {}
        self._idle: Asked | None = None
        self._asked_last = ("", "")  # an offer's id and text: for the keys that type it, once is enough
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- the rest of an answer ----

    def go_on(
        self, question: Question, generation: Generation, offer: Offer, grown: Callable[[Completion], None]
    ) -> None:
        """Takes the generation over. The offer becomes longer, line by line; `grown` hears of it."""
        uri = question.snapshot.uri
        self.end(uri)
        item = self._unfinished[uri] = Unfinished(question, generation, offer)
        # The generation ends also where the task never begins.
        self._start(self._go_on(item, grown)).add_done_callback(lambda _: generation.end())

    async def _go_on(self, item: Unfinished, grown: Callable[[Completion], None]) -> None:
        uri, lines = item.question.snapshot.uri, item.generation.lines
        try:
            while self._unfinished.get(uri) is item:
                await item.generation.more()
                running = item.generation.running
                if not running and not item.generation.whole:
                    return
                if running and item.generation.lines == lines:
                    continue
                lines = item.generation.lines
                done = await finish(item.question, item.generation, "cut" if running else "whole")
                # The filters may have come to know better: then what is shown stays as it is.
                if self._unfinished.get(uri) is item and done.suggestion.text.startswith(item.offer.suggestion.text):
                    item.offer.suggestion, item.offer.completion = done.suggestion, done
                    grown(done)
                item.grown.ring()
                if not running:
                    self._answers.keep(item.question, item.generation)
                    return
        except EngineUnavailable as error:
            logger.info("the rest of an answer is lost: %s", error.message)
        finally:
            if self._unfinished.get(uri) is item:
                del self._unfinished[uri]
            item.grown.ring()

    async def going_on(self, snapshot: Snapshot, *, whole: bool, patience_s: float) -> tuple[Offer, Suggestion] | None:
        """What goes on at the cursor; waits for it while an answer that leads there is still being written.

        whole: for all of that answer. Whatever else is being written for the document ends.
        """
        deadline = time.monotonic() + patience_s
        while True:
            item = self._unfinished.get(snapshot.uri)
            if item is None or not item.follows(snapshot, to_cursor=True):
                break
            found = None if whole else self._offers.going_on(snapshot)
            if found is not None and found[0] is item.offer:
                return found
            left = deadline - time.monotonic()
            if left <= 0 or found is not None:
                break
            await item.grown.wait(left)
        self.end(snapshot.uri)
        return self._offers.going_on(snapshot)

    def is_unfinished(self, offer: Offer) -> bool:
        item = self._unfinished.get(offer.snapshot.uri)
        return item is not None and item.offer is offer

    # ---- what will be asked next ----

    def prefill(
        self, snapshot: Snapshot, prompter: Prompter, engine: Engine, settings: Settings, path: str | None
    ) -> None:
        """The cursor stands there now: has the prompt read that a request would have."""
        if may_idle(engine):
            self._in_idle_time(Asked(), snapshot, prompter, engine, settings, path)

    def ask(self, offer: Offer, prompter: Prompter, engine: Engine, settings: Settings, path: str | None) -> None:
        """The offer is shown whole: asks as if it were accepted."""
        this = (offer.id, offer.suggestion.text)
        if may_idle(engine) and this != self._asked_last:
            self._in_idle_time(Asked(offer), accepted(offer), prompter, engine, settings, path)
            self._asked_last = this

    def take(self, question: Question) -> Generation | None:
        """The answer to this question, if it was asked ahead and has begun to come; the caller's from now on."""
        asked = self._idle
        if asked is None or asked.generation is None or asked.question is None:
            return None
        generation = asked.generation
        if not (generation.text and generation.running and key_of(asked.question) == key_of(question)):
            return None
        asked.generation = None
        self._end_idle()
        return generation

    def _in_idle_time(self, asked: Asked, *how: Any) -> None:
        self._end_idle()
        self._idle = asked
        asked.task = self._start(self._look_ahead(asked, *how))

    def _end_idle(self) -> None:
        asked, self._idle, self._asked_last = self._idle, None, ("", "")
        if asked is not None and asked.task is not None:
            asked.task.cancel()

    async def _look_ahead(
        self,
        asked: Asked,
        snapshot: Snapshot,
        prompter: Prompter,
        engine: Engine,
        settings: Settings,
        path: str | None,
    ) -> None:
        await asyncio.sleep(FIRST_S)
        try:
            here = asked.offer is None
            question = self._answers.question(snapshot, prompter, settings, path=path, client=self._client, here=here)
            idle = replace(question, request=replace(question.request, idle=True))
            if self._answers.find(question) is not None:
                pass
            elif asked.offer is None:
                await engine.prefill(idle.request)
            else:
                generation = ask(engine, idle)
                asked.question, asked.generation = idle, generation
                await generation.finished()
                self._answers.keep(idle, generation)
        except (EngineUnavailable, FormatError):
            pass  # whoever asks for it will hear of it
        finally:
            if asked.generation is not None:
                asked.generation.end()
            if self._idle is asked:
                self._idle = None

    # ---- ends ----

    def edited(self, now: Snapshot) -> None:
        """Ends what the text has departed from."""
        item = self._unfinished.get(now.uri)
        if item is not None and not item.follows(now):
            self.end(now.uri)
        asked = self._idle
        offer = asked.offer if asked is not None else None
        if offer is not None and offer.snapshot.uri == now.uri and offer.stands(now) is None:
            self._end_idle()

    def end(self, uri: str) -> None:
        """Ends the answer that goes on for a document."""
        if (item := self._unfinished.pop(uri, None)) is not None:
            item.generation.end()
            item.grown.ring()

    def end_all(self) -> None:
        for uri in list(self._unfinished):
            self.end(uri)
        self._end_idle()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log_error(logger, error)


def may_idle(engine: Engine) -> bool:
    return engine.has_idle_time and engine.state.name == "ready"


def accepted(offer: Offer) -> Snapshot:
    """The document with the whole offer in it and the cursor behind."""
    before, text = offer.snapshot, offer.suggestion.text
    start, end = before.offset, before.offset + offer.suggestion.replace[1]
    return replace(before, text=before.text[:start] + text + before.text[end:], offset=start + len(text))
