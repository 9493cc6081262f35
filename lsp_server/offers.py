"""What was suggested, and what became of it.

A suggestion lives on while its text comes to stand in the document, by keys or by parts that the user accepts: the rest
of it is the answer to the next request, without the engine. The same comparison tells what was accepted where a client
says nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field, replace
from itertools import count

from fim import Suggestion
from lsp_server.documents import Snapshot

KEPT = 8  # offers, of all documents: enough to go back over a word that was deleted; each holds its document's text


@dataclass(slots=True)
class Counts:
    """How often, in suggestions. Each is counted once in a column, however often it was answered again."""

    shown: int = 0
    accepted: int = 0  # the whole text, at once or by parts
    partly_accepted: int = 0  # a word or a line of it
    typed_through: int = 0  # the user typed the whole text

    def to_json(self) -> dict[str, int]:
        return {"shown": self.shown, "accepted": self.accepted,
                "partlyAccepted": self.partly_accepted, "typedThrough": self.typed_through}  # fmt: skip

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


@dataclass(slots=True)
class Offer:
    """A suggestion that was answered, and how much of it stands in the document by now."""

    id: str
    snapshot: Snapshot  # as it was when the suggestion was made
    suggestion: Suggestion
    taken: int = 0  # code points of the text that stand in the document
    seen: set[str] = field(default_factory=set)  # the columns of Counts that it is counted in

    def stands(self, now: Snapshot) -> int | None:
        """How much of the text stands at its place, everything else being as it was; None if it is not so."""
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
            if now.text[offset:end] != text[:length] or now.text[end:] != before.text[offset + gone :]:
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
        self.client_tells = False  # the client sends didShowCompletion: an answer alone is not yet shown
        self._offers: deque[Offer] = deque(maxlen=KEPT)
        self._ids = count(1)

    def add(self, snapshot: Snapshot, suggestion: Suggestion) -> Offer:
        offer = Offer(str(next(self._ids)), snapshot, suggestion)
        self._offers.append(offer)
        return offer

    def going_on(self, snapshot: Snapshot) -> tuple[Offer, Suggestion] | None:
        """The newest offer whose text goes on at the cursor, and the rest of it."""
        for offer in reversed(self._offers):
            taken = snapshot.offset - offer.snapshot.offset
            if 0 <= taken < len(offer.suggestion.text) and offer.stands(snapshot) == taken:
                rest = offer.rest(taken)
                if rest is not None:
                    return offer, rest
        return None

    def answered(self, ids: list[str]) -> None:
        """The first of them is on the screen, as far as a client that says nothing lets us know."""
        if ids and not self.client_tells and (offer := self._find(ids[0])) is not None:
            self._count(offer, "shown")

    def changed(self, now: Snapshot) -> None:
        """An edit: how far has the text of what was offered come? `now` may have its cursor anywhere."""
        for offer in reversed(self._offers):
            taken = offer.stands(now)
            if taken is None:
                continue
            step, offer.taken = taken - offer.taken, taken
            if step <= 0:
                return
            # Whoever types sends key by key. (A single key at the end of a text accepts or types: the same.)
            at_once = step > 1
            if taken == len(offer.suggestion.text):
                self._count(offer, "accepted" if at_once or "partly_accepted" in offer.seen else "typed_through")
            elif at_once:
                self._count(offer, "partly_accepted")
            return

    def shown(self, id: str) -> None:
        self.client_tells = True
        if (offer := self._find(id)) is not None:
            self._count(offer, "shown")

    def accepted(self, id: str) -> None:
        if (offer := self._find(id)) is not None:
            if "typed_through" in offer.seen:  # its last key was an accept
                offer.seen.discard("typed_through")
                self.counts.typed_through -= 1
            self._count(offer, "accepted")

    def partly_accepted(self, id: str) -> None:
        if (offer := self._find(id)) is not None:
            self._count(offer, "partly_accepted")

    def forget(self) -> None:
        """No offer goes on: others would be made by now."""
        self._offers.clear()

    def close(self, uri: str) -> None:
        self._offers = deque((offer for offer in self._offers if offer.snapshot.uri != uri), KEPT)

    def _find(self, id: str) -> Offer | None:
        return next((offer for offer in self._offers if offer.id == id), None)

    def _count(self, offer: Offer, column: str) -> None:
        if column != "shown":
            self._count(offer, "shown")  # who took it has seen it
        if column not in offer.seen:
            offer.seen.add(column)
            setattr(self.counts, column, getattr(self.counts, column) + 1)
