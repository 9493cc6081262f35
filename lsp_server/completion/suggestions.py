"""What a window is answered: suggestions, alternatives, the rest of an earlier one, edits; and
why."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lsp_server.documents import Snapshot
from lsp_server.scheduler import Background, Scheduler
from lsp_server.session.session import Session
from lsp_server.session.usage import UsageFile
from lsp_server.settings import Settings

if TYPE_CHECKING:  # loaded after `initialize` is answered
    from fim import Kind, Suggestion, Target
    from lsp_server.completion.asking import Asking, Made
    from lsp_server.completion.completer import Completion, Place
    from lsp_server.completion.offers import Offers
    from lsp_server.completion.prompter import Prompter
    from lsp_server.engines.interface import Engine

logger = logging.getLogger(__name__)
SAVE_S = 2.0  # counts are written so long after they changed
LEAST_FILL_TOKENS = 128
# Alternatives are drawn, not searched for: at this temperature they differ and are still code.
ALTERNATIVE_TEMPERATURE, ALTERNATIVE_TOP_P = 0.8, 0.95
MOST_ALIKE = 2  # so many draws in vain, and there are no more alternatives
NOTHING = {
    "selection": "Select the text that is to be written anew.",
    "body": "There is no function here whose body could be completed.",
    "docstring": "There is no function or class here to document.",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A suggestion as it is sent. id names it when the client tells what became of it."""

    id: str
    suggestion: Suggestion
    model: str


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the last answer was what it was."""

    completion: Completion
    is_rest: bool = False  # it was the rest of this one


class FillError(Exception):
    """There is no edit to be had; the message is for the user."""


class Suggestions:
    """The work for a session's documents. A newer request for a document, and an edit of it, end
    the older work."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._scheduler: Scheduler = session.scheduler
        self._asking: Asking | None = None
        self._background = Background()
        self._focusing: asyncio.Task[None] | None = None
        self._reasons: dict[str, Reason] = {}  # by document, the latest behind
        self._usage, self._saving = UsageFile(), False

    @property
    def offers(self) -> Offers:
        return self.asking.offers

    @property
    def asking(self) -> Asking:
        if self._asking is None:
            from lsp_server.completion.asking import Asking

            self._asking = Asking(self._background)
        return self._asking

    def _place(self, snapshot: Snapshot, path: str | None, ready: tuple[Prompter, Engine]) -> Place:
        from lsp_server.completion.completer import Place

        return Place(snapshot, path, *ready, self._session.settings, self._session.client)

    # ---- suggestions ----

    async def suggest(
        self, snapshot: Snapshot, path: str | None, *, invoked: bool = False
    ) -> list[Answer]:
        """Suggestions worth showing; at once none while anything is missing for them.

        invoked: the user asked. Then there are alternatives, unsure ones too, and a model that
        loads is waited for.
        """
        self._scheduler.drop(snapshot.uri)  # older requests, whatever this one's answer is
        if not self._session.answers(snapshot.language, invoked=invoked):
            return []
        try:
            with self._session.working():
                found = await self._scheduler.latest(
                    snapshot.uri, self._answers(snapshot, path, invoked)
                )
        except asyncio.CancelledError:
            self.asking.unfinished.end(snapshot.uri)
            raise
        self.offers.answered([answer.id for answer in found or ()])
        self._save_soon()
        return found or []

    async def _answers(self, snapshot: Snapshot, path: str | None, invoked: bool) -> list[Answer]:
        ready = await self._session.ready(wait=invoked)
        if ready is None:
            return []
        self._session.tell_of_language(snapshot.language)
        place, asking, model = (
            self._place(snapshot, path, ready),
            self.asking,
            self._session.model_name,
        )
        prompter, settings = place.prompter, place.settings
        asking.made_by(prompter)
        found: list[Answer] = []
        known = await asking.unfinished.rest_at(
            snapshot, whole=invoked, patience_s=settings.patience
        )
        if known is not None:
            offer, rest = known
            if offer.completion is not None:
                self._keep_reason(snapshot.uri, Reason(offer.completion, is_rest=True))
            if not invoked:
                return [Answer(offer.id, rest, model)]
            found.append(Answer(offer.id, rest, model))
        wanted, patience = (settings.alternatives, MOST_ALIKE) if invoked else (1, 1)
        asked = replace(place, prompter=replace(prompter, min_confidence=0.0)) if invoked else place
        made: list[Made] = []
        number = len(found)  # what goes on was the model's first choice
        while len(found) + len(made) < wanted and patience:
            drawn = asked if number == 0 else replace(asked, settings=drawing(settings, number))
            one = await self._session.tried(asking.one(drawn, cut=not invoked))
            if one is None:
                break
            done = one.completion
            logger.info("%s", json.dumps(done.trace.to_json()))
            if prompter is not self._session.prompter:  # by settings of the past: once more
                one.end()
                return await self._answers(snapshot, path, invoked)
            if number == 0:
                self._keep_reason(snapshot.uri, Reason(done))
            texts = [answer.suggestion.text for answer in found] + [
                o.completion.suggestion.text for o in made
            ]
            if not done.suggestion.hidden and done.suggestion.text not in texts:
                made.append(one)
            else:
                patience -= 1
            number += 1
        added = [
            asking.offers.add(snapshot, one.completion.suggestion, one.completion)
            for one in reversed(made)
        ]
        found += [Answer(offer.id, offer.suggestion, model) for offer in reversed(added)]
        if found:
            asking.offers.choose(found[0].id)
        if made and (goes_on := made[0].rest) is not None:
            asking.unfinished.let_finish(
                *goes_on, added[-1], lambda done: self._keep_reason(snapshot.uri, Reason(done))
            )
        return found

    def focused(self, look: Callable[[], Snapshot | None], path: str | None) -> None:
        """The cursor stands where `look` sees it: in idle time the engine reads the prompt that a
        request would have.

        Where the model is still loading, that is afterwards.
        """
        if self._focusing is not None:
            self._focusing.cancel()
        self._focusing = self._background.start(self._prefill(look, path))

    async def _prefill(self, look: Callable[[], Snapshot | None], path: str | None) -> None:
        session = self._session
        if session.engine is not None and session.engine.state.name == "failed":
            return  # only somebody who asks for something has it started again

        def wanted() -> Snapshot | None:
            snapshot = look()
            return (
                snapshot
                if snapshot is not None and session.answers(snapshot.language, invoked=False)
                else None
            )

        await session.settled()
        if wanted() is None:
            return  # before `ready`, which starts an engine
        ready = await session.ready(wait=True)
        if ready is not None and (snapshot := wanted()) is not None:
            self.asking.prefill(self._place(snapshot, path, ready))

    # ---- edits ----

    async def fill(
        self, snapshot: Snapshot, end: int, kind: Kind, path: str | None
    ) -> tuple[Target, str]:
        """What is replaced of the snapshot's text, from the cursor to `end` or around it, and by
        which text.

        It waits for a model that loads. Raises FillError; an edit of the document ends it that way,
        too.
        """
        if not self._session.settings.enabled:
            raise FillError(self._session.status().message)
        with self._session.working():
            found = await self._scheduler.latest(
                fill_key(snapshot.uri), self._fill(snapshot, end, kind, path)
            )
        if found is None:
            raise FillError(
                "It was broken off: the text has changed, or another edit was asked for."
            )
        return found

    async def _fill(
        self, snapshot: Snapshot, end: int, kind: Kind, path: str | None
    ) -> tuple[Target, str]:
        from fim import target_at
        from lsp_server.completion.completer import complete

        target = await asyncio.to_thread(
            target_at, snapshot.text, snapshot.language, snapshot.offset, end, kind
        )
        if target is None:
            raise FillError(NOTHING[kind])
        ready = await self._session.ready(wait=True)
        if ready is None:
            raise FillError(self._session.status().message)
        prompter, text, start = ready[0], snapshot.text, target.start
        around = replace(
            snapshot,
            text=text[:start] + target.lead + target.tail + text[target.end :],
            offset=start + len(target.lead),
        )
        settings, most = self._session.settings, prompter.context_tokens // 2
        if kind == "selection" and prompter.count(text[start : target.end]) > most:
            raise FillError(
                "The selection is longer than the model can write at once; select less."
            )
        room = max(
            settings.max_tokens, LEAST_FILL_TOKENS, target.end - start
        )  # a token has a character at least
        place = replace(
            self._place(around, path, ready), settings=replace(settings, max_tokens=room)
        )
        self.asking.unfinished.end_all()  # it would be in the way
        done = await self._session.tried(complete(place, target=target))
        if done is None:
            raise FillError(self._session.problem or "The engine gave no answer; try again.")
        logger.info("%s", json.dumps(done.trace.to_json()))
        self._keep_reason(snapshot.uri, Reason(done))
        words = done.suggestion.text
        if done.broke_off:  # half a line is no use
            words = words.rpartition("\n")[0]
        if not words.strip():
            raise FillError("The model had nothing to write here.")
        return target, target.fit(words)

    # ---- what became of it, and why ----

    @property
    def watching(self) -> bool:
        """Whether `edited` wants to know."""
        return self._asking is not None

    def edited(self, snapshot: Snapshot) -> None:
        """A document has changed; the cursor of the snapshot is where."""
        self.offers.changed(snapshot)
        self.asking.edited(snapshot)
        self._save_soon()

    def drop(self, uri: str) -> None:
        """Ends the work for a text of the past."""
        self._scheduler.drop(uri)
        self._scheduler.drop(fill_key(uri))

    def forget(self, uri: str) -> None:
        """A document was closed."""
        self.drop(uri)
        self._reasons.pop(uri, None)
        if self._asking is not None:
            self._asking.forget(uri)

    def why(self, uri: str | None = None) -> str | None:
        """How the last answer came about, in a document or anywhere, as Markdown."""
        if uri is None:
            uri = next(reversed(self._reasons), None)
        if uri is None or uri not in self._reasons:
            return None
        from lsp_server.completion.explain import explain

        reason = self._reasons[uri]
        return explain(reason.completion, where=self._session.where, is_rest=reason.is_rest)

    def _keep_reason(self, uri: str, reason: Reason) -> None:
        self._reasons.pop(uri, None)
        self._reasons[uri] = reason

    def stop(self) -> None:
        """Ends what goes on in the background."""
        if self._focusing is not None:
            self._focusing.cancel()
        if self._asking is not None:
            self._asking.stop()

    def _save_soon(self) -> None:
        if not self._saving:
            self._saving = True
            asyncio.get_running_loop().call_later(SAVE_S, self.save)

    def save(self, *, closed: bool = False) -> None:
        """Keeps the session's counts. closed: it is over, and what goes on in the background
        ends."""
        self._saving = False
        if closed:
            self.stop()
        if self._asking is not None:
            client, model = self._session.client_name, self._session.model_name
            self._usage.write(self.offers.counts, client=client, model=model, closed=closed)


def drawing(settings: Settings, number: int) -> Settings:
    """Settings that draw another alternative for each number."""
    return replace(
        settings,
        temperature=max(settings.temperature, ALTERNATIVE_TEMPERATURE),
        top_p=min(settings.top_p, ALTERNATIVE_TOP_P),
        seed=settings.seed + number,
    )


def fill_key(uri: str) -> str:
    """Under which the scheduler knows the work at an edit of a document."""
    return f"fill {uri}"
