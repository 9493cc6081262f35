"""What a model wrote -> what the user is shown: where it stops, what is cut, what it replaces.

Generation has no token that ends the middle in some families, and in the others the token comes
late: so a `Shaper` reads the text as it streams, says when more is pointless, and shapes what is
there.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from fim.attribution import Match
from fim.context import CursorContext
from fim.formats import FimFormat
from fim.lines import (
    brackets,
    is_closing,
    may_be_closing,
    only_closes,
    open_quote,
    opens_block,
    splits_word,
    width,
)

Extent = Literal["line", "block", "span"]
Multiline = Literal["auto", "always", "never"]
Reason = Literal[
    "end of line",
    "end of block",
    "end of span",
    "blank lines",
    "too long",
    "loops",
    "repeats below",
    "repeats right",
    "replaces right",
    "strange character",
    "half character",
    "sentinel",
    "blank",
    "unsure",
    "attributed",
]

# Control characters, and those that are invisible or turn the direction of text (CVE-2021-42574,
# "Trojan Source").
_STRANGE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
# Decoding leaves U+FFFD for a character whose bytes are not all there yet: at the text's end it may
# still be mended.
_BROKEN = re.compile("\ufffd+(?=[^\ufffd])")
# A small model may write `a=self.a, ` for good. Shorter units, as in `0, 0, 0, 0`, are what people
# write too.
_LOOP = re.compile(r"(?=(([^\n]{8,60}?)\2{3}))")


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A completion to show. Accepting it gives prefix + text + suffix, less the replaced range."""

    text: str  # "" when hidden
    replace: tuple[
        int, int
    ]  # (start, end) in code points from the cursor; (0, 0) is a pure insertion
    confidence: float  # 0..1; see Shaper.shape
    reasons: tuple[Reason, ...]  # the filters that fired, in their order
    hidden: bool
    match: Match | None = None  # where its text, or the text that it continues, also stands

    def attributed(self, match: Match, *, hide: bool) -> "Suggestion":
        """The same, knowing its match; hidden if such suggestions are not wanted."""
        if not hide:
            return replace(self, match=match)
        return Suggestion("", (0, 0), self.confidence, (*self.reasons, "attributed"), True, match)


@dataclass(frozen=True, slots=True)
class _Stop:
    """The text is cut at `cut`. Its first `decision` characters tell so, whatever comes after
    them."""

    decision: int
    cut: int
    reason: Reason


def extent_at(context: CursorContext, *, multiline: Multiline = "auto") -> Extent:
    """Whether to suggest the rest of one line or a block of lines.

    "auto": a block where the cursor's line is blank in front of it or ends in an opener there, and
    nothing but closers stand right of it; one line anywhere else.
    """
    if multiline != "auto":
        return "block" if multiline == "always" else "line"
    before, after = _cursor_line(context)
    if not only_closes(after):
        return "line"
    if not before.strip():
        return "block"
    # `f(|)` asks for arguments, `{|}` for a body.
    opens = before.rstrip().endswith("{") if after.strip() else opens_block(before)
    return "block" if opens else "line"


def _confidence(logprob: float) -> float:
    return 0.0 if math.isnan(logprob) else math.exp(min(logprob, 0.0))


