"""The ranges that can be rewritten or filled: a selection, a function's body, its documentation.

A `Target` holds the range and the text that has to stand around the model's words, so that the
model writes nothing else: its prefix is text[:start] + lead, its suffix tail + text[end:].
"""

import re

from fim.editing.docstrings import comment_above, docstring, module_docstring, string_at
from fim.editing.fitting import Kind, Target, limits
from fim.editing.grammars import definitions
from fim.editing.languages import LANGUAGES, Language
from fim.editing.line_offsets import first_on_line, indentation, line_end, line_start, newline_at
from fim.editing.outline import Definition, inner_indent

__all__ = ["KINDS", "Kind", "Target", "target_at", "targets_at"]

KINDS: tuple[Kind, ...] = ("selection", "body", "docstring")

# Bodies that people write while the real one is yet to come.
_STUB = re.compile(
    r"(?:pass|\.\.\.|:|return|raise NotImplementedError\b.*"
    r"|throw new [\w.\\]*(?:Error|Exception)\(.*\)"
    r"|(?:todo|unimplemented)!\(.*\)|panic\(.*\)|error\(.*\)|/\*.*\*/);?",
    re.DOTALL,
)


def targets_at(text: str, language: str, start: int, end: int) -> tuple[Target, ...]:
    """All targets where text[start:end] is selected, or at a cursor when both are the same."""
    found = (target_at(text, language, start, end, kind) for kind in KINDS)
    return tuple(target for target in found if target)


def target_at(text: str, language: str, start: int, end: int, kind: Kind) -> Target | None:
    """The target of one kind, if there is one. `language` is the protocol's name of the language.

    A body and a docstring are those of the innermost definition around `start`. The header, the
    decorators and the comment above count as inside.
    """
    start, end = sorted(max(0, min(offset, len(text))) for offset in (start, end))
    if kind == "selection":
        return _selection(text, start, end)
    known = LANGUAGES.get(language, Language())
    found = list(definitions(text, language, start))
    if kind == "body":
        functions = [each for each in found if not each.type]
        return _body(text, known, functions[0]) if functions else None
    if known.indented:
        return docstring(text, known, found[0]) if found else module_docstring(text, start)
    documented = [each for each in found if not each.nameless]
    return comment_above(text, known, documented[0]) if documented else None


def _selection(text: str, start: int, end: int) -> Target | None:
    # No editor's position is inside of a line end.
    if start and text[start - 1 : start + 1] == "\r\n":
        start += 1
    if end and text[end - 1 : end + 1] == "\r\n":
        end -= 1
    if start >= end:
        return None
    chosen = text[start:end]
    content = chosen.strip()
    starts_line = first_on_line(text, start)
    rest_of_line = text[end : line_end(text, end)].strip()
    newline = newline_at(text, start)
    lead = chosen if starts_line else ""
    tail = ""
    if content:
        # The blanks around the code stay.
        before = chosen[: len(chosen) - len(chosen.lstrip())]
        after = chosen[len(chosen.rstrip()) :]
        lead = before if starts_line or "\n" in before else ""
        tail = after if "\n" in after else ""
    elif "\n" in chosen:
        # The first line end stays where text stands before it, the last where text follows it.
        last = newline + chosen.rpartition("\n")[2]
        lead = chosen.partition("\n")[0].removesuffix("\r") if starts_line else last
        tail = last if rest_of_line or end == line_start(text, end) else ""
    one_line = "\n" not in chosen and bool(content or rest_of_line or not starts_line)
    label = "the selection" if content else "the gap"
    indent = indentation(text, start)
    extent, lines = limits("selection", text, start, end, one_line=one_line)
    return Target("selection", start, end, lead, tail, label, extent, lines, newline, indent)


def _body(text: str, language: Language, definition: Definition) -> Target | None:
    if definition.inner is None:
        return None
    header, end = definition.inner
    newline = newline_at(text, header)
    outside = indentation(text, definition.start)
    indent = inner_indent(text, language, definition)
    line_break = newline + indent
    start = header
    lead = ""
    tail = ""
    if not definition.expression:
        start, lead = _after_documentation(text, language, definition, line_break)
    first = end - len(text[start:end].lstrip(" \t\r\n;"))
    found = text[first:end].rstrip(" \t\r\n;" if language.separated else None)
    last = first + len(found)
    in_line = "\n" not in text[header:last]
    is_stub = first == last or (in_line and _STUB.fullmatch(text, first, last))
    if lead:
        start = header
    if is_stub and not definition.expression:
        # A gap: opened up to lines of its own.
        lead += line_break
        if definition.closer and definition.closed:
            closer_has_line = "\n" in text[start:end] and first_on_line(text, end)
            tail = newline + (indentation(text, end) if closer_has_line else outside)
    elif lead:
        lead += line_break
        end = last
    else:
        start = first
        end = last
        if first_on_line(text, first):
            indent = indentation(text, first)
    if not definition.closed:
        tail = newline + outside + definition.closer
    one_line = in_line and not lead and not tail and "\n" not in text[start:end]
    label = f"the body of {definition.called}"
    extent, lines = limits("body", text, start, end, one_line=one_line)
    return Target("body", start, end, lead, tail, label, extent, lines, newline, indent)


def _after_documentation(
    text: str, language: Language, definition: Definition, line_break: str
) -> tuple[int, str]:
    """(start, lead): the start of the body after its docstring, and after comments when they are
    all there is; and the docstring, if it has to move off the header's line."""
    assert definition.inner
    header, end = definition.inner
    start = header
    string = string_at(text, header, end) if language.indented else None
    if string:
        start = string.end()
        if "\n" not in text[header : string.start()]:
            return start, line_break + string[0]
    mark = language.line_comment
    stop = line_end(text, start)
    if stop <= end and text[start:stop].strip().startswith(mark):
        start = stop
    comment = re.compile(rf"\s*{mark}[^\r\n]*")
    below = start
    while (found := comment.match(text, below, end)) and "\n" in found[0]:
        below = found.end()
    rest = text[below:end].strip()
    if not rest or _STUB.fullmatch(rest):
        return below, ""
    return start, ""
