"""Functions, classes and their bodies in a text, as far as its lines and their indentation tell
them."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from fim.editing.line_offsets import indentation, line_at, line_end, line_start, lines_below
from fim.lines import opens_block, width

# Languages whose text has no functions, whatever its lines look like.
_PROSE = frozenset(
    " markdown plaintext text latex tex bibtex restructuredtext asciidoc git-commit git-rebase "
    "diff log json jsonc "
    "json5 jsonl yaml toml ini properties dockercompose xml xsl csv tsv css scss sass less".split(
        " "
    )
)
_CONTROL = re.compile(
    r"\W*(?:if|else|elif|elsif|for|foreach|while|until|unless|switch|case|match|when|with|try"
    r"|catch|except|finally|do"
    r"|loop|select|begin|return|class|struct|enum|interface|namespace|module|impl|trait|package"
    r"|import|use|guard|lock"
    r"|using|synchronized)\b"
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
_END_LANGUAGES = frozenset({"lua", "ruby", "julia", "crystal"})
_WORD_HEADER = re.compile(r"\s*(?:local\s+)?(?:function|def)\b")
_MOST_LINES_UP = 2_000
_MOST_HEADER_LINES = 50
_NEAR = 20_000  # code points
_STEPS = {"go": "\t"} | dict.fromkeys(
    "javascript javascriptreact typescript typescriptreact lua ruby shellscript".split(), "  "
)


@dataclass(frozen=True, slots=True)
class Definition:
    """A function, class or the like. Offsets are in code points.

    inner: what stands between the end of its header (behind `{`, `:`, the parameters) and what
    closes it; None for one without a body. Where only indentation closes it, inner ends with the
    last line's text.
    """

    name: str
    start: int  # of the declaration as a whole, with decorators, `export`, `template`
    inner: tuple[int, int] | None
    closer: str  # "}", "end"; "" where indentation closes
    closed: bool = True  # whether the text has the closer
    expression: bool = False  # the body is one expression: `=> x`
    type: bool = False  # a class and its like: it has documentation but no body to write
    nameless: bool = (
        False  # a function that is handed over where it stands: it has no documentation
    )

    @property
    def called(self) -> str:
        """For a person."""
        return f"`{self.name}`" if self.name else "this type" if self.type else "this function"


def closed_by(
    text: str, bare: Definition, start: int, closer: int | None, *, broken: bool
) -> Definition:
    """With the inside from `start` to `closer`, where the tree has one. A broken tree's may be
    another's: there the indentation decides.
    """
    if closer is not None and not broken:
        return replace(bare, inner=(start, closer))
    columns = min(width(line_at(text, bare.start)), width(line_at(text, start)))
    end = indented_end(text, start, columns)
    if closer is not None and end >= closer:
        return replace(bare, inner=(start, closer))
    for below, line in lines_below(text, end):
        if line.strip():
            at = below + len(line) - len(line.lstrip())
            if width(line) == columns and bare.closer and text.startswith(bare.closer, at):
                return replace(bare, inner=(start, at))
            break
    return replace(bare, inner=(start, end), closed=not bare.closer)


def indented_end(text: str, header: int, columns: int) -> int:
    """Where the text of the lines under a header ends that are indented by more than its
    columns."""
    end = line_end(text, header)
    for start, line in lines_below(text, header):
        if width(line) > columns:
            end = start + len(line)
        elif line.strip():
            break
    return end


def by_indentation(text: str, language: str, offset: int) -> Iterator[Definition]:
    """The functions whose headers stand above, indented less and opening a block, from the inside
    out."""
    if language in _PROSE:
        return
    start, line = line_start(text, offset), line_at(text, offset)
    columns = width(line)
    if not line.strip():
        # A blank line belongs to the one above, deeper by a step where that opens a block.
        above = len(text[:start].rstrip())
        start, line = line_start(text, above), line_at(text, above)
        columns = columns or width(line) + _opens(line, language)
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
        start = line_start(text, start - 1)
        line = line_at(text, start)


def _definition(text: str, start: int, end: int, language: str) -> Definition:
    """The definition whose header goes from the line at `start` to `end`."""
    first, last = line_at(text, start), line_at(text, end)
    found = _NAME.search(first)
    bare = Definition(
        name=(found[1] or found[2]) if found else "",
        start=start + len(indentation(text, start)),
        inner=None,
        closer="}"
        if last.rstrip().endswith("{")
        else "end"
        if _closes_with_end(last, language)
        else "",
        type=language == "python" and first.lstrip().startswith("class"),
    )
    return closed_by(text, bare, end, None, broken=True)


def _opens(line: str, language: str) -> bool:
    """Whether a line as a whole opens a block: not the arguments of a call."""
    line = line.rstrip()
    if _closes_with_end(line, language):
        return True
    return (
        opens_block(line) and not line.endswith(("(", "[")) and line.count("(") == line.count(")")
    )


def _closes_with_end(line: str, language: str) -> bool:
    return bool(
        _WORD_OPENER.search(line.rstrip())
        or (language in _END_LANGUAGES and _WORD_HEADER.match(line))
    )


def _begins_function(line: str, language: str) -> bool:
    if language == "python":
        return bool(_PYTHON_HEADER.match(line))
    return bool(_FUNCTION.search(line)) and not _CONTROL.match(line)


def _header_start(text: str, start: int, line: str, language: str) -> int | None:
    """Where the header begins whose last line this is, if it is one."""
    if _begins_function(line, language):
        return start if _opens(line, language) else None
    if line.strip() != "{" and not (line.lstrip().startswith(")") and opens_block(line)):
        return None
    # `{` on a line of its own, or the end of a header of several lines: its beginning has the same
    # width.
    for _ in range(_MOST_HEADER_LINES):
        if start == 0:
            return None
        start = line_start(text, start - 1)
        above = line_at(text, start)
        if not above.strip() or width(above) < width(line):
            return None
        if width(above) == width(line):
            return start if _begins_function(above, language) else None
    return None


def inner_indent(text: str, language: str, definition: Definition) -> str:
    """The indentation of a definition's inside: that of its first line, or one step more than the
    outside."""
    above = indentation(text, definition.start)
    header, end = definition.inner or (definition.start, definition.start)
    for start, line in lines_below(text, header):
        if start >= end:
            break
        if line.strip():
            if width(line) > width(above + "x"):
                return indentation(text, start)
            break
    return above + _step(text, language, definition.start)


def _step(text: str, language: str, at: int) -> str:
    """One step of indentation, as the text around has it."""
    own = indentation(text, at)
    if own.startswith("\t"):
        return "\t"
    steps: Counter[str] = Counter()
    previous = ""
    for line in text[line_start(text, max(0, at - _NEAR)) : at + _NEAR].split("\n"):
        if line.strip():
            blanks = line[: len(line) - len(line.lstrip(" \t"))]
            deeper = blanks.removeprefix(previous) if blanks.startswith(previous) else ""
            if (deeper == "\t" and not own) or (1 < len(deeper) <= 8 and not deeper.strip(" ")):
                steps[deeper] += 1
            previous = blanks
    usual = _STEPS.get(language, "    ")
    return max(
        steps, key=lambda step: steps[step], default="    " if own and usual == "\t" else usual
    )


def most_lines(text: str, start: int, end: int, least: int) -> int:
    """How many lines may be written where these are now."""
    return max(least, 2 * (text.count("\n", start, end) + 1))
