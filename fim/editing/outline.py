"""Definitions of functions and types, and how they are found by indentation.

This is for languages without a grammar and for texts that a grammar cannot read. The rules are
rough: a header is a line that opens a block and looks like a function's in any common language.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from fim.editing.languages import Language
from fim.editing.line_offsets import (
    indentation,
    indentation_step,
    indented_end,
    line_above,
    line_at,
    line_start,
    next_line,
)
from fim.lines import opens_block, width

_CONTROL = re.compile(
    r"\W*(?:if|else|elif|elsif|for|foreach|while|until|unless|switch|case|match|when|with|try"
    r"|catch|except|finally|do|loop|select|begin|return|class|struct|enum|interface|namespace"
    r"|module|impl|trait|package|import|use|guard|lock|using|synchronized)\b"
)
_FUNCTION = re.compile(
    r"\b(?:def|defp|fn|fun|func|function|sub|proc|procedure|method|macro|constructor|init)\b"
    r"|[\w>\]]\s*\("
)
_NAME = re.compile(
    r"\b(?:def|defp|fn|fun|func|function|sub|proc|procedure|method|macro"
    r"|class)\s+(?:\([^()]*\)\s*)?([\w.:$]+)"
    r"|(\w+)\s*(?:<[^<>]*>)?\("
)
_PYTHON_HEADER = re.compile(r"\s*(?:(?:async\s+)?def|class)\b")
_WORD_OPENER = re.compile(r"\b(?:do|begin)$")
_WORD_HEADER = re.compile(r"\s*(?:local\s+)?(?:function|def)\b")
_MOST_LINES_UP = 2_000
_MOST_HEADER_LINES = 50


@dataclass(frozen=True, slots=True)
class Definition:
    """A function, a class or the like. Offsets are in code points.

    inner: the range between the end of its header (after `{`, `:`, the parameters) and its closer;
    None when it has no body. Where indentation closes it, the range ends with the text of its last
    line.
    """

    name: str
    start: int  # of the whole declaration, with decorators, `export`, `template`
    inner: tuple[int, int] | None
    closer: str  # "}", ")", "end"; "" where indentation closes it
    closed: bool = True  # whether the text has the closer
    expression: bool = False  # whether the body is one expression: `=> x`
    type: bool = False  # a class or the like: it has documentation but no body to write
    nameless: bool = False  # a function that is an argument or the like: it has no documentation

    @property
    def called(self) -> str:
        """Its name for a person."""
        if self.name:
            return f"`{self.name}`"
        return "this type" if self.type else "this function"


def by_indentation(text: str, language: Language, offset: int) -> Iterator[Definition]:
    """The definitions around `offset`, from the inside out: their headers stand above, are indented
    less and open a block."""
    if language.prose:
        return
    start = line_start(text, offset)
    line = line_at(text, offset)
    columns = width(line)
    if not line.strip():
        # A blank line belongs to the one above, deeper by a step where that opens a block.
        above = len(text[:start].rstrip())
        start = line_start(text, above)
        line = line_at(text, above)
        if columns == 0:
            columns = width(line) + _opens(line, language)
    elif _begins_function(line, language) and _opens(line, language):
        columns += 1
    for _ in range(_MOST_LINES_UP):
        if line.strip() and width(line) < columns:
            columns = width(line)
            header = _header_start(text, start, line, language)
            if header is not None:
                yield _definition(text, header, start + len(line.rstrip()), language)
        if start == 0 or columns == 0:
            return
        start = line_above(text, start)
        line = line_at(text, start)


def _definition(text: str, start: int, end: int, language: Language) -> Definition:
    """The definition with a header from the line at `start` to `end`."""
    first = line_at(text, start)
    last = line_at(text, end)
    closer = ""
    if last.rstrip().endswith("{"):
        closer = "}"
    elif _closes_with_end(last, language):
        closer = "end"
    found = _NAME.search(first)
    bare = Definition(
        name=(found[1] or found[2]) if found else "",
        start=start + len(indentation(text, start)),
        inner=None,
        closer=closer,
        type=language.indented and first.lstrip().startswith("class"),
    )
    return closed_by(text, bare, end, None, broken=True)


def _opens(line: str, language: Language) -> bool:
    """Whether a line as a whole opens a block, and not the arguments of a call."""
    line = line.rstrip()
    if _closes_with_end(line, language):
        return True
    if line.endswith(("(", "[")) or line.count("(") != line.count(")"):
        return False
    return opens_block(line)


def _closes_with_end(line: str, language: Language) -> bool:
    """Whether `end` closes the block that the line opens."""
    if _WORD_OPENER.search(line.rstrip()):
        return True
    return language.closer == "end" and bool(_WORD_HEADER.match(line))


def _begins_function(line: str, language: Language) -> bool:
    if language.indented:
        return bool(_PYTHON_HEADER.match(line))
    return bool(_FUNCTION.search(line)) and not _CONTROL.match(line)


def _header_start(text: str, start: int, line: str, language: Language) -> int | None:
    """The start of the header that the line at `start` ends; None when it ends no header."""
    if _begins_function(line, language):
        return start if _opens(line, language) else None
    ends_header = line.lstrip().startswith(")") and opens_block(line)
    if not ends_header and line.strip() != "{":
        return None
    # Such a header has several lines, and its first one is indented like its last.
    for _ in range(_MOST_HEADER_LINES):
        if start == 0:
            return None
        start = line_above(text, start)
        above = line_at(text, start)
        if not above.strip() or width(above) < width(line):
            return None
        if width(above) == width(line):
            return start if _begins_function(above, language) else None
    return None


def closed_by(
    text: str, bare: Definition, start: int, closer: int | None, *, broken: bool
) -> Definition:
    """The definition with its inside, which begins at `start`.

    closer: the offset of its closer, where the syntax tree has one. In a broken tree that may be
    the closer of another definition; then the indentation decides.
    """
    if closer is not None and not broken:
        return replace(bare, inner=(start, closer))
    columns = min(width(line_at(text, bare.start)), width(line_at(text, start)))
    end = indented_end(text, start, columns)
    if closer is not None and end >= closer:
        return replace(bare, inner=(start, closer))
    below, line = next_line(text, end)
    found = below + len(line) - len(line.lstrip())
    if bare.closer and width(line) == columns and text.startswith(bare.closer, found):
        return replace(bare, inner=(start, found))
    return replace(bare, inner=(start, end), closed=not bare.closer)


def inner_indent(text: str, language: Language, definition: Definition) -> str:
    """The indentation of a definition's inside: that of its first line, or one step more than the
    outside."""
    outside = indentation(text, definition.start)
    if definition.inner:
        header, end = definition.inner
        start, line = next_line(text, header)
        if start < end and width(line) > width(outside + "x"):
            return indentation(text, start)
    return outside + indentation_step(text, definition.start, language.step)
