"""Documentation: a docstring inside of a definition, or a comment above it."""

import re
from dataclasses import replace

from fim.editing.fitting import Target, limits
from fim.editing.languages import Language
from fim.editing.line_offsets import (
    first_on_line,
    indentation,
    line_above,
    line_at,
    line_end,
    line_start,
    newline_at,
)
from fim.editing.outline import Definition, inner_indent

_TRIPLE = '"""'
_BLANKS_AND_COMMENTS = re.compile(r"(?:[ \t\ufeff]*(?:#[^\n]*)?\r?\n)*[ \t\ufeff]*")
_STRING = re.compile(
    r"(?P<prefix>[rRuU]?)(?P<quotes>\"{3}|'{3})(?P<words>(?:\\.|[^\\])*?)(?P=quotes)"
    r"|[rRuU]?(?P<quote>[\"'])(?:\\.|[^\\\n])*?(?P=quote)",
    re.DOTALL,
)
_REST_OF_STATEMENT = re.compile(r"[ \t]*(?:[#;].*)?\r?(?:\n|\Z)")

# Lines between documentation and definition; and comments that are meant for a machine.
_ATTRIBUTE = re.compile(r"#!?\[|@\w|//[a-z]+:|\[[A-Z]")
_DIRECTIVE = re.compile(r"#!|--\[|//[a-z]+:")


def docstring(text: str, language: Language, definition: Definition) -> Target | None:
    """The docstring of a function or class of Python."""
    if definition.inner is None:
        return None
    header, end = definition.inner
    indent = inner_indent(text, language, definition)
    label = f"the docstring of {definition.called}"
    string = string_at(text, header, end)
    if string:
        return _existing(text, string, indent, label)
    line_break = newline_at(text, header) + indent
    start = header
    stop = line_end(text, header)
    tail = _TRIPLE
    rest = text[header:stop].lstrip()
    if rest.startswith("#"):
        start = stop
    elif rest:  # the body is on the header's line: it moves below
        stop -= len(rest)
        tail += line_break
    return _target(text, start, stop, line_break + _TRIPLE, tail, label, indent, _TRIPLE)


def module_docstring(text: str, offset: int) -> Target | None:
    """The docstring of the module, for a cursor above the second statement."""
    label = "the docstring of the module"
    string = string_at(text, 0, len(text))
    top = line_start(text, _after_comments(text, 0, len(text)))
    if offset > line_end(text, string.end() if string else top):
        return None
    if string:
        return _existing(text, string, "", label)
    newline = newline_at(text, 0)
    if top == 0 and text.startswith("\ufeff"):
        top = 1
    lead = _TRIPLE
    tail = _TRIPLE + newline
    rest = text[top:]
    if rest.strip() and not rest.startswith("#"):
        tail += newline
    else:
        top = len(text)
        if text and not text.endswith(("\n", "\ufeff")):
            lead = newline + _TRIPLE
    return _target(text, top, top, lead, tail, label, "", _TRIPLE)


def string_at(text: str, start: int, end: int) -> re.Match[str] | None:
    """The string that is the first statement after `start`; None when that is another one."""
    string = _STRING.match(text, _after_comments(text, start, end), end)
    if string and _REST_OF_STATEMENT.match(text, string.end()):
        return string
    return None


def _after_comments(text: str, start: int, end: int) -> int:
    skipped = _BLANKS_AND_COMMENTS.match(text, start, end)
    return skipped.end() if skipped else start


def _existing(text: str, string: re.Match[str], indent: str, label: str) -> Target:
    """A docstring that is there, with its quotes and the layout of its first line."""
    start, end = string.span()
    quotes = string["quotes"] or _TRIPLE
    lead = (string["prefix"] or "") + quotes
    tail = quotes
    first, line_break, _ = (string["words"] or "").partition("\n")
    if line_break and not first.strip():
        line_break = newline_at(text, start) + indent
        lead += line_break
        tail = line_break + tail
    return _target(text, start, end, lead, tail, label, indent, quotes)


def comment_above(text: str, language: Language, definition: Definition) -> Target | None:
    """The comment that documents a definition, in the languages with known marks."""
    if not language.doc_marks or not first_on_line(text, definition.start):
        return None
    top = line_start(text, definition.start)
    while top and _ATTRIBUTE.match(text[line_above(text, top) : top].lstrip()):
        top = line_above(text, top)
    indent = indentation(text, top)
    newline = newline_at(text, top)
    label = f"the documentation of {definition.called}"
    mark, existing = _comment_over(text, top, language)
    start, end = existing or (top + len(indent), top + len(indent))
    below = "" if existing else newline + indent
    if mark == "/**":
        lead = f"/**{newline}{indent} * "
        tail = f"{newline}{indent} */{below}"
        target = _target(text, start, end, lead, tail, label, indent, closing="*/")
        return replace(target, line_prefix=" * ")
    target = _target(text, start, end, mark + " ", below, label, indent, closing="")
    return replace(target, line_prefix=mark + " ")


def _comment_over(text: str, top: int, language: Language) -> tuple[str, tuple[int, int] | None]:
    """(mark, range) of the comment that ends on the line above `top`; the mark of a new comment and
    None where no such comment documents."""
    if top:
        end = line_end(text, line_above(text, top))
        for mark in language.doc_marks:
            if mark == "/**":
                found = _block_comment(text, end, "/*" if language.block_documents else mark)
            else:
                found = _line_comments(text, end, mark)
            if found:
                return mark, found
    return language.doc_marks[0], None


def _block_comment(text: str, end: int, opener: str) -> tuple[int, int] | None:
    """The comment that ends the line at `end` with `*/` and has its lines for itself."""
    stop = line_start(text, end) + len(line_at(text, end).rstrip())
    start = text.rfind("/*", 0, stop)
    if start < 0 or text.find("*/", start) != stop - 2:
        return None
    if not first_on_line(text, start) or not text.startswith(opener, start):
        return None
    return start, stop


def _line_comments(text: str, end: int, mark: str) -> tuple[int, int] | None:
    """The run of lines with the mark, up to the line that ends at `end`."""
    start = line_start(text, end)
    if not _has_words(text, start, mark):
        return None
    while start and _has_words(text, line_above(text, start), mark):
        start = line_above(text, start)
    return start + len(indentation(text, start)), end


def _has_words(text: str, start: int, mark: str) -> bool:
    """Whether the line that starts there is a comment that is meant for people."""
    line = line_at(text, start).strip()
    return line.startswith(mark) and not _DIRECTIVE.match(line)


def _target(
    text: str, start: int, end: int, lead: str, tail: str, label: str, indent: str, closing: str
) -> Target:
    extent, lines = limits("docstring", text, start, end)
    newline = newline_at(text, start)
    return Target(
        "docstring", start, end, lead, tail, label, extent, lines, newline, indent, closing
    )
