"""The open documents: a mirror of their texts, and positions in them.

Offsets are in code points everywhere in this project. LSP counts lines and, within a line, units of
the encoding that client and server agreed on. Only this module converts between the two.

Absent on purpose: `str.splitlines`, which ends lines at form feeds and at U+2028 while LSP does
not; any cleaning of the text (without a lone surrogate every later position on its line would be
off); and LSP's types, so that the mirror can be tested with plain values.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Literal

Encoding = Literal["utf-8", "utf-16", "utf-32"]
Position = tuple[int, int]
"""Line and character, both from 0; the character in units of the document's encoding."""
# In code points:
CHUNK = 16_384  # of a document's pieces
WINDOW = 1_000_000  # that a snapshot holds on each side of the cursor
LONGEST_WORD = 200
_WORD = re.compile(r"\w+\Z")
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A document at one moment, seen from the cursor.

    `text` is the whole text of a document of up to `WINDOW` code points. Of a larger one it is a
    window of at least `WINDOW` code points on both sides of the cursor, whose start does not move
    with every key. `offset` is the cursor's place in `text`; its place in the document is
    `window_start + offset`.
    """

    uri: str
    version: int
    language: str
    text: str
    offset: int
    window_start: int = 0
    secret: bool = False  # by its place on the disk: see context/secret_files.py


@dataclass(frozen=True, slots=True)
class Change:
    """One edit: the text between two positions, or all of it if they are None, becomes `text`."""

    text: str
    start: Position | None = None
    end: Position | None = None


class Document:
    """One open document. The text is a list of pieces of about `CHUNK` code points.

    An edit rebuilds only the pieces that it touches, so its cost hardly grows with the document,
    and a snapshot copies no more than its window. A CR and its LF are in the same piece, so that
    the line ends of each piece can be counted alone.
    """

    def __init__(
        self, uri: str, version: int, language: str, text: str, encoding: Encoding = "utf-16"
    ) -> None:
        self.uri = uri
        self.version = version
        self.language = language
        self.encoding: Encoding = encoding
        self._set_text(text)

    @property
    def text(self) -> str:
        """The whole text, joined at each call: 10 ms and more for 50 MB."""
        return "".join(self._pieces)

    @property
    def length(self) -> int:
        """The length in code points. Not `__len__`: an empty document would count as false."""
        return self._ends[-1]

    @property
    def line_count(self) -> int:
        """One more than there are line ends."""
        return self._line_totals[-1] + 1

    def change(self, version: int, changes: Iterable[Change]) -> None:
        """Applies one notification's edits in order; each is meant for the text after the one
        before. The version is taken as told, even if it does not grow."""
        for change in changes:
            if change.start is None or change.end is None:
                self._set_text(change.text)
            else:
                start = self.position_to_offset(*change.start)
                end = self.position_to_offset(*change.end)
                self._replace(min(start, end), max(start, end), change.text)
        self.version = version

    def position_to_offset(self, line: int, character: int) -> int:
        """The offset in code points of a position in the document's encoding.

        A position beyond a line's end means that end, one beyond the last line the text's end, one
        inside a character its start. Negative numbers count as 0.
        """
        if line >= self.line_count:
            return self.length
        start, end = self._line_bounds(max(line, 0))
        units = max(character, 0)
        # No character takes less than one unit, so no longer slice is needed.
        text = self._slice(start, min(end, start + units))
        return start + _characters_within(text, units, self.encoding)

    def offset_to_position(self, offset: int) -> Position:
        """The position, in the document's encoding, of an offset in code points.

        An offset between a CR and its LF, where LSP has no position, gives the line's end; one
        outside the text gives the nearer end of the text.
        """
        offset = max(0, min(offset, self.length))
        index, within = self._locate(offset)
        # Counted from the end: between a CR and its LF, the LF is a line end that is to come.
        line = self._line_totals[index] - _count_line_ends(self._pieces[index][within:])
        start, end = self._line_bounds(line)
        return line, _units(self._slice(start, min(offset, end)), self.encoding)

    def snapshot(self, line: int, character: int) -> Snapshot:
        """The document as it is now, with the cursor at this position."""
        offset = self.position_to_offset(line, character)
        # Whole pieces: the window's edges stay where they are while someone types.
        first, _ = self._locate(max(0, offset - WINDOW))
        last, _ = self._locate(min(self.length, offset + WINDOW))
        start = self._ends[first - 1] if first else 0
        text = "".join(self._pieces[first : last + 1])
        return Snapshot(self.uri, self.version, self.language, text, offset - start, start)

    def word_before(self, line: int, character: int) -> tuple[str, int]:
        """The word that ends at a position, and how many units it has."""
        offset = self.position_to_offset(line, character)
        found = _WORD.search(self._slice(max(0, offset - LONGEST_WORD), offset))
        word = found[0] if found else ""
        return word, _units(word, self.encoding)

    def _set_text(self, text: str) -> None:
        self._pieces = _cut(text)
        self._line_ends = [_count_line_ends(piece) for piece in self._pieces]
        self._index()

    def _replace(self, start: int, end: int, text: str) -> None:
        first, before = self._locate(start)
        last, after = self._locate(end)
        # The neighbours are rebuilt too: a CR and an LF that now meet get into one piece, and
        # pieces that have become small are joined to others.
        low = max(first - 1, 0)
        high = last + 2
        middle = "".join(
            (
                *self._pieces[low:first],
                self._pieces[first][:before],
                text,
                self._pieces[last][after:],
                *self._pieces[last + 1 : high],
            )
        )
        pieces = _cut(middle)
        self._pieces[low:high] = pieces
        self._line_ends[low:high] = [_count_line_ends(piece) for piece in pieces]
        self._index()

    def _index(self) -> None:
        """Sums over the pieces: where each one ends, and the line ends up to there."""
        self._ends = list(accumulate(map(len, self._pieces)))
        self._line_totals = list(accumulate(self._line_ends))

    def _locate(self, offset: int) -> tuple[int, int]:
        """The piece that holds an offset in [0, len], and the offset within the piece."""
        index = min(bisect_right(self._ends, offset), len(self._ends) - 1)
        return index, offset - (self._ends[index - 1] if index else 0)

    def _slice(self, start: int, end: int) -> str:
        first, before = self._locate(start)
        last, after = self._locate(end)
        if first == last:
            return self._pieces[first][before:after]
        return "".join(
            (
                self._pieces[first][before:],
                *self._pieces[first + 1 : last],
                self._pieces[last][:after],
            )
        )

    def _line_bounds(self, line: int) -> tuple[int, int]:
        """Where a line in [0, line_count) begins and where it ends, its line end not included."""
        start = self._line_end(line - 1)[1] if line else 0
        end = self._line_end(line)[0] if line + 1 < self.line_count else self.length
        return start, end

    def _line_end(self, line: int) -> tuple[int, int]:
        """Where the line end of a line in [0, line_count - 1) begins and ends."""
        index = bisect_left(self._line_totals, line + 1)
        lines_before = 0
        start = 0
        if index:
            lines_before = self._line_totals[index - 1]
            start = self._ends[index - 1]
        match = next(islice(_LINE_END.finditer(self._pieces[index]), line - lines_before, None))
        return start + match.start(), start + match.end()


class NotOpenError(Exception):
    """A client speaks of a document that it has not opened."""

    def __init__(self) -> None:
        super().__init__("The document is not open.")


class Documents:
    """The open documents by URI, all in the encoding that was agreed on with the client."""

    def __init__(self, encoding: Encoding = "utf-16") -> None:
        self.encoding: Encoding = encoding
        self._open: dict[str, Document] = {}

    def open(self, uri: str, version: int, language: str, text: str) -> Document:
        """Mirrors a document; one that is open already is replaced."""
        document = self._open[uri] = Document(uri, version, language, text, self.encoding)
        return document

    def change(self, uri: str, version: int, changes: Iterable[Change]) -> None:
        """Applies a notification's edits. Raises NotOpenError."""
        self.need(uri).change(version, changes)

    def close(self, uri: str) -> None:
        """Forgets a document, if it is open."""
        self._open.pop(uri, None)

    def get(self, uri: str) -> Document | None:
        return self._open.get(uri)

    def need(self, uri: str) -> Document:
        """The open document. Raises NotOpenError."""
        if uri not in self._open:
            raise NotOpenError
        return self._open[uri]

    @property
    def all(self) -> Mapping[str, Document]:
        """The open documents by URI."""
        return self._open

    def uris(self) -> tuple[str, ...]:
        """The open documents, the one that was opened first in front."""
        return tuple(self._open)

    def snapshot(self, uri: str, line: int, character: int) -> Snapshot | None:
        """As Document.snapshot; None if the document is not open."""
        document = self._open.get(uri)
        return None if document is None else document.snapshot(line, character)


