"""Speculative decoding with prompt look-up: one pass of the model verifies several drafted tokens.

A pass over a few rows costs little more than one over a single row, because both wait for the
weights (Leviathan et al. 2023, Chen et al. 2023). The drafts cost nothing: they are the tokens that
followed the same text in the prompt or in a recent generation (prompt look-up, Saxena 2023). A
draft is as long as pays: acceptance rates are counted by the length of the match, and the kernels'
measurements say what each number of rows costs.

Tokens are chosen from the model's own scores, row by row, as without drafts; a draft only decides
which rows one pass computes. So greedy decoding stays greedy, and sampling draws the same tokens
from the same seed. We sample from the model and keep the draft while both agree; this gives the
same distribution as rejection sampling.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from model.generation.text_matches import (
    LONGEST_MATCH,
    TEXT_END,
    TEXT_START,
    TextMatches,
    TokenIndex,
)

LONGEST_DRAFT = 15
# The cost of a pass over so many rows, in passes over one row, where nobody has measured it.
ROW_COSTS = {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.7, 16: 2.6}
# Acceptance rates of a draft's next token after a match of 1, 2, 4, 8, 16, 32 tokens, before any
# was seen.
ACCEPTANCE = (0.35, 0.6, 0.85, 0.95, 0.97, 0.97)
RATE = 1 / 24  # the weight of one more draft in an acceptance rate
REMEMBERED = 8  # generations to draft from
CONTEXT = 16  # tokens of the prompt that are remembered before each


class DraftHistory:
    """Lasts from one generation to the next: recent texts to draft from, acceptance rates, and the
    cost of each number of rows. One thread uses it."""

    def __init__(
        self,
        costs: Mapping[int, float] | None = None,
        cache_costs: Mapping[int, float] | None = None,
    ) -> None:
        """See `use`."""
        self.use(costs or ROW_COSTS, cache_costs or {})
        self.acceptance = list(ACCEPTANCE)
        self._recent: deque[list[int]] = deque(maxlen=REMEMBERED)
        self._prompt_index = TokenIndex(())  # the last prompt with its generation
        self._recent_index = TokenIndex(())

    def use(self, costs: Mapping[int, float], cache_costs: Mapping[int, float]) -> None:
        """costs: of a pass by its number of rows, in passes over one row. cache_costs: what 1,000
        positions in the cache add."""
        self._costs = row_costs(costs)
        added = dict(sorted(cache_costs.items())) or {0: 0.0}
        rows = range(len(self._costs))
        self._cache_costs = np.interp(rows, list(added), list(added.values())).tolist()

    def costs_at(self, positions: int) -> list[float]:
        """The cost of a pass at each number of rows, after so many positions."""
        thousands = positions / 1000
        costs = [
            cost + thousands * added
            for cost, added in zip(self._costs, self._cache_costs, strict=True)
        ]
        return [cost / costs[1] for cost in costs]

    def begin(self, ids: Sequence[int], never: Collection[int]) -> TextMatches:
        """The matches of a prompt in itself and in recent generations; ids of `never` are not
        drafted. Most tokens are the last prompt's, so its index is changed."""
        index = TokenIndex((), never)
        if self._prompt_index.never == index.never:
            index = self._prompt_index
            self._prompt_index = TokenIndex(())  # a second generation at the same time has its own
        index.change_to([TEXT_START, *ids])
        if self._recent_index.never != index.never:
            self._recent_index = TokenIndex(self._recent_index.ids, never)
        return TextMatches(index, self._recent_index)

    def end(self, matches: TextMatches, prompt: int) -> None:
        """Remembers the generation after a prompt of so many tokens."""
        self._prompt_index = matches.own
        ids = matches.own.ids
        if len(ids) - 1 <= prompt:
            return
        self._recent.append(ids[max(1, 1 + prompt - CONTEXT) :])
        index = TokenIndex((), matches.own.never)
        for text in self._recent:
            index.extend([*text, TEXT_END])
        self._recent_index = index


class Drafter:
    """The drafts of one generation. Without a history there are none; it follows the text."""

    def __init__(self, history: DraftHistory | None, matches: TextMatches) -> None:
        self._history = history
        self._matches = matches
        self._match_length = 0
        self._draft: list[int] = []

    def push(self, token: int) -> None:
        """The text goes on with this token."""
        self._matches.push(token)

    def propose(self, limit: int, rows: int = 1, positions: int = 0) -> list[int]:
        """A draft of at most `limit` tokens, for a pass that has `rows` other rows, after so many
        positions in the cache. Its length brings the most tokens for the time of the pass; rows
        without a known cost are not used."""
        if self._history is None:
            return []
        self._match_length, self._draft = self._matches.draft(LONGEST_DRAFT)
        if not self._draft:
            return []
        costs = self._history.costs_at(positions)
        accepted = 1.0  # the probability that the draft is right up to here
        expected = 1.0  # tokens of the pass
        best_rate = 1.0
        best_length = 0
        for length in range(1, min(limit, len(self._draft), len(costs) - 1 - rows) + 1):
            accepted *= self._history.acceptance[self._kind(length - 1)]
            expected += accepted
            rate = expected / (1 + costs[rows + length] - costs[rows])
            if rate > best_rate:
                best_rate = rate
                best_length = length
        return self._draft[:best_length]

    def learn(self, place: int, token: int) -> bool:
        """Whether this token is the draft's at this place, also beyond the part that was proposed;
        updates the acceptance rates."""
        if self._history is None or place >= len(self._draft):
            return False
        right = self._draft[place] == token
        rates = self._history.acceptance
        kind = self._kind(place)
        rates[kind] += RATE * (right - rates[kind])
        return right

    def _kind(self, place: int) -> int:
        """The index of a place's acceptance rate. The drafted tokens before it count as part of the
        match."""
        return min(self._match_length + place, LONGEST_MATCH).bit_length() - 1


def no_drafts() -> Drafter:
    return Drafter(None, TextMatches(TokenIndex([TEXT_START])))


def row_costs(measured: Mapping[int, float]) -> list[float]:
    """The cost of a pass at each number of rows, relative to one row, between the measurements on
    straight lines."""
    one_row = measured.get(1, 1.0)
    points = {0: 0.0, 1: one_row} | dict(sorted(measured.items()))
    costs = np.interp(range(max(points) + 1), list(points), list(points.values()))
    return list((costs / one_row).tolist())
