"""A function or a type in a text, and the inside of it."""

from dataclasses import dataclass, replace

from fim.editing.languages import Language
from fim.editing.line_offsets import (
    indentation,
    indentation_step,
    indented_end,
    line_at,
    next_line,
)
from fim.lines import width


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
