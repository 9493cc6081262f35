"""Where the end of a text stood before, and what followed: what copying votes with and drafts are
made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

LONGEST_MATCH = 32  # tokens; longer ones count no more
PLACES = 256  # the newest places looked at, of a token that is everywhere
START = -1  # stands before a text; like every id below 0 it is equal to no token


class Index:
    """Tokens, and of each the places where something follows that may be repeated."""

    def __init__(self, ids: Sequence[int], never: Collection[int] = ()) -> None:
        """never: ids that are not repeated: sentinels."""
        self.never = frozenset(never)
        self.ids: list[int] = []
        self.places: defaultdict[int, list[int]] = defaultdict(list)
        self.extend(ids)

    def extend(self, ids: Sequence[int]) -> None:
        all_ids, places, never = self.ids, self.places, self.never
        last = all_ids[-1] if all_ids else START
        for place, token in enumerate(ids, len(all_ids) - 1):
            if token >= 0 and token not in never:
                places[last].append(place)
            last = token
        all_ids.extend(ids)

    def trim(self, length: int) -> None:
        """Forgets every token from `length` on."""
        while len(self.ids) > length:
            token = self.ids.pop()
            if self.ids and token >= 0 and token not in self.never:
                self.places[self.ids[-1]].pop()

    def become(self, ids: Sequence[int]) -> None:
        """Changes to other ids: of two prompts that follow each other most tokens are the same."""
        kept = common_prefix(self.ids, ids)
        self.trim(kept)
        self.extend(ids[kept:])


class Matches:
    """A text that grows by a token at a time, and the longest matches of its end, in itself and in
    other texts."""

    def __init__(self, own: Index, other: Index | None = None) -> None:
        """own: the text, behind START. other: texts that may be drafted from but have no vote."""
        self.own, self.other = own, other
        self._own, self._other = _Match(), _Match()
        self._look()

    def push(self, token: int) -> None:
        """The text goes on with this token."""
        own = self.own
        if token not in own.never:
            own.places[own.ids[-1]].append(len(own.ids) - 1)
        own.ids.append(token)
        self._look()

    def votes(self) -> tuple[int, dict[int, int]]:
        """The length of the longest match, and what followed its places; the newest counts half as
        much again."""
        ids, found = self.own.ids, dict[int, int]()
        for place in self._own.places:
            token = ids[place + 1]
            found[token] = found.get(token, 0) + 2
        if found:
            found[ids[self._own.places[-1] + 1]] += 1
        return self._own.length, found

    def draft(self, limit: int) -> tuple[int, list[int]]:
        """The length of the longest match in any of the texts, and at most `limit` tokens of what
        followed there.

        A text that repeats itself up to its end is taken to go on repeating itself.
        """
        match, index = self._own, self.own
        if self.other is not None and self._other.length >= match.length:
            match, index = self._other, self.other
        if not match.length:
            return 0, []
        place = match.places[-1] + 1
        draft = index.ids[place : place + limit]
        for i, token in enumerate(draft):
            if token < 0 or token in self.own.never:
                return match.length, draft[:i]
        if len(draft) < limit:
            draft *= -(-limit // len(draft))
        return match.length, draft[:limit]

    def _look(self) -> None:
        self._own.follow(self.own, self.own.ids)
        if self.other is not None:
            self._other.follow(self.other, self.own.ids)


class _Match:
    """The longest matches of a text's end in an index: their length, and where each ends there, in
    order."""

    def __init__(self) -> None:
        self.length, self.places = 0, list[int]()
        self._whole = True  # whether all places were looked at

    def follow(self, index: Index, text: list[int]) -> None:
        """The text has one more token."""
        ids, end = index.ids, len(text) - 1
        places = index.places.get(text[end], ())
        on: list[int] = []
        if not places:
            self.length, self.places, self._whole = 0, on, True
            return
        was_whole, self._whole = self._whole, len(places) <= PLACES
        if not self._whole:
            places = places[-PLACES:]
        if self.length == LONGEST_MATCH:
            tail = text[end - LONGEST_MATCH + 1 :]
            back, first = LONGEST_MATCH - 1, tail[0]
            on = [p for p in places if ids[p - back] == first and ids[p - back : p + 1] == tail]
        elif was_whole and self._whole:
            # Where a longest match goes on it is the longest again, and no other can be as long.
            token, never = text[end], index.never
            on = [
                p + 1
                for p in self.places
                if ids[p + 1] == token and ids[p + 2] >= 0 and ids[p + 2] not in never
            ]
        if on:
            self.length, self.places = min(self.length + 1, LONGEST_MATCH), on
            return
        length, found = 0, list(places)
        while found and length < LONGEST_MATCH:
            length, self.length, self.places = length + 1, length + 1, found
            found = [p for p in found if ids[p - length] == text[end - length]]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading ids two sequences share."""
    low, high = 0, min(len(a), len(b))
    if list(a[:high]) == list(b[:high]):
        return high
    while low + 1 < high:  # the first `low` are the same, the first `high` are not
        middle = (low + high) // 2
        if list(a[low:middle]) == list(b[low:middle]):
            low = middle
        else:
            high = middle
    return low
