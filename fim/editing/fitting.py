"""A range of text to write anew, and how a model's answer is made to fit it."""

import re
from dataclasses import dataclass
from typing import Literal

from fim.lines import width
from fim.postprocess import Extent

Kind = Literal["selection", "body", "docstring"]


@dataclass(frozen=True, slots=True)
class Target:
    """A range to write anew. Offsets are in code points; the new text of the range is `fit` of an
    answer."""

    kind: Kind
    start: int
    end: int
    lead: str
    tail: str
    label: str  # for a person: "the body of `fib`"
    extent: Extent  # "line" where a line end in the answer would break something
    max_lines: int  # more than this is not wanted
    newline: str  # the file's line end
    indent: str = ""  # what each further line of the answer begins with
    line_prefix: str = ""  # what stands behind that: the mark of a comment's line
    closing: str = ""  # the mark that ends the answer wherever the model writes it

    @property
    def least_columns(self) -> int:
        """The indentation below which a line is no longer part of the answer: for the body of a
        function."""
        return width(self.indent) if self.kind == "body" else 0

    def fit(self, answer: str) -> str:
        """The range's new text: lead + answer + tail, the answer cut at its closing mark and made
        to fit in."""
        answer = re.sub(r"\r\n?", "\n", answer)
        tail = self.tail
        if self.kind == "docstring":
            answer = self._commented(answer) if self.line_prefix else self._quoted(answer)
            # Quotes must not meet, and those of several lines stand on a line of their own.
            if not self.line_prefix and ("\n" in answer or answer[-1:] == self.closing[:1]):
                tail = tail if tail[:1] in "\r\n" else self.newline + self.indent + tail
        elif self.kind == "body":
            answer = answer.strip()
        else:
            if self.lead:
                answer = answer.lstrip("\n")
                # What is a line's indentation already is not written twice.
                answer = answer.lstrip(" \t") if self.lead[-1:] in " \t" else answer
            answer = answer.rstrip() if self.tail[:1] in ("\r", "\n") else answer
        return self.lead + answer.replace("\n", self.newline) + tail

    def _quoted(self, answer: str) -> str:
        """The words of a docstring, the further lines indented at least as the first."""
        answer = (
            answer.strip()
            .removeprefix(self.closing)
            .partition(self.closing)[0]
            .strip()
            .rstrip("\\")
        )
        first, *more = answer.split("\n")
        common = _common_blanks(more)
        if width(common + "x") < width(self.indent + "x"):
            more = [self.indent + line[len(common) :] if line.strip() else "" for line in more]
        return "\n".join(line.rstrip() for line in (first, *more))

    def _commented(self, answer: str) -> str:
        """The words of a comment, each further line behind the mark."""
        mark = self.line_prefix.strip()
        if self.closing:
            answer = answer.strip().removeprefix("/**").partition(self.closing)[0]
        first, *more = answer.strip().split("\n")
        marked = bool(more) and more[0].lstrip().startswith(mark)
        words = [first.removeprefix(mark).strip()]
        common = _common_blanks(more)
        for line in more:
            if marked and not line.lstrip().startswith(mark):
                if self.closing and not line.strip():
                    continue
                break  # code begins
            bare = (
                line.lstrip().removeprefix(mark).removeprefix(" ")
                if marked
                else line[len(common) :]
            )
            words.append(bare.rstrip())
        while len(words) > 1 and not words[-1]:
            words.pop()
        return "\n".join(
            [
                words[0],
                *((self.indent + self.line_prefix + line).rstrip(" \t") for line in words[1:]),
            ]
        )


def _common_blanks(lines: list[str]) -> str:
    """The indentation that all lines share which are not blank."""
    found = [line[: len(line) - len(line.lstrip())] for line in lines if line.strip()]
    # What the first and the last in their order share, all between them share.
    low, high = (min(found), max(found)) if found else ("", "")
    size = next((index for index, char in enumerate(low) if char != high[index]), len(low))
    return low[:size]
