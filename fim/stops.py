"""Where an answer ends: one function for each rule.

Some families have no token that ends the middle, and in the others it comes late: so these rules
read what a model writes while it comes, and the first that finds an end stops the generation.

To add a rule, write a function of the type Rule, put it into RULES, and give it a Reason (a test
asks for its sentence in lsp_server/completion/explain.py). A rule reads forward only: where it has
found an end in a text, it finds the same end in every longer text that begins with it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal, NamedTuple

from fim.characters import STRANGE
from fim.lines import is_closing, may_be_closing, opens_block, width

Extent = Literal["line", "block", "span"]
# Why a suggestion was cut or hidden, or what it replaces: the rules here, then fim.postprocess's.
Reason = Literal[
    "sentinel",
    "strange character",
    "half character",
    "loops",
    "repeats below",
    "end of line",
    "end of block",
    "end of span",
    "blank lines",
    "too long",
    "repeats right",
    "replaces right",
    "blank",
    "unsure",
    "attributed",
    "secret",
    "secret here",
    "secret file",
]

# Decoding leaves U+FFFD for a character whose bytes are not all there yet: at the text's end it may
# still be mended.
_BROKEN = re.compile("\ufffd+(?=[^\ufffd])")
# A small model may write `a=self.a, ` without end. Shorter units, as in `0, 0, 0, 0`, are what
# people write too.
_LOOP = re.compile(r"(?=(([^\n]{8,60}?)\2{3}))")
_COPIES = 3  # of a line, or of a group of _MOST_LINES at most, one after another: a loop
_MOST_LINES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The text around one cursor, and what was asked for there, as far as the rules read it."""

    extent: Extent
    before: str  # the cursor's line left of the cursor
    below: str  # the next line under the cursor that is not blank, or ""
    known: frozenset[str]  # strange characters that the user's own text has
    sentinels: tuple[str, ...]
    max_lines: int
    least_columns: int  # a span ends before a line that is indented less
    closing: str  # the mark that closes a span, or ""
    off: frozenset[str] = frozenset()  # filters that are left out, to measure what they are worth


@dataclass(frozen=True, slots=True)
class Stop:
    """The answer is cut at `cut`.

    decision: how many characters of the answer are enough to know this.
    """

    decision: int
    cut: int
    reason: Reason


class Line(NamedTuple):
    """A line of an answer. The first one begins with what stands left of the cursor."""

    start: int  # in the answer, as `end`
    end: int
    text: str
    code: str  # the text without the blanks at its ends


Rule = Callable[[str, list[Line], Bounds], Stop | None]  # the last line may still grow


def first_stop(text: str, bounds: Bounds) -> Stop | None:
    """The stop that is decided first, if any. As rules read forward only, later text keeps it."""
    lines: list[Line] = []
    start = 0
    for written in text.split("\n"):
        end = start + len(written)
        line = written if lines else bounds.before + written
        lines.append(Line(start, end, line, line.strip()))
        start = end + 1
    return _first(
        [rule(text, lines, bounds) for name, rule in RULES.items() if name not in bounds.off]
    )


def _first(stops: list[Stop | None]) -> Stop | None:
    return min(filter(None, stops), key=attrgetter("decision"), default=None)


def sentinel(text: str, lines: list[Line], bounds: Bounds) -> Stop | None:
    """Ends at one of the model's own marks."""
    return _first([_mark(text, mark, "sentinel") for mark in bounds.sentinels])


def closing_mark(text: str, lines: list[Line], bounds: Bounds) -> Stop | None:
    """Ends at the mark that closes the span, as the quotes of a docstring."""
    return _mark(text, bounds.closing, "end of span") if bounds.closing else None


def _mark(text: str, mark: str, reason: Reason) -> Stop | None:
    start = text.find(mark)
    return None if start < 0 else Stop(start + len(mark), start, reason)


def strange_character(text: str, lines: list[Line], bounds: Bounds) -> Stop | None:
    """Ends at a character that cannot be seen, unless the user's own text has it."""
    for strange in STRANGE.finditer(text):
        if strange[0] not in bounds.known:
            return Stop(strange.end(), strange.start(), "strange character")
    return None


def half_character(text: str, lines: list[Line], bounds: Bounds) -> Stop | None:
    """Ends at a character that lacks some of its bytes, also where the user's own text has one:
    what a model means by U+FFFD cannot be told from what is left of another character."""
    broken = _BROKEN.search(text)
    if broken is None:
        return None
    return Stop(broken.end() + 1, broken.start(), "half character")


def loop_in_line(text: str, lines: list[Line], bounds: Bounds) -> Stop | None:
    """Ends before a line that has the same text four times in a row: the part of it before the
    loop is not to be trusted either."""
    first = None
    for loop in _LOOP.finditer(text):
        sooner = first is None or loop.end(1) < first.end(1)
        if sooner and any(map(str.isalpha, loop[2])):
            first = loop
    if first is None:
        return None
    return Stop(first.end(1), max(text.rfind("\n", 0, first.start()), 0), "loops")


