"""The suggestions that were sent, and how much of each has been typed since.

While the text of an offer is typed or accepted in parts, its rest answers the next request without
the engine. If a client does not tell what was accepted, the same comparison does.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from itertools import count

from fim import Suggestion
from lsp_server.completion.query import Completion
from lsp_server.completion.stream import AnswerStream
from lsp_server.documents import Snapshot
from lsp_server.session.usage import Counts

# Of all documents: enough to go back over a deleted word, and for as many alternatives as the
# settings allow. Each offer holds the text of its document, which alternatives share.
KEPT = 16


def typed_length(
    text: str, before: Snapshot, now: Snapshot, *, replaced: int = 0, unfinished: bool = False
) -> int | None:
    """How many characters of `text` have been typed since `before`; None if anything else changed.

    replaced: characters right of the cursor that the whole text replaces. unfinished: more of the
    text is to come, so the user may have typed beyond it.
    """
    if now.uri != before.uri or now.window_start != before.window_start:
        return None
    start = before.offset
    grown = len(now.text) - len(before.text)

    def agrees(length: int, gone: int) -> bool:
        end = start + length
        return (
            now.text[start:end].startswith(text[:length])
            and now.text[end:] == before.text[start + gone :]
            and now.text[:start] == before.text[:start]
        )

    if grown >= 0 and (unfinished or grown <= len(text)) and agrees(grown, 0):
        return grown
    if replaced and grown + replaced == len(text) and agrees(len(text), replaced):
        return len(text)
    return None


@dataclass(slots=True)
class Offer:
    """A suggestion that was sent. It grows while the rest of its answer is written."""

    id: str  # the client names it when it tells of the suggestion
    snapshot: Snapshot  # the document when the suggestion was made
    suggestion: Suggestion
    completion: Completion | None = None  # how it came about
    stream: AnswerStream | None = None  # of the rest, while it is written
    typed: int = 0  # characters of the text that are in the document
    length: int = 0  # of the text when it was last sent
    seen: set[str] = field(default_factory=set)  # the columns of Counts

    def typed_length(self, now: Snapshot) -> int | None:
        """How much of the suggestion has been typed; None if anything else changed."""
        _, replaced = self.suggestion.replace
        return typed_length(self.suggestion.text, self.snapshot, now, replaced=replaced)

    def typed_length_of_answer(self, now: Snapshot) -> int | None:
        """As `typed_length`, of the unfinished answer, whose last line is not in the suggestion."""
        if self.stream is None:
            return None
        shaper = self.stream.shaper
        written = shaper.written(shaper.lead + self.stream.text)
        return typed_length(written, self.snapshot, now, unfinished=True)

    def continues_at(self, now: Snapshot) -> bool:
        """Whether the rest that is being written goes on at the cursor."""
        return self.typed_length_of_answer(now) == now.offset - self.snapshot.offset

    def grow(self, completion: Completion) -> bool:
        """Takes a longer suggestion; False if it does not begin with the one that is shown."""
        # With more of the answer the filters may decide differently: the shown text stays.
        if not completion.suggestion.text.startswith(self.suggestion.text):
            return False
        self.suggestion = completion.suggestion
        self.completion = completion
        return True

    def close(self) -> None:
        """Ends the writing of its rest."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None


class Offers:
    """The last offers of one window, and its counts."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.client_tells = False  # it sends didShowCompletion
        self._offers: deque[Offer] = deque(maxlen=KEPT)
        self._chosen = ""  # the id of the offer that the user has turned to
        self._ids = count(1)

    def add(
        self, snapshot: Snapshot, suggestion: Suggestion, completion: Completion | None = None
    ) -> Offer:
        """Makes the newest offer; add the best of several alternatives last.

        The same text at the same place keeps its offer and id.
        """
        for offer in self._offers:
            if offer.suggestion.text == suggestion.text and offer.snapshot == snapshot:
                self._offers.remove(offer)
                break
        else:
            offer = Offer(str(next(self._ids)), snapshot, suggestion, completion)
        self._offers.append(offer)
        return offer

    def rest_at(self, snapshot: Snapshot) -> tuple[Offer, Suggestion] | None:
        """The first offer that goes on at the cursor, and its rest, which is not blank."""
        for offer in self._by_likelihood():
            typed = snapshot.offset - offer.snapshot.offset
            rest = offer.suggestion.text[typed:]
            if typed >= 0 and rest.strip() and offer.typed_length(snapshot) == typed:
                return offer, replace(offer.suggestion, text=rest)
        return None

    def answered(self, ids: list[str]) -> None:
        """These were sent. A client that does not tell is taken to show the first of them."""
        for offer in self._offers:
            if offer.id in ids:
                offer.length = len(offer.suggestion.text)
        if ids and not self.client_tells:
            self._count(ids[0], "shown")

    def edited(self, now: Snapshot) -> None:
        """Counts how far the text of an offer has come with an edit. The cursor does not matter."""
        for offer in self._by_likelihood():
            typed = offer.typed_length(now)
            if typed is None:
                continue
            step = typed - offer.typed
            offer.typed = typed
            if step > 0:
                self._count_step(offer, step)
            return

    def _count_step(self, offer: Offer, step: int) -> None:
        # Typing comes key by key: of a client that does not tell, a longer step is an accept.
        at_once = step > 1 and not self.client_tells
        if offer.typed >= (offer.length or len(offer.suggestion.text)):
            accepted = at_once or "partly_accepted" in offer.seen
            self._count(offer.id, "accepted" if accepted else "typed_through")
        elif at_once:
            self._count(offer.id, "partly_accepted")

    def choose(self, id: str) -> None:
        """The user has turned to this alternative: it goes on before the others."""
        if self._find(id) is not None:
            self._chosen = id

    def shown(self, id: str) -> None:
        self.client_tells = True
        self.choose(id)
        self._count(id, "shown")

    def partly_accepted(self, id: str) -> None:
        self.choose(id)
        self._count(id, "partly_accepted")

    def accepted(self, id: str) -> None:
        offer = self._find(id)
        if offer is not None and "typed_through" in offer.seen:  # its last key was an accept
            offer.seen.discard("typed_through")
            self.counts.typed_through -= 1
        self._count(id, "accepted")

    def close(self, uri: str | None = None) -> None:
        """Forgets the offers of a document, or all."""
        for offer in list(self._offers):
            if uri in (None, offer.snapshot.uri):
                self._offers.remove(offer)

    def _by_likelihood(self) -> list[Offer]:
        """The offer that the user has chosen, then the newest first."""
        newest_first = list(reversed(self._offers))
        return sorted(newest_first, key=lambda offer: offer.id != self._chosen)

    def _find(self, id: str) -> Offer | None:
        return next((offer for offer in self._offers if offer.id == id), None)

    def _count(self, id: str, column: str) -> None:
        offer = self._find(id)
        if offer is None:
            return
        # Whoever accepted it has seen it.
        for each in ("shown", column):
            if each not in offer.seen:
                offer.seen.add(each)
                setattr(self.counts, each, getattr(self.counts, each) + 1)
