"""Answers that were shown in part: for each document, the rest of one is written in the
background."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fim import Suggestion
from lsp_server.completion.answer_cache import Memory
from lsp_server.completion.completer import Completion, Question, finish
from lsp_server.completion.offers import Offer, Offers
from lsp_server.completion.stream import Bell, Generation
from lsp_server.documents import Snapshot
from lsp_server.engines.interface import EngineUnavailable
from lsp_server.scheduler import Background

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Growing:
    """An answer of which some lines were shown, and which goes on."""

    question: Question
    generation: Generation
    offer: Offer
    grown: Bell = field(default_factory=Bell)

    def follows(self, now: Snapshot, *, to_cursor: bool = False) -> bool:
        """Whether all that happened to the text is that some of the answer was typed, as far as it
        has come."""
        before = self.question.place.snapshot
        start, grown = before.offset, len(now.text) - len(before.text)
        if (
            grown < 0
            or now.window_start != before.window_start
            or (to_cursor and now.offset != start + grown)
        ):
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


class Unfinished:
    """A window's."""

    def __init__(self, memory: Memory, offers: Offers, background: Background) -> None:
        self._memory, self._offers, self._background = memory, offers, background
        self._growing: dict[str, Growing] = {}

    def let_finish(
        self,
        question: Question,
        generation: Generation,
        offer: Offer,
        grown: Callable[[Completion], None],
    ) -> None:
        """Takes the generation over. The offer becomes longer, line by line; `grown` hears of
        it."""
        uri = question.place.snapshot.uri
        self.end(uri)
        item = self._growing[uri] = Growing(question, generation, offer)
        # The generation ends also where the task never begins.
        self._background.start(self._grow(item, grown)).add_done_callback(
            lambda _: generation.end()
        )

    async def _grow(self, item: Growing, grown: Callable[[Completion], None]) -> None:
        uri, lines = item.question.place.snapshot.uri, item.generation.lines
        try:
            while self._growing.get(uri) is item:
                await item.generation.more()
                running = item.generation.running
                if not running and not item.generation.whole:
                    return
                if running and item.generation.lines == lines:
                    continue
                lines = item.generation.lines
                done = await finish(item.question, item.generation, "cut" if running else "whole")
                if (
                    self._growing.get(uri) is not item
                ):  # such as a document's that was closed meanwhile
                    return
                # The filters may have come to know better: then what is shown stays as it is.
                if done.suggestion.text.startswith(item.offer.suggestion.text):
                    item.offer.suggestion, item.offer.completion = done.suggestion, done
                    grown(done)
                item.grown.ring()
                if not running:
                    self._memory.keep(item.question, item.generation)
                    return
        except EngineUnavailable as error:
            logger.info("the rest of an answer is lost: %s", error.message)
        finally:
            if self._growing.get(uri) is item:
                del self._growing[uri]
            item.grown.ring()

    async def rest_at(
        self, snapshot: Snapshot, *, whole: bool, patience_s: float
    ) -> tuple[Offer, Suggestion] | None:
        """As Offers.rest_at; waits for it while an answer that leads to the cursor is still being
        written.

        whole: for all of that answer. Whatever else is being written for the document ends.
        """
        deadline = time.monotonic() + patience_s
        while True:
            item = self._growing.get(snapshot.uri)
            if item is None or not item.follows(snapshot, to_cursor=True):
                break
            found = None if whole else self._offers.rest_at(snapshot)
            if found is not None and found[0] is item.offer:
                return found
            left = deadline - time.monotonic()
            if left <= 0 or found is not None:
                break
            await item.grown.wait(left)
        self.end(snapshot.uri)
        return self._offers.rest_at(snapshot)

    def leads_to(self, snapshot: Snapshot) -> bool:
        """Whether an answer is being written that goes on at the cursor."""
        item = self._growing.get(snapshot.uri)
        return item is not None and item.follows(snapshot, to_cursor=True)

    def edited(self, now: Snapshot) -> None:
        """Ends the answer that the text has departed from."""
        item = self._growing.get(now.uri)
        if item is not None and not item.follows(now):
            self.end(now.uri)

    def end(self, uri: str) -> None:
        """Ends the answer that goes on for a document."""
        if (item := self._growing.pop(uri, None)) is not None:
            item.generation.end()
            item.grown.ring()

    def end_all(self) -> None:
        for uri in list(self._growing):
            self.end(uri)
