"""What can be written anew in a text: a selection, a function's body, its documentation.

A `Target` says what is replaced and what must stand around the model's words, so that these are all
that it has to write: the model's prefix is text[:start] + lead, its suffix tail + text[end:].
"""

import re

from fim.editing.docstrings import comment_above, docstring, module_docstring, string_at
from fim.editing.fitting import Kind, Target
from fim.editing.grammars import definitions
from fim.editing.line_offsets import indentation, line_end, line_start, newline_at
from fim.editing.outline import Definition, inner_indent, most_lines

__all__ = ["KINDS", "Kind", "Target", "target_at", "targets_at"]

KINDS: tuple[Kind, ...] = ("selection", "body", "docstring")


def targets_at(text: str, language: str, start: int, end: int) -> tuple[Target, ...]:
    """What can be written anew where `start` to `end` is selected, or where the cursor stands at
    both."""
    found = (target_at(text, language, start, end, kind) for kind in KINDS)
    return tuple(target for target in found if target)


def target_at(text: str, language: str, start: int, end: int, kind: Kind) -> Target | None:
    """The target of one kind, if there is one. `language` is the protocol's name of the language.

    A body and a docstring are those of the innermost definition around `start`; on its header, its
    decorators or the comment above it counts as inside.
    """
    start, end = sorted(max(0, min(offset, len(text))) for offset in (start, end))
    if kind == "selection":
        return _selection(text, start, end)
    found = list(definitions(text, language, start))
    if kind == "body":
        functions = [definition for definition in found if not definition.type]
        return _body(text, language, functions[0]) if functions else None
    if language == "python":
        return docstring(text, found[0]) if found else module_docstring(text, start)
    documented = [definition for definition in found if not definition.nameless]
    return comment_above(text, language, documented[0]) if documented else None


def _selection(text: str, start: int, end: int) -> Target | None:
    # No editor's position parts a line end.
    start += text[start - 1 : start + 1] == "\r\n" if start else 0
    end -= text[end - 1 : end + 1] == "\r\n" if end else 0
    chosen = text[start:end]
    if start >= end:
        return None
    content = chosen.strip()
    at_line_start = not text[line_start(text, start) : start].strip()
    rest_of_line = text[end : line_end(text, end)].strip()
    newline = newline_at(text, start)
    lead = tail = ""
    if content:
        before = chosen[: len(chosen) - len(chosen.lstrip())]
        after = chosen[len(chosen.rstrip()) :]
        lead = before if at_line_start or "\n" in before else ""
        tail = after if "\n" in after else ""
    elif "\n" in chosen:
        # A gap: its first line end stays where text stands before it, its last where text follows
        # it.
        first, last = chosen.partition("\n")[0].removesuffix("\r"), chosen.rpartition("\n")[2]
        ends_line = rest_of_line or end == line_start(text, end)
        tail = newline + last if ends_line else ""
        lead = first if at_line_start else newline + last
    elif at_line_start:
        lead = chosen
    one_line = "\n" not in chosen and (content or not at_line_start or rest_of_line)
    return Target(
        kind="selection",
        start=start,
        end=end,
        lead=lead,
        tail=tail,
        label="the selection" if content else "the gap",
        extent="line" if one_line else "span",
        max_lines=1 if one_line else most_lines(text, start, end, 16),
        newline=newline,
        indent=indentation(text, start),
    )


# What people write in place of a body that is yet to come.
_STUB = re.compile(
    r"(?:pass|\.\.\.|:|return|raise NotImplementedError\b.*|throw new [\w.\\]*(?:Error"
    r"|Exception)\(.*\)"
    r"|(?:todo|unimplemented)!\(.*\)|panic\(.*\)|error\(.*\)|/\*.*\*/);?",
    re.DOTALL,
)
_LINE_COMMENT = {"python": "#", "ruby": "#", "shellscript": "#", "lua": "--"}  # "//" elsewhere
_SEPARATED = frozenset(
    {"ruby", "shellscript"}
)  # `;` stands between a body and its closer, and is not the body's


def _body(text: str, language: str, definition: Definition) -> Target | None:
    if definition.inner is None:
        return None
    header, end = definition.inner
    newline = newline_at(text, header)
    above = indentation(text, definition.start)
    indent = inner_indent(text, language, definition)
    start, lead, tail = header, "", ""
    if not definition.expression:
        start, lead = _after_documentation(text, language, definition, newline + indent)
    # What is there now, without what stays.
    first = start + len(text[start:end]) - len(text[start:end].lstrip(" \t\r\n;"))
    last = first + len(text[first:end].rstrip(" \t\r\n;" if language in _SEPARATED else None))
    in_line = "\n" not in text[header:last]
    if not definition.expression and (
        first == last or (in_line and _STUB.fullmatch(text, first, last))
    ):
        # A gap: opened up to lines of its own.
        start = header if lead else start
        lead += newline + indent
        if definition.closer and definition.closed:
            on_its_line = "\n" in text[start:end] and not text[line_start(text, end) : end].strip()
            tail = newline + (indentation(text, end) if on_its_line else above)
    elif lead:
        start, end, lead = header, last, lead + newline + indent
    else:
        start, end = first, last
        if not text[line_start(text, first) : first].strip():
            indent = indentation(text, first)
    if not definition.closed:
        tail = newline + above + definition.closer
    one_line = in_line and not lead and not tail and "\n" not in text[start:end]
    return Target(
        kind="body",
        start=start,
        end=end,
        lead=lead,
        tail=tail,
        label=f"the body of {definition.called}",
        extent="line" if one_line else "span",
        max_lines=1 if one_line else most_lines(text, start, end, 32),
        newline=newline,
        indent=indent,
    )


def _after_documentation(
    text: str, language: str, definition: Definition, line_break: str
) -> tuple[int, str]:
    """(start, lead): where the body begins behind its docstring and behind comments that are all
    there is; and the docstring, if it stands on the header's line and has to move off it.
    """
    assert definition.inner
    header, end = definition.inner
    mark = _LINE_COMMENT.get(language, "//")
    string = string_at(text, header, end) if language == "python" else None
    if string and "\n" not in text[header : string[0]]:
        return string[1], line_break + text[slice(*string)]
    start = _after_comment(text, mark, string[1] if string else header, end)
    comment = re.compile(rf"\s*{mark}[^\r\n]*")
    below = start
    while (found := comment.match(text, below, end)) and "\n" in found[0]:
        below = found.end()
    rest = text[below:end].strip()
    return (below if not rest or _STUB.fullmatch(rest) else start), ""


def _after_comment(text: str, mark: str, start: int, end: int) -> int:
    """Behind the comment that ends the line at `start`, if there is one."""
    stop = line_end(text, start)
    return stop if stop <= end and text[start:stop].strip().startswith(mark) else start
