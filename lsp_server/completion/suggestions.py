"""Answers from an offer, from the cache or from the engine; slow answers are returned in part.

Read `suggest` first. Loaded only after `initialize` is answered.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from fim import FormatError, Suggestion
from lsp_server.completion.answer_cache import AnswerCache
from lsp_server.completion.explain import explain
from lsp_server.completion.offers import Offer, Offers
from lsp_server.completion.prefill import Prefill
from lsp_server.completion.query import (
    Completion,
    Query,
    State,
    load_attribution,
    make_completion,
    wait_for_lines,
    without_asking,
)
from lsp_server.completion.stream import AnswerStream
from lsp_server.context.project import NOTHING, ProjectContext
from lsp_server.context.secret_files import SecretFiles
from lsp_server.documents import Snapshot
from lsp_server.engines.interface import Engine
from lsp_server.engines.trouble import too_slow
from lsp_server.scheduler import Background
from lsp_server.session.prompt_sizes import UNLIMITED, PromptSizes
from lsp_server.session.prompter import Prompter
from lsp_server.session.session import Session
from lsp_server.session.usage import UsageFile
from model.machine import give_back_memory

logger = logging.getLogger(__name__)
TIDY_S = 2.0  # from a suggestion to saving the counts; from the last, to giving memory back
MAX_MISSES = 2  # alternatives without a new text, then no more are drawn

Found = tuple[Offer, Suggestion]
"""An offer, and the part of it that is still to come at the cursor."""


class Suggestions:
    """Answers the requests of one session. An edit or a newer request cancels the older request."""

    def __init__(self, session: Session, project: ProjectContext | None = None) -> None:
        self.offers = Offers()
        self._project = project
        if project is not None:
            project.on_change = self._project_changed
        self._visited: dict[str, tuple[Snapshot, str | None]] = {}  # by document
        self.prefill = Prefill(session, self._unanswered)
        self.secret_files = SecretFiles()
        self._session = session
        self._cache = AnswerCache()
        self._sizes = PromptSizes()
        self._background = Background()
        self._growing: dict[str, Offer] = {}  # by document, while its rest is written
        self._prompter: Prompter | None = None  # of the offers and answers that are kept
        self._reasons: dict[str, tuple[Completion, bool]] = {}  # by document, the latest last
        self._usage = UsageFile()
        self._tidying = False
        self._changed_at = 0.0  # by time.monotonic()

    async def suggest(
        self, snapshot: Snapshot, path: str | None, *, invoked: bool = False
    ) -> list[Found]:
        """The suggestions to show at the cursor. None, at once, if the model is not ready.

        invoked: the user asked. Then there are alternatives, also unsure ones, and a model that is
        loading is waited for.
        """
        session = self._session
        uri = snapshot.uri
        session.requests.close(uri)  # even if this request is not answered
        shown_before = session.messages_shown
        found: list[Found] | None = []
        if session.answers(snapshot.language, invoked=invoked):
            work = self._find(snapshot, path, invoked)
            try:
                with session.working():
                    found = await session.requests.latest(uri, work)
            except asyncio.CancelledError:
                self._close_rest(uri)
                raise
        if found is None:  # a newer request has taken its place
            return []
        if invoked and not found and session.messages_shown == shown_before:
            session.say_why_nothing(snapshot.language)
        self.offers.answered([offer.id for offer, _ in found])
        self._tidy_soon()
        return found

    async def _find(self, snapshot: Snapshot, path: str | None, invoked: bool) -> list[Found]:
        session = self._session
        ready = await session.ready(wait=invoked)
        if ready is None:
            return []
        prompter, engine = ready
        session.tell_of_language(snapshot.language)
        snapshot = await self.secret_files.checked(snapshot)
        self._use(prompter)
        if snapshot.secret:
            self.offers.close(snapshot.uri)  # of before it was
        found = await self._rest_at(snapshot, whole=invoked)
        if found and not invoked:
            return found

        wanted = 1
        misses_left = 1
        if invoked:
            wanted = session.settings.alternatives
            misses_left = MAX_MISSES
        number = len(found)  # the rest of an offer was the model's first choice
        made: list[Completion] = []
        unfinished: AnswerStream | None = None  # of the last one
        with session.reported():
            query = self._query(snapshot, path, prompter, unsure=invoked)
            while len(found) + len(made) < wanted and misses_left:
                alternative = query.alternative(number)
                completion, unfinished = await self._ask(alternative, engine, whole=invoked)
                logger.info("%s", json.dumps(completion.trace.to_json()))
                if prompter is not session.prompter:
                    break
                if number == 0:
                    self.keep_reason(completion)
                if is_new(completion, found, made):
                    made.append(completion)
                else:
                    misses_left -= 1
                number += 1
        if prompter is not session.prompter:  # the settings have changed meanwhile
            if unfinished is not None:
                unfinished.close()
            return await self._find(snapshot, path, invoked)

        added: list[Found] = []
        for completion in reversed(made):  # the best becomes the newest offer
            offer = self.offers.add(snapshot, completion.suggestion, completion)
            added.insert(0, (offer, offer.suggestion))
        found += added
        if found:
            self.offers.choose(found[0][0].id)
        if unfinished is not None:
            self._let_grow(found[0][0], query, unfinished)
        self._visit(snapshot, path, prompter)
        return found

    async def _rest_at(self, snapshot: Snapshot, *, whole: bool) -> list[Found]:
        """The offer that continues at the cursor, if there is one. Waits for it while an answer
        that continues there is being written; any other answer is closed.

        whole: waits for all of that answer.
        """
        deadline = time.monotonic() + self._session.settings.patience
        found: Found | None = None
        while (growing := self._growing_at(snapshot)) is not None:
            found = None if whole else self.offers.rest_at(snapshot)
            left_s = deadline - time.monotonic()
            if found is not None or left_s <= 0:
                break
            await growing.changed.wait(left_s)
        if growing is None or found is None or found[0].stream is not growing:
            self._close_rest(snapshot.uri)
            found = self.offers.rest_at(snapshot)
        if found is None:
            return []
        if (completion := found[0].completion) is not None:
            self.keep_reason(completion, is_rest=True)
        return [found]

    async def _ask(
        self, query: Query, engine: Engine, *, whole: bool
    ) -> tuple[Completion, AnswerStream | None]:
        """A completion from the cache or the engine, and its stream if it is not whole.

        whole: waits for the whole answer, beyond the time budget. Raises EngineUnavailable.
        """
        if query.withheld is not None:
            return without_asking(query, query.withheld), None
        known = self._cache.find(query)
        if known is not None:
            return await make_completion(query, known, from_memory=True), None
        self.close_rests()  # they would delay this request
        load_attribution(query)
        stream = AnswerStream(engine, query.request, query.shaper)
        state: State = "whole"
        goes_on = False
        try:
            if whole:
                await stream.finished()
            else:
                state = await wait_for_lines(query, stream)
            if state == "late" and not engine.has_idle_time:  # nobody here can say why
                raise too_slow(engine.address, query.settings.patience, "patience")
            self._session.engine_answers()
            completion = await make_completion(query, stream, state)
            self._cache.keep(query, stream)
            if stream.prompt_tokens and stream.prompt_tokens < len(query.request.prompt):
                self.prefill.grow(query, engine)
            goes_on = state == "cut" and not completion.suggestion.hidden
            return completion, stream if goes_on else None
        finally:
            if not goes_on:
                stream.close()

    def _query(
        self, snapshot: Snapshot, path: str | None, prompter: Prompter, *, unsure: bool = False
    ) -> Query:
        """The query at the cursor. Raises FormatError.

        unsure: no suggestion is hidden because the model is unsure.
        """
        session = self._session
        if unsure:
            prompter = replace(prompter, min_confidence=0.0)
        sizes = self._sizes_of(prompter, best=unsure)
        around = NOTHING
        if self._project is not None and self._takes_snippets():
            around = self._project.surroundings(snapshot.uri)
        return self._cache.query(
            snapshot, path, prompter, session.settings, session.client, sizes, around
        )

    def _sizes_of(self, prompter: Prompter, *, best: bool) -> Sequence[int]:
        """The sizes of a prompt; best: the largest alone."""
        engine = self._session.engine
        if engine is None or not engine.has_idle_time or prompter.sentinels is None:
            return (UNLIMITED,)
        sizes = self._sizes.at(engine.prefill_per_s, prompter.time_budget, prompter.context_tokens)
        return sizes[:1] if best else sizes

    async def _unanswered(self, snapshot: Snapshot, path: str | None) -> Query | None:
        """The query at the cursor, unless its answer is known or being written, or nothing is to be
        asked there."""
        snapshot = await self.secret_files.checked(snapshot)
        prompter = self._session.prompter
        if prompter is None:
            return None
        self._use(prompter)
        self._visit(snapshot, path, prompter)
        if self._growing_at(snapshot) is not None:
            return None
        try:
            query = self._query(snapshot, path, prompter)
        except FormatError:
            return None  # the next request reports it
        asked = query.withheld is None and self._cache.find(query) is None
        return query if asked else None

    # ---- snippets of other files ----

    def _takes_snippets(self) -> bool:
        settings = self._session.settings
        here = not settings.remote.url
        return settings.project_context == "on" or (settings.project_context == "auto" and here)

    def _visit(self, snapshot: Snapshot, path: str | None, prompter: Prompter) -> None:
        """Has snippets chosen for this place, beside the request."""
        if self._project is None or snapshot.secret or not self._takes_snippets():
            return
        budget = prompter.snippet_tokens(self._sizes_of(prompter, best=True)[0])
        self._visited[snapshot.uri] = (snapshot, path)
        self._project.visit(snapshot, budget, prompter.count)

    def _project_changed(self, uri: str) -> None:
        """Has the prompt with the new snippets read, unless the text has changed meanwhile."""
        snapshot, path = self._visited.get(uri, (None, None))
        if snapshot is not None and not self._session.requests.busy:
            self.prefill.start(lambda: snapshot, path)

    def _use(self, prompter: Prompter) -> None:
        """Forgets the offers and answers of another prompter."""
        if self._prompter is not prompter:
            self._prompter = prompter
            self.offers.close()
            self._cache.close()
            self.close_rests()

    # ---- the rest of an answer that was cut ----

    def _let_grow(self, offer: Offer, query: Query, stream: AnswerStream) -> None:
        uri = query.snapshot.uri
        self._close_rest(uri)
        offer.stream = stream
        self._growing[uri] = offer
        task = self._background.start(self._grow(offer, query, stream))
        task.add_done_callback(lambda _: stream.close())

    async def _grow(self, offer: Offer, query: Query, stream: AnswerStream) -> None:
        """Makes an offer longer, line by line, until its answer is whole or is closed."""
        lines = stream.lines
        try:
            with self._session.reported():
                while offer.stream is stream:
                    await stream.more()
                    running = stream.running
                    if running and stream.lines == lines:
                        continue
                    if not running and not stream.whole:
                        return
                    lines = stream.lines
                    completion = await make_completion(query, stream, "cut" if running else "whole")
                    if offer.stream is not stream:  # closed meanwhile
                        return
                    if offer.grow(completion):
                        self.keep_reason(completion)
                    stream.changed.ring()
                    if not running:
                        self._cache.keep(query, stream)
                        return
        finally:
            if offer.stream is stream:
                self._close_rest(query.snapshot.uri)
            stream.changed.ring()

    def _growing_at(self, snapshot: Snapshot) -> AnswerStream | None:
        """The answer that is being written and goes on at the cursor."""
        offer = self._growing.get(snapshot.uri)
        if offer is not None and offer.continues_at(snapshot):
            return offer.stream
        return None

    def _close_rest(self, uri: str) -> None:
        """Ends the answer that is being written for a document."""
        offer = self._growing.pop(uri, None)
        if offer is not None:
            offer.close()

    def close_rests(self) -> None:
        for uri in list(self._growing):
            self._close_rest(uri)

    # ---- what happens to documents ----

    def edited(self, snapshot: Snapshot) -> None:
        """A document was edited at the snapshot's cursor."""
        uri = snapshot.uri
        self.offers.edited(snapshot)
        self.prefill.close(uri)
        self._visited.pop(uri, None)
        if self._project is not None:
            self._project.edited(snapshot)
        growing = self._growing.get(uri)
        if growing is not None and growing.typed_length_of_answer(snapshot) is None:
            self._close_rest(uri)
        self._tidy_soon()

    def close(self, uri: str | None = None) -> None:
        """Forgets a document, or all, and ends the work in the background for it."""
        self.prefill.close(uri)
        self.offers.close(uri)
        self._cache.close(uri)
        if self._project is not None:
            self._project.close(uri)
        if uri is None:
            self._visited.clear()
            self.secret_files.close()
            self.close_rests()
            self._reasons.clear()
        else:
            self._visited.pop(uri, None)
            self._close_rest(uri)
            self._reasons.pop(uri, None)
            self._tidy_soon()

    def why(self, uri: str | None = None) -> str | None:
        """How the last answer in a document, or anywhere, came about: Markdown."""
        if uri is None:
            uri = next(reversed(self._reasons), "")
        if uri not in self._reasons:
            return None
        completion, is_rest = self._reasons[uri]
        return explain(completion, where=self._session.where, is_rest=is_rest)

    def keep_reason(self, completion: Completion, *, is_rest: bool = False) -> None:
        uri = completion.query.snapshot.uri
        self._reasons.pop(uri, None)
        self._reasons[uri] = (completion, is_rest)

    # ---- counts ----

    def _tidy_soon(self) -> None:
        self._changed_at = time.monotonic()
        if not self._tidying:
            self._tidying = True
            asyncio.get_running_loop().call_later(TIDY_S, self._tidy)

    def _tidy(self) -> None:
        """Saves the counts, and when nobody types gives free memory back: each key leaves holes,
        as large as its document."""
        self.save()
        self._tidying = time.monotonic() - self._changed_at < TIDY_S
        if self._tidying:
            asyncio.get_running_loop().call_later(TIDY_S, self._tidy)
        else:
            give_back_memory()

    def save(self, *, closed: bool = False) -> None:
        """Saves the session's counts. closed: the session is over."""
        session = self._session
        self._usage.write(
            self.offers.counts, client=session.client_name, model=session.model_name, closed=closed
        )


def is_new(completion: Completion, found: list[Found], made: list[Completion]) -> bool:
    """Whether there is a suggestion that none of the others makes."""
    texts = {suggestion.text for _, suggestion in found}
    texts |= {other.suggestion.text for other in made}
    return not completion.suggestion.hidden and completion.suggestion.text not in texts
