"""Speculation: drafts of the next tokens from the text at hand, of which one pass of the model
keeps what is right.

A pass over a few rows costs little more than over one, for both wait for the weights (Leviathan et
al. 2023, Chen et al. 2023). Drafts cost nothing here: what followed the same tokens in the prompt,
or in what was said lately (prompt look-up, Saxena 2023). They are as long as pays: how often drafts
behind a match of that length came true is counted, and what rows cost is measured by the kernels.

Tokens are chosen by the model alone, row by row, as without drafts; a draft only decides which rows
are there already. So greedy is greedy, and sampling draws the same tokens with the same seed: to
accept a draft that is certain with its probability, else to draw from the rest, is to draw, and to
look whether it was the draft.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from model.generation.text_matches import LONGEST_MATCH, START, Index, Matches

LONGEST_DRAFT = 15
# What a pass over so many rows costs, in passes over one, where nobody has measured.
ROW_COSTS = {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.7, 16: 2.6}
# How often the next token of a draft is right behind a match of 1, 2, 4, 8, 16, 32 tokens, before
# any was seen.
ODDS = (0.35, 0.6, 0.85, 0.95, 0.97, 0.97)
RATE = 1 / 24  # how much one draft more or less changes them
END = START - 1  # stands behind a generation
KEPT = 8  # generations whose words are remembered
CONTEXT = 16  # tokens before each: where they were said


@dataclass(slots=True)
class Tally:
    """What a generation has done: passes of the model behind the prefill, tokens drafted, drafts
    that came true."""

    passes: int = 0
    drafted: int = 0
    accepted: int = 0


class Recent:
    """What lasts from one generation of a model to the next. One thread uses it."""

    def __init__(self, costs: Mapping[int, float] | None = None) -> None:
        """costs: of a pass by its rows, in passes over one row."""
        self.use(costs or ROW_COSTS)
        self.odds = list(ODDS)
        self._said: deque[list[int]] = deque(maxlen=KEPT)
        self._prompt: Index | None = None  # the last one's, with what was said behind it
        self._others: Index | None = None  # of all that is kept

    def use(self, costs: Mapping[int, float]) -> None:
        self.costs = row_costs(costs)

    def begin(self, ids: Sequence[int], never: Collection[int]) -> Matches:
        """The matches of a prompt in itself and in what was said. Most of the last prompt's index
        serves again."""
        never, prompt, self._prompt = (
            frozenset(never),
            self._prompt,
            None,
        )  # None: for a second one at the same time
        if prompt is None or prompt.never != never:
            prompt = Index((), never)
        prompt.become([START, *ids])
        if self._others is not None and self._others.never != never:
            self._others = Index(self._others.ids, never)
        return Matches(prompt, self._others)

    def end(self, matches: Matches, prompt: int) -> None:
        """Remembers a generation behind a prompt of so many tokens."""
        self._prompt, ids = matches.own, matches.own.ids
        if len(ids) - 1 > prompt:
            self._said.append(ids[max(1, 1 + prompt - CONTEXT) :])
            self._others = Index(
                [token for text in self._said for token in (*text, END)], self._prompt.never
            )


class Drafter:
    """The drafts of one generation."""

    def __init__(self, recent: Recent, matches: Matches) -> None:
        self._recent, self._matches = recent, matches
        self._length, self._draft = 0, list[int]()

    def propose(self, limit: int, rows: int = 1) -> list[int]:
        """As many tokens, up to `limit`, as pay behind `rows` others in the same pass.

        What pays brings the most tokens for the time of a pass. More rows than have a cost are not
        asked for.
        """
        self._length, self._draft = self._matches.draft(LONGEST_DRAFT)
        odds, costs = self._recent.odds, self._recent.costs
        sure, expected, best, count = 1.0, 1.0, 1.0, 0
        for n in range(1, min(limit, len(self._draft), len(costs) - 1 - rows) + 1):
            sure *= odds[min(self._length + n - 1, LONGEST_MATCH).bit_length() - 1]
            expected += sure
            value = expected / (1 + costs[rows + n] - costs[rows])
            if value > best:
                best, count = value, n
        return self._draft[:count]

    def learn(self, place: int, token: int) -> bool:
        """Whether the draft was right about the token at this place of it, be it proposed or
        not."""
        if place >= len(self._draft):
            return False
        right = self._draft[place] == token
        kind = min(self._length + place, LONGEST_MATCH).bit_length() - 1
        self._recent.odds[kind] += RATE * (right - self._recent.odds[kind])
        return right


def row_costs(measured: Mapping[int, float]) -> list[float]:
    """[rows]: the measured costs in those of one row, with straight lines between."""
    one = measured.get(1, 1.0)
    costs = [0.0, 1.0]
    for rows in sorted(measured):
        last, low, high = len(costs) - 1, costs[-1], measured[rows] / one
        costs += [
            low + (high - low) * (n - last) / (rows - last) for n in range(last + 1, rows + 1)
        ]
    return costs
