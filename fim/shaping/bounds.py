"""What the filters of an answer know: the text around the cursor, and the answer as lines."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from fim.shaping.quotes import Open

Extent = Literal["line", "block", "span"]
# Why a suggestion was cut or hidden, or what it replaces.
Reason = Literal[
    "sentinel",
    "strange character",
    "half character",
    "chat",
    "loops",
    "repeats below",
    "repeats above",
    "defined above",
    "dismissed",
    "end of line",
    "end of block",
    "end of span",
    "closed below",
    "unreachable",
    "blank lines",
    "too long",
    "indentation",
    "repeats right",
    "replaces right",
    "does not fit",
    "breaks syntax",
    "blank",
    "unsure",
    "attributed",
    "secret",
    "secret here",
    "secret file",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The text around one cursor, and what was asked for there, as far as the filters read it."""

    extent: Extent
    one_line: bool = False  # whether extent "line" means no more than the cursor's line
    prefix: str = ""  # of the context, with its missing indentation
    suffix: str = ""
    whole: bool = False  # whether the prefix begins where the text does
    language: str = ""
    before: str  # the cursor's line left of the cursor
    after: str  # the cursor's line right of the cursor
    below: tuple[str, ...] = ()  # the next lines under the cursor that are not blank
    opened: tuple[Open, ...] = ()  # brackets and strings at the cursor
    spare: int | None = None  # how many of them the suffix leaves open; None if that is unclear
    known: frozenset[str]  # strange characters that the user's own text has
    sentinels: tuple[str, ...]
    max_lines: int
    least_columns: int  # a span ends before a line that is indented less
    closing: str  # the mark that closes a span, or ""
    min_confidence: float = 0.0  # an answer ends where the model is less sure than that
    off: frozenset[str] = frozenset()  # filters that are left out, to measure what they are worth

    @property
    def in_text(self) -> bool:
        """Whether the cursor stands in a string or a comment."""
        return bool(self.opened) and self.opened[-1].kind != "bracket"


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


class Answer(NamedTuple):
    """An answer as far as it has come."""

    text: str
    lines: list[Line]  # the last one may still grow
    whole: bool  # whether nothing more comes: then the last line is an empty one

    @classmethod
    def read(cls, text: str, before: str, *, whole: bool = False) -> "Answer":
        """before: what stands left of the cursor on its line."""
        if whole:
            text += "\n"
        lines: list[Line] = []
        start = 0
        for written in text.split("\n"):
            end = start + len(written)
            line = written if lines else before + written
            lines.append(Line(start, end, line, line.strip()))
            start = end + 1
        return cls(text, lines, whole)

    @property
    def written(self) -> list[Line]:
        """The lines that are complete and not blank."""
        return [line for line in self.lines[:-1] if self.text[line.start : line.end].strip()]