def repeats_below(text: str, lines: list[Line], bounds: Bounds) -> Stop | None:
    """Ends before a line that equals the next line of the user's own text."""
    for line in lines[:-1]:
        if line.text.rstrip() == bounds.below and text[line.start : line.end].strip():
            return Stop(line.end + 1, max(line.start - 1, 0), "repeats below")
    return None


def _code_start(line: Line) -> int:
    return line.end - len(line.text.lstrip())


def end_of_line(text: str, lines: list[Line], bounds: Bounds) -> Stop | None:
    """Ends with the first line, where no more than that was asked for."""
    if bounds.extent != "line" or len(lines) == 1:
        return None
    return Stop(lines[0].end + 1, lines[0].end, "end of line")


def end_of_block(text: str, lines: list[Line], bounds: Bounds) -> Stop | None:
    """Ends before a line outside of the block: one that is indented less than the block's first
    line, or not more than the cursor's line if that opens the block.

    A line that may close the block (`}`, `end`) is read to its end. It belongs to the block, unless
    the line below says that the block is closed further down.
    """
    if bounds.extent != "block":
        return None
    first = lines[0]
    opened = bool(bounds.before.strip()) and opens_block(first.text)
    begun = bool(first.code)
    least = width(first.text if begun else bounds.before)  # columns
    for line in lines[1:]:
        if not line.code:
            continue
        columns = width(line.text)
        if columns > least or (columns == least and not opened):
            if not begun:
                least = columns
            begun = True
            continue
        if not may_be_closing(line.code[0]):
            return Stop(_code_start(line) + 1, line.start - 1, "end of block")
        if line is lines[-1]:
            return None
        closes = is_closing(line.text)
        if closes and columns == least and opened and opens_block(line.text):
            continue  # `} else {`
        kept = closes and width(bounds.below) <= columns
        return Stop(line.end + 1, line.end if kept else line.start - 1, "end of block")
    return None


def end_of_span(text: str, lines: list[Line], bounds: Bounds) -> Stop | None:
    """Ends before a line that is indented less than the span's text has to be."""
    if bounds.extent != "span" or not bounds.least_columns:
        return None
    for line in lines[1:]:
        if line.code and width(line.text) < bounds.least_columns:
            return Stop(_code_start(line) + 1, line.start - 1, "end of span")
    return None


def repeated_lines(text: str, lines: list[Line], bounds: Bounds) -> Stop | None:
    """Ends after the first of three equal groups of up to four lines, one after another, with or
    without blank lines between them. A line that opens a block does not end the first group."""
    written = []
    codes = []
    for line in lines[:-1]:
        if not line.code:
            continue
        written.append(line)
        # Several blocks may end one after another: in a span their indentation tells them apart.
        codes.append(line.text.rstrip() if bounds.extent == "span" else line.code)
        for size in range(1, min(_MOST_LINES, len(codes) // _COPIES) + 1):
            *earlier, latest = (codes[-n * size :][:size] for n in range(_COPIES, 0, -1))
            if any(group != latest for group in earlier):
                continue
            if size > 1 and not any(map(str.isalpha, "".join(latest))):
                continue  # brackets, as of nested data
            first = written[: len(written) - (_COPIES - 1) * size]
            if size > 1:
                while first and opens_block(first[-1].text):
                    first.pop()
            return Stop(line.end + 1, first[-1].end if first else 0, "loops")
    return None


def blank_lines(text: str, lines: list[Line], bounds: Bounds) -> Stop | None:
    """Ends before two blank lines in a row, in a span before three."""
    most = 3 if bounds.extent == "span" else 2
    blanks = 0
    code_end = 0
    for line in lines[:-1]:
        if line.code:
            blanks = 0
            code_end = line.end
        else:
            blanks += 1
        if blanks == most:
            return Stop(line.end + 1, code_end, "blank lines")
    return None


def too_long(text: str, lines: list[Line], bounds: Bounds) -> Stop | None:
    """Ends with the last line that is allowed."""
    if not 0 < bounds.max_lines < len(lines):
        return None
    end = lines[bounds.max_lines - 1].end
    return Stop(end + 1, end, "too long")


# By the names with which they can be switched off. Of two that are decided by the same character
# the first one counts.
RULES: dict[str, Rule] = {
    rule.__name__.replace("_", "-"): rule
    for rule in (
        sentinel,
        closing_mark,
        strange_character,
        loop_in_line,
        half_character,
        repeats_below,
        end_of_line,
        end_of_block,
        end_of_span,
        repeated_lines,
        blank_lines,
        too_long,
    )
}
