"""Scores of an answer against the author's text, and the baseline that copies from the text around
the cursor."""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from fim.evaluation.samples import LONGEST, Sample
from fim.shaping.quotes import scan

# characters on both sides of the cursor that the copy baseline looks at
BEFORE = 8000
AFTER = 4000
LONGEST_MATCH = 64
NEAR = 2000  # characters around a suggestion in which brackets are counted


@dataclass(frozen=True, slots=True)
class Share:
    """`hits` of `count`."""

    hits: int
    count: int

    @property
    def value(self) -> float | None:
        """0..1; None of nothing."""
        return self.hits / self.count if self.count else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's interval of 95%, 0..1; None of nothing."""
        if not self.count:
            return None
        deviations = 1.96
        share = self.hits / self.count
        weight = deviations**2 / self.count
        centre = share + weight / 2
        spread = math.sqrt(weight * share * (1 - share) + weight**2 / 4)
        low = (centre - spread) / (1 + weight)
        high = (centre + spread) / (1 + weight)
        return max(0.0, low), min(1.0, high)  # rounding leaves them a hair outside


def is_same(sample: Sample, text: str, replaced: int = 0) -> bool:
    """Whether accepting `text`, which replaces so many characters right of the cursor, gives the
    author's file.

    Blanks at the line's end do not count.
    """
    wanted = sample.middle + sample.suffix[:replaced]
    if not sample.suffix[replaced:].partition("\n")[0].strip():
        return text.rstrip() == wanted.rstrip()
    return text == wanted


def is_right(sample: Sample, text: str, replaced: int = 0) -> bool:
    """Whether the author's file goes on as `text` does, which may be less than all of the
    middle."""
    return is_same(sample, text, replaced) or sample.middle.startswith(text)


def similarity(sample: Sample, text: str, replaced: int = 0) -> float:
    """1 - Levenshtein distance / length of the longer text, in characters, without blanks at the
    ends: 0..1."""
    wanted = (sample.middle + sample.suffix[:replaced]).rstrip()
    text = text.rstrip()
    return 1 - edit_distance(wanted, text) / max(len(wanted), len(text), 1)


def right_and_wrong(sample: Sample, text: str, replaced: int = 0) -> tuple[int, int]:
    """(right, wrong): how many characters of `text` the author wrote, too, and how many stand from
    the first difference on, which would have to be deleted.

    A character that the text writes in the place of the same one is neither.
    """
    wanted = sample.middle + sample.suffix[:replaced]
    same = common_prefix(text, wanted)
    return min(same, len(sample.middle)), len(text) - same


def common_prefix(first: str, second: str) -> int:
    """How many characters two texts begin with alike."""
    differ = (index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differ, min(len(first), len(second)))


def doubles_line(sample: Sample, text: str, replaced: int = 0) -> bool:
    """Whether the last line of a text that is accepted stands again right below it, which is not so
    in the author's file."""
    accepted = _doubled(sample.prefix + text, sample.suffix[replaced:])
    return accepted and not _doubled(sample.prefix + sample.middle, sample.suffix)


def _doubled(before: str, after: str) -> bool:
    rest, _, below = after.partition("\n")
    line = (before.rpartition("\n")[2] + rest).rstrip()
    below = next((each.rstrip() for each in below.split("\n") if each.strip()), "")
    return line == below and any(map(str.isalnum, line))


def doubles_bracket(sample: Sample, text: str, replaced: int = 0) -> bool:
    """Whether a text that is accepted leaves more closing brackets without an opening one than the
    author's file has, within NEAR characters of it."""
    before = sample.prefix[-NEAR:]
    language = "python" if sample.path.endswith((".py", ".pyi")) else ""
    accepted = scan(before + text + sample.suffix[replaced : replaced + NEAR], language)
    wanted = scan(before + sample.middle + sample.suffix[:NEAR], language)
    return accepted.stray > wanted.stray


def edit_distance(first: str, second: str) -> int:
    """Levenshtein's: the least number of characters to insert, delete or replace."""
    row = list(range(len(second) + 1))
    for i, char in enumerate(first, 1):
        diagonal = row[0]
        row[0] = i
        for j, other in enumerate(second, 1):
            above = row[j]
            row[j] = min(above + 1, row[j - 1] + 1, diagonal + (char != other))
            diagonal = above
    return row[-1]


BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """The guesses whose stated confidence is within one tenth."""

    confidence: float  # the mean
    right: Share


def reliability(guesses: Sequence[tuple[float, bool]]) -> list[Bin]:
    """(confidence, right) of guesses, by tenths of the confidence; empty ones are left out."""
    bins = []
    for number in range(BINS):
        within = [each for each in guesses if min(int(each[0] * BINS), BINS - 1) == number]
        if within:
            mean = sum(confidence for confidence, _ in within) / len(within)
            bins.append(Bin(mean, Share(sum(right for _, right in within), len(within))))
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error: how far confidence and share of right guesses are apart, as
    the mean over all guesses (Guo et al. 2017, arXiv 1706.04599): 0..1."""
    count = sum(each.right.count for each in bins)
    apart = (abs(each.confidence * each.right.count - each.right.hits) for each in bins)
    return sum(apart) / max(1, count)


def parses(text: str) -> bool:
    """Whether this Python can parse the text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in strings
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def copy_baseline(sample: Sample, *, one_line: bool) -> str:
    """The text that follows the longest match of the text before the cursor in the text around it;
    a match has 2 to 64 characters.

    Of matches of one length the lowest in the file counts. one_line ends the copy with its line.
    Else it ends before the first line that stands right of the cursor or below it, if that comes
    within 240 characters, or else with its line.
    """
    before = sample.prefix[-BEFORE:]
    after = sample.suffix[:AFTER]
    # The cursor's own place is no match, and no copy runs across it.
    text = before[:-1] + "\0" + after
    for length in range(min(LONGEST_MATCH, len(before)), 1, -1):
        found = text.rfind(before[-length:])
        if found >= 0:
            copy = text[found + length :].partition("\0")[0]
            end = _end_before(copy, after)
            return copy[:end] if end > 0 and not one_line else copy.partition("\n")[0]
    return ""


def _end_before(copy: str, after: str) -> int:
    """The place in the copy of the first line of `after` that is not blank; -1 if it is not there,
    or comes too late."""
    for line in after.split("\n"):
        if line.strip():
            return copy.find(line, 0, LONGEST + len(line))
    return -1
