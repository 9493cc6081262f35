"""Where documentation is written: a docstring inside of a definition, or a comment above it."""

import re

from fim.editing.fitting import Target
from fim.editing.line_offsets import indentation, line_at, line_end, line_start, newline_at
from fim.editing.outline import Definition, inner_indent, most_lines

_TRIPLE = '"""'
_BLANKS_AND_COMMENTS = re.compile(r"(?:[ \t\ufeff]*(?:#[^\n]*)?\r?\n)*[ \t\ufeff]*")
_QUOTES = re.compile(r"[rRuU]?(\"\"\"|'''|\"|')")
_REST_OF_STATEMENT = re.compile(r"[ \t]*(?:[#;].*)?\r?(?:\n|\Z)")

# How documentation is marked above a definition: first the mark of what is new; the others are
# known where they stand.
_MARKS = {
    **dict.fromkeys(
        "javascript javascriptreact typescript typescriptreact java php".split(), ("/**",)
    ),
    **dict.fromkeys("c cpp csharp".split(), ("/**", "///")),
    "rust": ("///",),
    "go": ("//",),
    "lua": ("---", "--"),
    "ruby": ("#",),
    "shellscript": ("#",),
}
_PLAIN_BLOCKS = frozenset({"c", "cpp"})  # here `/* … */` documents, too
# Lines between documentation and definition; and comments that say something to a machine.
_ATTRIBUTE = re.compile(r"#!?\[|@\w|//[a-z]+:|\[[A-Z]")
_DIRECTIVE = re.compile(r"#!|--\[|//[a-z]+:")


def docstring(text: str, definition: Definition) -> Target | None:
    """The docstring of a function or class of Python."""
    if definition.inner is None:
        return None
    header, end = definition.inner
    indent = inner_indent(text, "python", definition)
    label = f"the docstring of {definition.called}"
    if string := string_at(text, header, end):
        return _quoted(text, string, indent, label)
    line_break = newline_at(text, header) + indent
    stop = line_end(text, header)
    rest = text[header:stop].lstrip()
    if not rest or rest.startswith("#"):
        start, tail = (stop if rest else header), _TRIPLE
    else:  # the body is on the header's line: it moves below
        start, stop, tail = header, stop - len(rest), _TRIPLE + line_break
    return _documentation(text, start, stop, line_break + _TRIPLE, tail, label, indent, _TRIPLE)


def module_docstring(text: str, offset: int) -> Target | None:
    """The docstring of the module, for a cursor above the second statement."""
    label = "the docstring of the module"
    string = string_at(text, 0, len(text))
    skipped = _BLANKS_AND_COMMENTS.match(text)
    top = line_start(text, skipped.end() if skipped else 0)
    if offset > line_end(text, string[1] if string else top):
        return None
    if string:
        return _quoted(text, string, "", label)
    newline = newline_at(text, 0)
    top = 1 if top == 0 and text.startswith("\ufeff") else top
    if text[top:].strip() and not text[top:].startswith("#"):
        return _documentation(text, top, top, _TRIPLE, _TRIPLE + 2 * newline, label, "", _TRIPLE)
    top = len(text)
    lead = _TRIPLE if text[-1:] in ("", "\n", "\ufeff") else newline + _TRIPLE
    return _documentation(text, top, top, lead, _TRIPLE + newline, label, "", _TRIPLE)


def string_at(text: str, start: int, end: int) -> tuple[int, int] | None:
    """The string that is the first statement behind `start`, if that is one."""
    skipped = _BLANKS_AND_COMMENTS.match(text, start, end)
    first = skipped.end() if skipped else start
    opened = _QUOTES.match(text, first, end)
    if not opened:
        return None
    inside = r"(?:\\.|[^\\])*?" if len(opened[1]) == 3 else r"(?:\\.|[^\\\n])*?"
    closed = re.compile(inside + opened[1], re.DOTALL).match(text, opened.end(), end)
    return (
        (first, closed.end()) if closed and _REST_OF_STATEMENT.match(text, closed.end()) else None
    )


def _quoted(text: str, string: tuple[int, int], indent: str, label: str) -> Target:
    """An existing docstring, with its quotes and its first line as they are."""
    start, end = string
    opened = _QUOTES.match(text, start)
    assert opened
    lead, quotes = (opened[0], opened[1]) if len(opened[1]) == 3 else (_TRIPLE, _TRIPLE)
    tail = quotes
    if "\n" in text[start:end] and not text[opened.end() : line_end(text, opened.end())].strip():
        line_break = newline_at(text, start) + indent
        lead, tail = lead + line_break, line_break + quotes
    return _documentation(text, start, end, lead, tail, label, indent, quotes)


def comment_above(text: str, language: str, definition: Definition) -> Target | None:
    """The comment that documents a definition, in the languages whose marks are known."""
    top = line_start(text, definition.start)
    if language not in _MARKS or text[top : definition.start].strip():
        return None
    while top and _ATTRIBUTE.match(text[_line_above(text, top) : top].lstrip()):
        top = _line_above(text, top)
    indent, newline = indentation(text, top), newline_at(text, top)
    label = f"the documentation of {definition.called}"
    mark, there = _comment_over(text, top, _MARKS[language], plain=language in _PLAIN_BLOCKS)
    start, end = there or (top + len(indent), top + len(indent))
    below = "" if there else newline + indent
    if mark == "/**":
        lead, tail = f"/**{newline}{indent} * ", f"{newline}{indent} */{below}"
        return _documentation(text, start, end, lead, tail, label, indent, "*/", " * ")
    return _documentation(text, start, end, mark + " ", below, label, indent, "", mark + " ")


def _comment_over(
    text: str, top: int, marks: tuple[str, ...], *, plain: bool
) -> tuple[str, tuple[int, int] | None]:
    """The mark, and the range, of the comment whose last line is the one above `top`."""
    end = line_end(text, _line_above(text, top)) if top else 0
    last = line_at(text, end).strip() if top else ""
    for mark in marks:
        if mark == "/**" and last.endswith("*/"):
            stop = line_start(text, end) + len(line_at(text, end).rstrip())
            start = max(text.rfind("/*", 0, stop), 0)
            whole = (
                text.find("*/", start) == stop - 2
                and not text[line_start(text, start) : start].strip()
            )
            if whole and text.startswith("/*" if plain else mark, start):
                return mark, (start, stop)
        elif mark != "/**" and _has_words(last, mark):
            start = line_start(text, end)
            while start and _has_words(line_at(text, start - 1).strip(), mark):
                start = _line_above(text, start)
            return mark, (start + len(indentation(text, start)), end)
    return marks[0], None


def _has_words(line: str, mark: str) -> bool:
    return line.startswith(mark) and not _DIRECTIVE.match(line)


def _line_above(text: str, start: int) -> int:
    """The start of the line above the one that starts there."""
    return line_start(text, start - 1)


def _documentation(
    text: str,
    start: int,
    end: int,
    lead: str,
    tail: str,
    label: str,
    indent: str,
    closing: str,
    line_prefix: str = "",
) -> Target:
    return Target(
        kind="docstring",
        start=start,
        end=end,
        lead=lead,
        tail=tail,
        label=label,
        extent="span",
        max_lines=most_lines(text, start, end, 24),
        newline=newline_at(text, start),
        indent=indent,
        line_prefix=line_prefix,
        closing=closing,
    )
