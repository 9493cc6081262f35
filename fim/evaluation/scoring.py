"""How close an answer comes to what the author wrote; and the baseline that copies from the text
around."""

from __future__ import annotations

import ast
import math
import warnings
from dataclasses import dataclass

from fim.evaluation.samples import LONGEST, Sample

BEFORE, AFTER = 8000, 4000  # characters on both sides of the cursor that the copy baseline looks at
LONGEST_MATCH = 64


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
        z, n, share = 1.96, self.count, self.hits / self.count
        centre = share + z * z / (2 * n)
        spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        low, high = ((centre + side * spread) / (1 + z * z / n) for side in (-1, 1))
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


def similarity(sample: Sample, text: str, replaced: int = 0) -> float:
    """1 - Levenshtein distance / length of the longer text, in characters, without blanks at the
    ends: 0..1."""
    wanted, text = (sample.middle + sample.suffix[:replaced]).rstrip(), text.rstrip()
    return 1 - edit_distance(wanted, text) / max(len(wanted), len(text), 1)


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's: the least number of characters to insert, delete or replace."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


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
    """What follows the longest match, of 2 to 64 characters, of the text before the cursor in the
    text around.

    Of matches of one length the lowest in the file counts. one_line ends the copy with its line.
    Else it ends before the first line that stands right of the cursor or below it, where that comes
    within 240 characters, or with its line where that does not come.
    """
    before, after = sample.prefix[-BEFORE:], sample.suffix[:AFTER]
    text = (
        before[:-1] + "\0" + after
    )  # the cursor's own place is no match, and no copy runs across it
    for length in range(min(LONGEST_MATCH, len(before)), 1, -1):
        at = text.rfind(before[-length:])
        if at >= 0:
            copy = text[at + length :].partition("\0")[0]
            if not one_line and (end := _end_before(copy, after)) > 0:
                return copy[:end]
            return copy.partition("\n")[0]
    return ""


def _end_before(copy: str, after: str) -> int:
    """Where the first line of `after` that is not blank comes in the copy; -1 where it does not, or
    too late."""
    line = next((line for line in after.split("\n") if line.strip()), "")
    return copy.find(line, 0, LONGEST + len(line)) if line else -1
