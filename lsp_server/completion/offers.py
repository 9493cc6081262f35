"""What was suggested, and what became of it.

A suggestion lives on while its text comes to stand in the document, by keys or by parts that the
user accepts: the rest of it is the answer to the next request, without the engine. The same
comparison tells what was accepted where a client says nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from itertools import count

from fim import Suggestion
from lsp_server.completion.completer import Completion
from lsp_server.documents import Snapshot
from lsp_server.session.usage import Counts

# Of all documents: enough to go back over a word that was deleted, and for as many alternatives as
# the settings allow. Each holds its document's text, which alternatives share.
KEPT = 16


@dataclass(slots=True)
class Offer:
    """A suggestion that was answered, and how much of it stands in the document by now."""

    id: str
    snapshot: Snapshot  # as it was when the suggestion was made
    suggestion: Suggestion
    completion: Completion | None = None  # how it came about
    taken: int = 0  # code points of the text that stand in the document
    length: int = 0  # of the text as it was last answered: it may have grown since
    seen: set[str] = field(default_factory=set)  # the columns of Counts that it is counted in

    def stands(self, now: Snapshot) -> int | None:
        """How much of the text stands at its place, everything else being as it was; None if it is
        not so."""
        before, text = self.snapshot, self.suggestion.text
        if now.window_start != before.window_start or now.uri != before.uri:
            return None
        offset, replaced = before.offset, self.suggestion.replace[1]
        grown = len(now.text) - len(before.text)
        for length, gone in ((grown, 0), (grown + replaced, replaced)):
            whole = length == len(text)
            if (gone and not whole) or not 0 <= length <= len(text):
                continue
            end = offset + length
            if (
                now.text[offset:end] != text[:length]
                or now.text[end:] != before.text[offset + gone :]
            ):
                continue
            if now.text[:offset] == before.text[:offset]:
                return length
        return None

    def rest(self, taken: int) -> Suggestion | None:
        """What is still to come; None where nothing is."""
        text = self.suggestion.text[taken:]
        return replace(self.suggestion, text=text) if text.strip() else None


class Offers:
    """The last offers, and the counts of a session."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.client_tells = (
            False  # the client sends didShowCompletion: an answer alone is not yet shown
        )
        self._offers: deque[Offer] = deque(maxlen=KEPT)
        self._chosen = ""  # the id of the alternative that the user has turned to
        self._ids = count(1)

    def add(
        self, snapshot: Snapshot, suggestion: Suggestion, completion: Completion | None = None
    ) -> Offer:
        """The newest offer; of alternatives add the best last. What was offered at this very place
        keeps its id."""
        known = [
            o
            for o in self._offers
            if o.suggestion.text == suggestion.text and o.snapshot == snapshot
        ]
        offer = known[0] if known else Offer(str(next(self._ids)), snapshot, suggestion, completion)
        for old in known:
            self._offers.remove(old)
        self._offers.append(offer)
        return offer

    def rest_at(self, snapshot: Snapshot) -> tuple[Offer, Suggestion] | None:
        """The newest offer whose text goes on at the cursor, and the rest of it."""
        for offer in self._likely():
            taken = snapshot.offset - offer.snapshot.offset
            if 0 <= taken < len(offer.suggestion.text) and offer.stands(snapshot) == taken:
                rest = offer.rest(taken)
                if rest is not None:
                    return offer, rest
        return None

    def answered(self, ids: list[str]) -> None:
        """The first of them is on the screen, as far as a client that says nothing lets us know."""
        for answered in self._offers:
            if answered.id in ids:
                answered.length = len(answered.suggestion.text)
        if ids and not self.client_tells and (offer := self._find(ids[0])) is not None:
            self._count(offer, "shown")

    def changed(self, now: Snapshot) -> None:
        """An edit: how far has the text of what was offered come? `now` may have its cursor
        anywhere."""
        for offer in self._likely():
            taken = offer.stands(now)
            if taken is None:
                continue
            step, offer.taken = taken - offer.taken, taken
            if step <= 0:
                return
            # Whoever types sends key by key, as far as a client that says nothing lets us know.
            at_once = step > 1 and not self.client_tells
            if taken >= (offer.length or len(offer.suggestion.text)):
                by_parts = at_once or "partly_accepted" in offer.seen
                self._count(offer, "accepted" if by_parts else "typed_through")
            elif at_once:
                self._count(offer, "partly_accepted")
            return

    def choose(self, id: str) -> None:
        """Of several that go on at the cursor, this one is meant."""
        self._chosen = id

    def shown(self, id: str) -> None:
        self.client_tells = True
        if (offer := self._find(id)) is not None:
            self.choose(id)
            self._count(offer, "shown")

    def accepted(self, id: str) -> None:
        if (offer := self._find(id)) is not None:
            if "typed_through" in offer.seen:  # its last key was an accept
                offer.seen.discard("typed_through")
                self.counts.typed_through -= 1
            self._count(offer, "accepted")

    def partly_accepted(self, id: str) -> None:
        if (offer := self._find(id)) is not None:
            self.choose(id)
            self._count(offer, "partly_accepted")

    def forget(self) -> None:
        """No offer goes on: others would be made by now."""
        self._offers.clear()

    def close(self, uri: str) -> None:
        self._offers = deque((offer for offer in self._offers if offer.snapshot.uri != uri), KEPT)

    def _likely(self) -> list[Offer]:
        """The offers, the one that the user has chosen in front, then the newest."""
        newest_first = list(reversed(self._offers))
        return sorted(newest_first, key=lambda offer: offer.id != self._chosen)

    def _find(self, id: str) -> Offer | None:
        return next((offer for offer in self._offers if offer.id == id), None)

    def _count(self, offer: Offer, column: str) -> None:
        if column != "shown":
            self._count(offer, "shown")  # who took it has seen it
        if column not in offer.seen:
            offer.seen.add(column)
            setattr(self.counts, column, getattr(self.counts, column) + 1)