def _cut(text: str) -> list[str]:
    """At least one piece, of `CHUNK` code points, or of one more to keep a CR with its LF."""
    pieces = []
    start = 0
    while start < len(text):
        end = start + CHUNK
        if text[end - 1 : end + 1] == "\r\n":
            end += 1
        pieces.append(text[start:end])
        start = end
    return pieces or [""]


def _count_line_ends(text: str) -> int:
    return text.count("\n") + text.count("\r") - text.count("\r\n")


def _units(text: str, encoding: Encoding) -> int:
    """The length in units of an encoding; a lone surrogate has 1 unit of UTF-16, 3 of UTF-8."""
    if encoding == "utf-32" or text.isascii():
        return len(text)
    if encoding == "utf-16":
        return len(text.encode("utf-16-le", "surrogatepass")) // 2
    return len(text.encode("utf-8", "surrogatepass"))


def _characters_within(text: str, units: int, encoding: Encoding) -> int:
    """How many whole characters of the text fit into so many units.

    Each step measures half of the rest, so that all steps together encode the text about once.
    Nothing is decoded: two lone surrogates side by side would become one character.
    """
    if encoding == "utf-32" or text.isascii():
        return min(len(text), units)
    low = 0
    high = min(len(text), units)
    while low < high:
        middle = (low + high + 1) // 2
        size = _units(text[low:middle], encoding)
        if size <= units:
            low = middle
            units -= size
        else:
            high = middle - 1
    return low
