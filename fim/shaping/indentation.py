"""Indentation as the user's own text has it."""

import re
from dataclasses import replace

from fim.context import CursorContext
from fim.editing.line_offsets import indentation_step
from fim.lines import is_closing, opens_block, width
from fim.shaping.bounds import Bounds
from fim.shaping.quotes import scan

_NEAR = 4000  # characters around the cursor in which the text shows its indentation
_STEPS = (4, 2, 8)  # of blanks that a model may take for one
_USUAL = {"go": "\t", "makefile": "\t", "ruby": "  ", "lua": "  ", "yaml": "  ", "html": "  "}
_USUAL |= dict.fromkeys(
    "javascript javascriptreact typescript typescriptreact json css".split(), "  "
)
_FREE = frozenset(("yaml", "dockercompose"))  # of steps of one width
_LEAVES = re.compile(r"(?:return|raise|throw|break|continue|goto|pass)\b")
_NO_BLOCKS = frozenset("markdown plaintext text latex tex restructuredtext asciidoc".split())


def with_missing_indentation(context: CursorContext) -> CursorContext:
    """The context with the indentation that its cursor's line lacks, as `lead` and in the prefix.

    On a blank line in a block the cursor may stand further left than the block does. A model takes
    that for the block's end. So it is asked as if the indentation were there, and the suggestion
    brings it.
    """
    start = context.prefix.rfind("\n") + 1
    before = context.prefix[start:]
    after = context.suffix.partition("\n")[0]
    if before.strip() or after.strip() or context.lead or context.language in _NO_BLOCKS:
        return context
    wanted = _indentation_between(context.prefix[:start], context.suffix, context.language, before)
    if width(wanted + "x") <= width(before + "x") or not wanted.startswith(before):
        return context
    if scan(context.prefix[-_NEAR:], context.language, roughly=True).in_text():
        return context
    lead = wanted[len(before) :]
    return replace(
        context, prefix=context.prefix + lead, lead=lead, typed=context.typed + len(lead)
    )


def _indentation_between(above: str, below: str, language: str, before: str) -> str:
    """The indentation that a new line has between two texts: that of the line above, or one step
    more if that opens a block; but no more than the line below has, or one step more if that
    closes a block."""
    lines = above[-_NEAR:].split("\n")
    upper = next((line for line in reversed(lines) if line.strip()), "")
    own = _blanks(upper)
    step = _step(above, below, language)
    opened = opens_block(upper, language)
    if opened and width(before + "x") > width(own + "x"):
        return before  # it is indented, by a step that nothing else shows
    if opened:
        own += step
    lower = next((line for line in below[:_NEAR].split("\n")[1:] if line.strip()), "")
    under = _blanks(lower)
    if _LEAVES.match(upper.lstrip()):  # what comes next is further left
        return under if width(under + "x") < width(own + "x") else ""
    if is_closing(lower):
        under += step
    if opened and width(under + "x") < width(own + "x"):
        gap = len(lines) > 1 and not any(line.strip() for line in lines[-2:-1])
        return under if gap else own
    return min(own, under, key=lambda blanks: width(blanks + "x"))


def _blanks(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" \t"))]


def _step(above: str, below: str, language: str) -> str:
    near = above[-_NEAR:]
    usual = _USUAL.get(language, "    ")
    return indentation_step(near + below[:_NEAR], len(near), usual)


def unit_of(bounds: Bounds) -> str:
    """One step of indentation of the text around the cursor; "" if nothing shows it."""
    blanks = _blanks(bounds.before)
    if blanks.startswith("\t"):
        return "\t"
    near = (bounds.prefix[-_NEAR:], bounds.suffix[:_NEAR])
    indented = re.search(r"^[ \t]+\S", "\n".join(near), re.MULTILINE)
    if bounds.language == "makefile":
        return "\t"
    if indented is None and bounds.language != "go":
        return ""
    return _step(*near, bounds.language)


def as_the_file(text: str, bounds: Bounds) -> str:
    """The answer with the file's indentation, where it has another: tabs for blanks, blanks for
    tabs, or steps of another width."""
    if "indentation" in bounds.off or bounds.in_text:
        return text
    text = _without_doubled(text, bounds)
    if "\n" not in text:
        return text
    unit = unit_of(bounds)
    if not unit:
        return text
    first, *more = text.split("\n")
    foreign = [line for line in more if line.strip() and _is_foreign(_blanks(line), unit)]
    step = _foreign_step(bounds.before + first, more, unit, bounds) if more else 0
    if not step or (not foreign and (step == len(unit) or bounds.language in _FREE)):
        return text
    if (
        unit != "\t"
        and not foreign
        and any(len(_blanks(line)) % step for line in more if line.strip())
    ):
        return text
    inside = scan(first, bounds.language, bounds.opened)
    lines = [first]
    for line in more:
        blanks = _blanks(line)
        if not inside.in_text() and line.strip() and (_is_foreign(blanks, unit) or not foreign):
            columns = len(blanks.expandtabs(step))
            line = unit * (columns // step) + " " * (columns % step) + line[len(blanks) :]
        lines.append(line)
        inside = scan("\n" + line, bounds.language, inside.opened)
    return "\n".join(lines)


def _is_foreign(blanks: str, unit: str) -> bool:
    """Whether blanks at a line's beginning are not those that the file has."""
    return ("\t" in blanks) if unit != "\t" else blanks.startswith(" ")


def _foreign_step(first: str, more: list[str], unit: str, bounds: Bounds) -> int:
    """How many columns of the answer's indentation are one step of the file's; 0 if unclear."""
    previous = first
    if not previous.strip():  # the cursor's line is blank: what stands above it counts
        return _guess(more, unit)
    level = _level(_blanks(previous), unit)
    for line in more:
        if not line.strip():
            continue
        opened = opens_block(previous, bounds.language)
        expected = level + opened - is_closing(line)
        blanks = _blanks(line)
        if expected > 0 and blanks:
            columns = blanks.count("\t") * len(unit.expandtabs(4)) or len(blanks)
            if blanks[0] == "\t":
                return len(unit.expandtabs(4))
            exact = columns % expected == 0 and columns // expected in _STEPS
            if unit != "\t" and columns == width(previous):
                return 0  # not deeper at all
            if exact and (opened or unit == "\t"):
                return columns // expected
            return _guess(more, unit)
        if not blanks:
            level = 0
            previous = line
            continue
        return _guess(more, unit)
    return 0


def _guess(more: list[str], unit: str) -> int:
    columns = [len(_blanks(line)) for line in more if line.strip() and line[0] == " "]
    if any(line[:1] == "\t" for line in more):
        return len(unit.expandtabs(4))
    if unit != "\t":
        return 0
    for step in _STEPS:
        if columns and all(count % step == 0 for count in columns):
            return step
    return _STEPS[0]


def _level(blanks: str, unit: str) -> int:
    return len(blanks.expandtabs(4)) // len(unit.expandtabs(4))


def _without_doubled(text: str, bounds: Bounds) -> str:
    """The text without the indentation that the cursor's line has already."""
    before = bounds.before
    blanks = _blanks(text)
    if not before or before.strip() or not blanks or not text.strip():
        return text
    wanted = _indentation_between(
        bounds.prefix[: len(bounds.prefix) - len(before)],
        bounds.suffix,
        bounds.language,
        before,
    )
    if blanks.startswith(before) and width(before + blanks + "x") > width(wanted + "x") + 3:
        return text[len(before) :] if width(before) == width(wanted) else text
    return text
