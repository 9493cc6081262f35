"""How sure a model was of an answer, and the part of an answer that it was sure enough of.

The measure is the joint probability of all tokens from the answer's first one on: of a beginning of
an answer it says how likely the author writes just that. It sinks with each token, so an answer in
which it has sunk too far need not be written on. (It parts right from wrong far better than means
of the tokens' probabilities: benchmarks/RESULTS.md.)
"""

import math
import re
from bisect import bisect_left
from dataclasses import dataclass

from fim.shaping.bounds import Bounds
from fim.shaping.quotes import scan

LEAST_PART = 4  # characters of half a line that are worth a look
_UNIT = re.compile(r"\w+|[)\]}\"'`]")  # what half a line may end with


@dataclass(frozen=True, slots=True)
class Sureness:
    """The joint probabilities of an answer's beginnings, as the model states them."""

    ends: tuple[int, ...] = ()  # characters up to the end of each piece of the answer
    logprobs: tuple[float, ...] = ()  # natural logarithms, of all tokens up to there

    def of(self, length: int) -> float:
        """0..1: of the first `length` characters, with the rest of the piece that they end in; 1
        where nothing is known."""
        if not self.ends or length <= 0:
            return 1.0
        index = min(bisect_left(self.ends, length), len(self.ends) - 1)
        return probability(self.logprobs[index])

    def reach(self, least: float) -> int | None:
        """The end of the first piece with which it is less than `least`; None if there is none.
        What comes behind decides nothing."""
        for end, logprob in zip(self.ends, self.logprobs, strict=True):
            if probability(logprob) < least:
                return end
        return None

    def without_returns(self, text: str) -> "Sureness":
        r"""Of the answer `text` with \n for \r\n."""
        ends = []
        for end in self.ends:
            within = text[end - 1 : end + 1] == "\r\n"
            ends.append(end - text.count("\r\n", 0, end) - within)
        return Sureness(tuple(ends), self.logprobs)

    def behind(self, skipped: int) -> "Sureness":
        """Of the same answer without its first characters."""
        return Sureness(tuple(end - skipped for end in self.ends), self.logprobs)


CERTAIN = Sureness()


def probability(logprob: float) -> float:
    """0..1; 0 of what is no number."""
    if math.isnan(logprob):
        return 0.0
    return math.exp(min(logprob, 0.0))


def sure_beginning(text: str, sureness: Sureness, bounds: Bounds) -> int:
    """The length of the longest beginning of `text` of which the model was sure enough.

    It is the whole text, some whole lines, or a part of the first line that ends with a word, a
    quote or a bracket, outside of brackets and strings that the text itself opened. 0: none is.
    """
    least = bounds.min_confidence
    if least <= 0 or sureness.of(len(text)) >= least:
        return len(text)
    ends = [index for index, char in enumerate(text) if char == "\n"]
    first_line = text[: ends[0]] if ends else text
    depths = scan(first_line, bounds.language, bounds.opened).depths
    for unit in _UNIT.finditer(first_line):
        if unit.end() >= LEAST_PART and not depths[unit.end()]:
            ends.append(unit.end())
    return max((end for end in ends if sureness.of(end) >= least), default=0)