@dataclass(frozen=True, slots=True)
class Shaper:
    """The stop rules and filters for one cursor. Made by `Shaper.at`.

    Once `done(text)` is true, `shape` gives the same for `text` as for every continuation of it.
    """

    extent: Extent
    before: str  # the cursor's line, left and right of the cursor
    after: str
    below: str  # the next line under the cursor that is not blank, or ""
    crlf: bool
    known: frozenset[str]  # strange characters that the user's own text has
    sentinels: tuple[str, ...]
    max_lines: int
    min_confidence: float = 0.0  # suggestions below are hidden
    least_columns: int = 0  # a span ends before a line that is indented less
    closing: str = ""  # the mark that closes a span
    fixed: bool = False  # what is replaced is chosen already: what stands right of the cursor stays

    @classmethod
    def at(
        cls,
        context: CursorContext,
        format: FimFormat | None = None,
        *,
        multiline: Multiline = "auto",
        max_lines: int = 32,
        min_confidence: float = 0.0,
    ) -> "Shaper":
        """The rules at a context's cursor; text that looks like a sentinel of `format` is cut."""
        before, after = _cursor_line(context)
        around = context.prefix + context.suffix
        last_end = context.prefix.rfind("\n")
        nearest_end = last_end if last_end >= 0 else around.find("\n")
        return cls(
            extent=extent_at(context, multiline=multiline),
            before=before,
            after=after,
            below=_line_below(context),
            crlf=around[max(0, nearest_end - 1) : nearest_end] == "\r",
            known=frozenset(_STRANGE.findall(around) + re.findall("\ufffd", around)) - {"\r"},
            sentinels=tuple(
                text for text in (format.texts if format else ()) if text not in around
            ),
            max_lines=max_lines,
            min_confidence=min_confidence,
        )

    @classmethod
    def for_span(
        cls,
        context: CursorContext,
        format: FimFormat | None = None,
        *,
        extent: Extent = "span",
        max_lines: int = 64,
        least_columns: int = 0,
        closing: str = "",
    ) -> "Shaper":
        """The rules for what is written between two given pieces of text: it goes on until the
        model ends it.

        Nothing of the suffix is replaced. extent "line" ends it with its first line, too.
        """
        shaper = cls.at(context, format, max_lines=max_lines)
        return replace(
            shaper, extent=extent, least_columns=least_columns, closing=closing, fixed=True
        )

    def done(self, text: str, logprob: float = 0.0) -> bool:
        """Whether more tokens after `text`, the whole answer so far, are pointless.

        logprob: as in `shape`, where no later token can make the answer surer; else 0.
        """
        return _confidence(logprob) < self.min_confidence or self._stop(_plain(text)) is not None

    def shape(self, text: str, logprob: float = 0.0) -> Suggestion:
        """The suggestion made of an answer.

        logprob: a natural logarithm, how sure the model was of a token of it (lsp_server.generation
        tells of which); its exponential is the confidence.
        """
        text = _plain(text)
        reasons: list[Reason] = []
        # When the stream is over, its last line is a whole one.
        stop = self._stop(text) or self._stop(text + "\n")
        if stop and stop.cut < len(text):
            text = text[: stop.cut]
            reasons.append(stop.reason)
        text, replaced, right = self._meet_right(text)
        if right:
            reasons.append(right)
        # Blanks before what remains of the line part two words; at the line's end they are litter.
        if not self.after[replaced:].strip():
            text = text.rstrip()
        confidence = _confidence(logprob)
        hidden = not text.strip() or confidence < self.min_confidence
        if hidden:
            reasons.append("unsure" if text.strip() else "blank")
            text, replaced = "", 0
        if self.crlf:
            text = text.replace("\n", "\r\n")
        return Suggestion(text, (0, replaced), confidence, tuple(reasons), hidden)

    def _stop(self, text: str) -> _Stop | None:
        """The stop that is decided first. Later text cannot change it, since each rule reads
        forward only."""
        stops = [*self._character_stops(text), *self._line_stops(text)]
        return min(stops, key=lambda stop: stop.decision, default=None)

    def _character_stops(self, text: str) -> Iterator[_Stop]:
        for sentinel in self.sentinels:
            if (start := text.find(sentinel)) >= 0:
                yield _Stop(start + len(sentinel), start, "sentinel")
        if self.closing and (start := text.find(self.closing)) >= 0:
            yield _Stop(start + len(self.closing), start, "end of span")
        for strange in _STRANGE.finditer(text):
            if strange[0] not in self.known:
                yield _Stop(strange.end(), strange.start(), "strange character")
                break
        loops = [loop for loop in _LOOP.finditer(text) if any(map(str.isalpha, loop[2]))]
        if loops:  # what the line said before it began to loop is not to be trusted either
            first = min(loops, key=lambda loop: loop.end(1))
            yield _Stop(first.end(1), max(text.rfind("\n", 0, first.start()), 0), "loops")
        broken = _BROKEN.search(text)
        if broken and "\ufffd" not in self.known:
            yield _Stop(broken.end() + 1, broken.start(), "half character")

    def _line_stops(self, text: str) -> Iterator[_Stop]:
        """The first stop that the text's lines give, if any. The last line is not finished."""
        block: int | None = (
            None  # the least columns of a line in the block; None before the first line
        )
        opened = (
            False  # the cursor's line opens the block, so that a line of its own width is outside
        )
        previous, copies, first_copy_end = "", 0, 0
        content_end = blanks = start = 0
        for number, written in enumerate(text.split("\n")):
            end = start + len(written)
            line = self.before + written if number == 0 else written
            code = line.strip()
            outside = False
            if code and number > 0 and self.extent == "block":
                least = width(self.before) if block is None else block
                outside = width(line) < least or (opened and width(line) == least)
                if outside and not may_be_closing(code[0]):
                    yield _Stop(end - len(written.lstrip()) + 1, start - 1, "end of block")
                    return
            if code and number > 0 and self.extent == "span" and width(line) < self.least_columns:
                yield _Stop(end - len(written.lstrip()) + 1, start - 1, "end of span")
                return
            if end == len(text):
                return

            if written.strip() and line.rstrip() == self.below:
                yield _Stop(end + 1, max(start - 1, 0), "repeats below")
                return
            if self.extent == "line":
                yield _Stop(end + 1, end, "end of line")
                return
            if outside and not (
                opened and width(line) == block and is_closing(line) and opens_block(line)
            ):
                # A closing line belongs to the block, unless what is below says that it is closed
                # further down.
                kept = is_closing(line) and width(self.below) <= width(line)
                yield _Stop(end + 1, end if kept else start - 1, "end of block")
                return
            if code:
                block = width(line) if block is None else block
                opened = opened or (number == 0 and bool(self.before.strip()) and opens_block(line))
                # Several blocks may end one after another: in a span their indentation tells them
                # apart.
                code = line.rstrip() if self.extent == "span" else code
                copies = copies + 1 if code == previous else 1
                first_copy_end = end if copies == 1 else first_copy_end
                previous, content_end, blanks = code, end, 0
            else:
                blanks += 1
            if copies == 3:
                yield _Stop(end + 1, first_copy_end, "loops")
                return
            if blanks == (3 if self.extent == "span" else 2):
                yield _Stop(end + 1, content_end, "blank lines")
                return
            if number + 1 == self.max_lines:
                yield _Stop(end + 1, end, "too long")
                return
            start = end + 1

    def _meet_right(self, text: str) -> tuple[str, int, Reason | None]:
        """(text, replaced, reason): fit the text to the rest of the cursor's line, so that nothing
        stands twice.

        A closer right of the cursor counts as written twice only when the text's own closes
        something that was opened before the cursor: `g(x)` in front of `)` stays whole.
        """
        rest = self.after.strip()
        if not rest:
            return text, 0, None
        blanks = len(self.after) - len(self.after.lstrip())
        depths, closers = brackets(text, open_quote(self.before))
        for size in range(min(len(rest), len(text)), 0, -1):
            tail = len(text) - size
            if not text.endswith(rest[:size]) or depths[tail]:
                continue
            if splits_word(text, tail) or splits_word(rest, size):
                continue
            if "\n" in text[:tail] and not text[:tail].rpartition("\n")[2].strip():
                # A closer on a line of its own: dropped, it would leave the one on the right at a
                # wrong place.
                return (
                    (text[:tail], 0, "repeats right")
                    if self.fixed
                    else (text, blanks + size, "replaces right")
                )
            text = text[:tail]
            return text.rstrip(" \t") if blanks else text, 0, "repeats right"

        if self.fixed:
            first = next((index for index in closers if text[index] == rest[0]), len(text))
            return (text[:first], 0, "repeats right") if first < len(text) else (text, 0, None)
        met = 0  # how much of `rest` the text writes in its course
        for index in closers:
            if met < len(rest) and text[index] == rest[met]:
                while index < len(text) and met < len(rest) and text[index] == rest[met]:
                    index, met = index + 1, met + 1
        return (text, blanks + met, "replaces right") if met else (text, 0, None)


def _cursor_line(context: CursorContext) -> tuple[str, str]:
    """The cursor's line, left and right of the cursor, without its end."""
    before = context.prefix[context.prefix.rfind("\n") + 1 :]
    after = context.suffix.partition("\n")[0].removesuffix("\r")
    return before, after


def _line_below(context: CursorContext) -> str:
    """The next line under the cursor's that is not blank, without its end; "" where there is
    none."""
    under = context.suffix.partition("\n")[2]
    code = under.lstrip()
    start = under.rfind("\n", 0, len(under) - len(code)) + 1
    return under[start:].partition("\n")[0].rstrip() if code else ""


def _plain(text: str) -> str:
    r"""The text with \n line ends. A \r at the end may be half of one."""
    return text.replace("\r\n", "\n").removesuffix("\r")
