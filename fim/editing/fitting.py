"""A range of text to rewrite or fill, and how a model's answer is made to fit it."""

import re
from dataclasses import dataclass
from typing import Literal

from fim.lines import width
from fim.shaping.bounds import Extent

Kind = Literal["selection", "body", "docstring"]
# An answer may always have this many lines, however short the range is.
_LEAST_LINES: dict[Kind, int] = {"selection": 16, "body": 32, "docstring": 24}


@dataclass(frozen=True, slots=True)
class Target:
    """A range to rewrite or fill, in code points. `fit` makes its new text from an answer."""

    kind: Kind
    start: int
    end: int
    lead: str  # the new text begins with this
    tail: str  # and ends with this; the answer stands between
    label: str  # for a person: "the body of `fib`"
    extent: Extent  # "line" where a line end in the answer would break something
    max_lines: int  # of an answer
    newline: str  # the file's line end
    indent: str = ""  # of the answer's lines after the first
    closing: str = ""  # the mark that ends the answer wherever the model writes it
    line_prefix: str = ""  # the mark that follows the indentation in a comment of several lines

    @property
    def least_columns(self) -> int:
        """The indentation of a body: a line of fewer columns ends the answer. 0 for other kinds."""
        return width(self.indent) if self.kind == "body" else 0

    def fit(self, answer: str) -> str:
        """The range's new text: lead + answer + tail, with the answer cut at its closing mark."""
        answer = re.sub(r"\r\n?", "\n", answer)
        tail = self.tail
        if self.kind == "selection":
            answer = self._fit_selection(answer)
        elif self.kind == "body":
            answer = answer.strip()
        elif self.line_prefix:
            answer = self._fit_comment(answer)
        else:
            answer = self._fit_docstring(answer)
            # Quotes must not meet, and those of several lines stand on a line of their own.
            crowded = "\n" in answer or answer[-1:] == self.closing[:1]
            if crowded and not tail.startswith(("\r", "\n")):
                tail = self.newline + self.indent + tail
        return self.lead + answer.replace("\n", self.newline) + tail

    def _fit_selection(self, answer: str) -> str:
        if self.lead:
            answer = answer.lstrip("\n")
        if self.lead.endswith((" ", "\t")):
            answer = answer.lstrip(" \t")  # lead is the line's indentation already
        if self.tail.startswith(("\r", "\n")):
            answer = answer.rstrip()
        return answer

    def _fit_docstring(self, answer: str) -> str:
        """The words of a docstring, with further lines indented at least like the first."""
        words = answer.strip().removeprefix(self.closing).partition(self.closing)[0]
        first, *more = words.strip().rstrip("\\").split("\n")
        common = _common_blanks(more)
        fitted = first.rstrip()
        for line in more:
            if line.strip() and width(common + "x") < width(self.indent + "x"):
                line = self.indent + line[len(common) :]
            fitted += "\n" + line.rstrip()
        return fitted

    def _fit_comment(self, answer: str) -> str:
        """The words of a comment, with the mark before each further line."""
        mark = self.line_prefix.strip()
        if self.closing:
            answer = answer.strip().removeprefix("/**").partition(self.closing)[0]
        first, *more = answer.strip().split("\n")
        words = [first.removeprefix(mark).strip()]
        if more and more[0].lstrip().startswith(mark):
            words += self._without_marks(more, mark)
        else:
            common = _common_blanks(more)
            words += [line[len(common) :].rstrip() for line in more]
        while len(words) > 1 and not words[-1]:
            words.pop()
        fitted = words[0]
        for line in words[1:]:
            fitted += "\n" + (self.indent + self.line_prefix + line).rstrip(" \t")
        return fitted

    def _without_marks(self, lines: list[str], mark: str) -> list[str]:
        """The words of the lines that the model marked as comment; code may follow them."""
        words = []
        for line in lines:
            bare = line.lstrip()
            if bare.startswith(mark):
                words.append(bare.removeprefix(mark).removeprefix(" ").rstrip())
            elif bare or not self.closing:
                break
        return words


def limits(
    kind: Kind, text: str, start: int, end: int, *, one_line: bool = False
) -> tuple[Extent, int]:
    """(extent, max_lines) of the text to write in place of text[start:end]."""
    if one_line:
        return "line", 1
    return "span", max(_LEAST_LINES[kind], 2 * (text.count("\n", start, end) + 1))


def _common_blanks(lines: list[str]) -> str:
    """The indentation that all lines share, apart from blank ones."""
    found = [line[: len(line) - len(line.lstrip())] for line in lines if line.strip()]
    common = min(found, default="")
    while not all(blanks.startswith(common) for blanks in found):
        common = common[:-1]
    return common
