"""Finds where the end of a text stood before; copying and drafting use what followed there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import TypeVar

LONGEST_MATCH = 32  # tokens; a longer match counts as this long
PLACES = 256  # of a token with more places, only the newest are searched
# Stand before and after a text; no token is equal to them.
TEXT_START = -1
TEXT_END = -2

Ids = TypeVar("Ids", list[int], bytes)


class TokenIndex:
    """A text's tokens, and for each token the places where a token follows that may be repeated."""

    def __init__(self, ids: Sequence[int], never: Collection[int] = ()) -> None:
        """never: ids that are not repeated, such as sentinels."""
        self.never = frozenset((TEXT_START, TEXT_END, *never))
        self.ids: list[int] = []
        self.places: defaultdict[int, list[int]] = defaultdict(list)
        self.extend(ids)

    def extend(self, ids: Sequence[int]) -> None:
        last = self.ids[-1] if self.ids else TEXT_START
        for place, token in enumerate(ids, len(self.ids) - 1):
            if token not in self.never:
                self.places[last].append(place)
            last = token
        self.ids.extend(ids)

    def trim(self, length: int) -> None:
        """Forgets every token from `length` on."""
        while len(self.ids) > length:
            token = self.ids.pop()
            if self.ids and token not in self.never:
                self.places[self.ids[-1]].pop()

    def change_to(self, ids: list[int]) -> None:
        """Replaces the text. Two prompts in a row have most tokens in common, which stay."""
        kept = common_prefix(self.ids, ids)
        self.trim(kept)
        self.extend(ids[kept:])


class TextMatches:
    """A growing text, and the longest matches of its end in itself and in other texts."""

    def __init__(self, own: TokenIndex, other: TokenIndex | None = None) -> None:
        """own: the text, after TEXT_START. other: texts that drafts may come from, but no votes."""
        self.own = own
        self._in_own = _LongestMatches(own)
        self._in_other = _LongestMatches(other or TokenIndex(()))
        self._update()

    def push(self, token: int) -> None:
        """The text goes on with this token."""
        self.own.extend([token])
        self._update()

    def votes(self) -> tuple[int, dict[int, int]]:
        """The length of the longest match, and the votes of the tokens that followed it: two for
        each place, and one more for the newest."""
        ids = self.own.ids
        places = self._in_own.places
        votes: dict[int, int] = {}
        for place in places:
            token = ids[place + 1]
            votes[token] = votes.get(token, 0) + 2
        if places:
            votes[ids[places[-1] + 1]] += 1
        return self._in_own.length, votes

    def draft(self, limit: int) -> tuple[int, list[int]]:
        """The length of the longest match in any of the texts, and at most `limit` tokens that
        followed its newest place. If too few tokens follow it, the draft repeats those.
        """
        matches = self._in_own
        if self._in_other.length >= matches.length:
            matches = self._in_other
        if not matches.length:
            return 0, []
        place = matches.places[-1] + 1
        draft = matches.index.ids[place : place + limit]
        for i, token in enumerate(draft):
            if token in self.own.never:
                return matches.length, draft[:i]
        repeats = -(-limit // len(draft))
        return matches.length, (draft * repeats)[:limit]

    def _update(self) -> None:
        self._in_own.update(self.own.ids)
        self._in_other.update(self.own.ids)


class _LongestMatches:
    """The longest matches of a text's end in an index: their length, and where each ends."""

    def __init__(self, index: TokenIndex) -> None:
        self.index = index
        self.length = 0
        self.places: list[int] = []
        self._complete = True  # no place was left out

    def update(self, text: list[int]) -> None:
        """The text has one more token."""
        places = self.index.places.get(text[-1])
        if not places:
            self.length = 0
            self.places = []
            self._complete = True
            return
        ids = self.index.ids
        was_complete = self._complete
        self._complete = len(places) <= PLACES
        longer: list[int] = []
        if self.length == LONGEST_MATCH:
            tail = text[-LONGEST_MATCH:]
            back = LONGEST_MATCH - 1
            for place in places[-PLACES:]:
                begin = place - back
                if ids[begin] == tail[0] and ids[begin : place + 1] == tail:
                    longer.append(place)
        elif was_complete and self._complete:
            # A longest match that goes on is the longest again, and no other can be as long.
            for place in self.places:
                if ids[place + 1] == text[-1] and ids[place + 2] not in self.index.never:
                    longer.append(place + 1)
        if longer:
            self.length = min(self.length + 1, LONGEST_MATCH)
            self.places = longer
        else:
            self._search(places[-PLACES:], text)

    def _search(self, places: list[int], text: list[int]) -> None:
        """Compares backwards from every place, until no match is longer."""
        ids = self.index.ids
        last = len(text) - 1
        length = 0
        while places and length < LONGEST_MATCH:
            length += 1
            self.length = length
            self.places = places
            wanted = text[last - length]
            places = [place for place in places if ids[place - length] == wanted]


def common_prefix(first: Ids, second: Ids) -> int:
    """How many leading items two sequences of the same type share."""
    same = 0
    differing = min(len(first), len(second))
    if first[:differing] == second[:differing]:
        return differing
    # The first `same` items are equal, the first `differing` are not.
    while same + 1 < differing:
        middle = (same + differing) // 2
        if first[same:middle] == second[same:middle]:
            same = middle
        else:
            differing = middle
    return same
