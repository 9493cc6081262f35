"""Definitions by indentation: for languages without a grammar, and for texts that one cannot read.

The rules are rough: a header is a line that looks like a function's in any common language and
opens a block.
"""

import re
from collections.abc import Iterator

from fim.editing.definition import Definition, closed_by
from fim.editing.languages import Language
from fim.editing.line_offsets import indentation, line_above, line_at, line_start
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
