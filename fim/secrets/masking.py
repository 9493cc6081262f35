"""A text with its secrets written over."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from fim.secrets.keys import Line, nonsense, read_line, unfinished

MASK = "x"  # which people write themselves for what is not to be read
# Beyond both ends of what is asked for: a private key of 8,192 bits has 6,400 characters.
_MARGIN = 8192
_LONGEST = 400  # characters of a piece that is remembered
_KEPT = 16_384  # pieces, some 3 MB
_NEAR = 1000  # characters around the cursor
_LEAST = 8  # characters of a value that is looked for elsewhere in the text, and in suggestions

_PART = 4  # characters of a value that are looked for first: any 7 in a row have such a part

_WRAP = r"""[ \t"'`#*>;|+,.()-]{0,32}"""
_END = rf"{_WRAP}(?:\r?\n|\\[nr])(?:{_WRAP}(?:\r?\n|\\[nr])){{0,3}}{_WRAP}"
_BLOCK = re.compile(
    r"(?:-{4,5} ?BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY(?: BLOCK)? ?-{4,5}|Private-Lines: \d+)"
    rf"{_END}(?:[A-Za-z-]+: [^\n\\]*{_END}){{0,4}}"
    rf"(?P<body>[A-Za-z0-9+/=]{{32,}}(?:{_END}(?!-{{4}})[A-Za-z0-9+/=]+(?={_WRAP}(?:\r?\n|\\|\Z)))*)"
)
_MARK = re.compile(r"\b(?:BEGIN|END) [A-Z0-9 ]{0,32}PRIVATE KEY\b")
_LINE_OF_KEY = re.compile(r"(?:(?<=\\[nr])|(?<![\\A-Za-z0-9+/=]))[A-Za-z0-9+/=]{24,}")
_REST = re.compile(r"[\w+/=.:~-]*")  # of a secret, right of the cursor
_TYPED = re.compile(r"[\w+/=.~-]{6,}\Z")
_BODY = re.compile(r"(?<!\\)[A-Za-z0-9+/=]+")
# No piece ends between a name and its value.
_PIECE = re.compile(
    r"[^\n]{200,400}?[,;{}()\[\] \t](?<![=:] )(?![ \t=:\"'`])|[^\n]{1,400}"
)  # _LONGEST


@dataclass(frozen=True, slots=True)
class Masked:
    """A text with its secrets written over, as long as before."""

    text: str
    values: frozenset[str]  # the secrets, and earlier ones of which parts are left
    at_cursor: bool  # the cursor stands in or behind one that is being written


def mask(text: str, cursor: int, reach: int, known: frozenset[str] = frozenset()) -> Masked:
    """The text with all secrets written over that begin within `reach` characters of the cursor.

    known: the values in an earlier version of the text. Who edits a secret leaves parts of it that
    do not look like one. It costs what lies in reach, and of that mostly what changed since the
    last call.
    """
    low = _line_start(text, max(0, cursor - reach - _MARGIN))
    part = text[low : cursor + reach + _MARGIN]
    at = cursor - low
    spans = list(_spans(part))
    line = part[part.rfind("\n", 0, at) + 1 : at]
    values = frozenset(part[start:end] for start, end in spans if end - start >= _LEAST)
    start = _unfinished(line[-_LONGEST:], values)
    if start is not None:
        rest = _REST.match(part, at)
        spans.append((at - len(line[-_LONGEST:]) + start, rest.end() if rest else at))
    left = [(value, part_of) for value in known - values for part_of in _parts(part, value)]
    near = max(0, at - _NEAR)  # there somebody may be typing one anew
    for value in values:
        for first, last in _parts(part[near : at + _NEAR], value):
            left.append((part[near + first : near + last], (near + first, near + last)))
    spans += (part_of for _, part_of in left)
    for value in values:  # the same without its name
        spans += (found.span() for found in re.finditer(re.escape(value), part))
    at_cursor = any(start < at <= end for start, end in spans)
    if not spans:
        return Masked(text, frozenset(), False)
    written = _written_over(part, spans)
    values |= {value for value, _ in left}
    return Masked(text[:low] + written + text[low + len(part) :], values, at_cursor)


def holds_secret(before: str, text: str, values: Collection[str]) -> bool:
    """Whether a text behind the masked line `before` would write a secret, or a mask.

    values: the secrets of the masked text.
    """
    if values and (
        MASK * _LEAST in text or any(True for value in values for _ in _parts(text, value))
    ):
        return True
    joined = before[-_LONGEST:] + text
    start = len(joined) - len(text)
    return any(end > start for _, end in _spans(joined))


def _parts(text: str, value: str) -> Iterator[tuple[int, int]]:
    """Where at least _LEAST characters in a row of a value stand in a text."""
    for start in range(0, len(value) - _PART + 1, _PART):
        at = text.find(value[start : start + _PART])
        while at >= 0:
            low = 0
            while low < min(at, start) and text[at - low - 1] == value[start - low - 1]:
                low += 1
            most = min(len(text) - at, len(value) - start)
            high = _PART
            while high < most and text[at + high] == value[start + high]:
                high += 1
            if low + high >= _LEAST:
                yield at - low, at + high
            at = text.find(value[start : start + _PART], at + high)


def _unfinished(line: str, values: Collection[str]) -> int | None:
    """Where in the cursor's line a secret begins that is being typed, maybe once more."""
    start = unfinished(line)
    if start is None and values and (typed := _TYPED.search(line)):
        for value in values:
            if value.startswith(typed[0]):
                return typed.start()
    return start


def _line_start(text: str, index: int) -> int:
    """The start of the line of an index; of an overlong line the index itself."""
    start = text.rfind("\n", max(0, index - _MARGIN), index) + 1
    return start or (index if index > _MARGIN else 0)


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """The places of secrets in a text."""
    if "PRIVATE KEY" in text or "Private-Lines" in text:
        for block in _BLOCK.finditer(text):
            for run in _BODY.finditer(text, *block.span("body")):
                yield run.span()
        yield from _near_marks(text)
    start = 0
    opened = ""
    for line in text.split("\n"):
        if len(line) <= _LONGEST:
            found = _read(line, opened)
            for span in found.spans:
                yield start + span[0], start + span[1]
            opened = found.open
        else:
            for piece in _PIECE.finditer(line):
                found = _read(piece[0], opened)
                for span in found.spans:
                    yield start + piece.start() + span[0], start + piece.start() + span[1]
                opened = found.open
        start += len(line) + 1


def _near_marks(text: str) -> Iterator[tuple[int, int]]:
    """The places of what may be lines of a private key whose block is being edited."""
    done = 0
    for found in _MARK.finditer(text):
        start = max(done, found.start() - _MARGIN)
        done = max(done, found.end() + _MARGIN)
        for run in _LINE_OF_KEY.finditer(text, start, done):
            if nonsense(run[0]) > 0.25:
                yield run.span()


@lru_cache(_KEPT)
def _read(line: str, opened: str) -> Line:
    return read_line(line, opened)


def _written_over(text: str, spans: Iterable[tuple[int, int]]) -> str:
    parts = []
    done = 0
    for start, end in sorted(spans):
        parts.append(text[done : max(start, done)])
        parts.append(_over(text[max(start, done) : max(end, done)]))
        done = max(end, done)
    return "".join(parts) + text[done:]


def _over(value: str) -> str:
    """A mask for a value, with its blanks and line ends."""
    return re.sub(r"\S", MASK, value)
