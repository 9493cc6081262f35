"""Where an answer ends: one function for each rule.

Some families have no token that ends the middle, and in the others it comes late: so these rules
read what a model writes while it comes, and the first that finds an end stops the generation.

To add a rule, write a function of the type Rule, put it into RULES, and give it a Reason (a test
asks for its sentence in lsp_server/completion/explain.py). A rule reads forward only: where it has
found an end in a text, it finds the same end in every longer text that begins with it.
"""

import re
from collections.abc import Callable
from operator import attrgetter

from fim.characters import STRANGE
from fim.lines import continues, is_closing, may_be_closing, opens_block, same_block, width
from fim.shaping.bounds import Answer, Bounds, Line, Reason, Stop
from fim.shaping.chat import chat
from fim.shaping.quotes import scan
from fim.shaping.repeats import (
    defined_above,
    loop_in_line,
    repeated_lines,
    repeats_above,
    repeats_below,
)

Rule = Callable[[Answer, Bounds], Stop | None]

# Decoding leaves U+FFFD for a character whose bytes are not all there yet: at the text's end it may
# still be mended.
_BROKEN = re.compile("\ufffd+(?=[^\ufffd])")
_CHAT_MARK = re.compile(r"<\|[a-z][a-z0-9_]*\|>")  # as of the chat format of most families
_LEAVES = re.compile(r"(?:return|raise|throw|break|continue|goto)\b")
_REACHED = re.compile(
    r"(?:[)\]}#@\"'`]|//|/\*|--|</|case\b|default\b|else|elif|except|finally|catch|end|until|when\b"
    r"|function\b|def\b|class\b|\w+:(?!:))"
)
_LEAVES_FOR_GOOD = frozenset(
    "python javascript javascriptreact typescript typescriptreact go java c cpp csharp rust php "
    "lua".split()
)
_MOST_OPEN_LINES = 16  # of one statement


def first_stop(text: str, bounds: Bounds, *, whole: bool = False) -> Stop | None:
    """The stop that is decided first, if any. As rules read forward only, later text keeps it.

    whole: nothing more comes.
    """
    answer = Answer.read(text, bounds.before, whole=whole)
    return _first([rule(answer, bounds) for name, rule in RULES.items() if name not in bounds.off])


def _first(stops: list[Stop | None]) -> Stop | None:
    return min(filter(None, stops), key=attrgetter("decision"), default=None)


def sentinel(answer: Answer, bounds: Bounds) -> Stop | None:
    """Ends at one of the model's own marks, or at one of a chat."""
    stops = [_mark(answer.text, mark, "sentinel") for mark in bounds.sentinels]
    for mark in _CHAT_MARK.finditer(answer.text):
        if mark[0] not in bounds.prefix and mark[0] not in bounds.suffix:
            stops.append(Stop(mark.end(), mark.start(), "sentinel"))
            break
    return _first(stops)


def closing_mark(answer: Answer, bounds: Bounds) -> Stop | None:
    """Ends at the mark that closes the span, as the quotes of a docstring."""
    return _mark(answer.text, bounds.closing, "end of span") if bounds.closing else None


def _mark(text: str, mark: str, reason: Reason) -> Stop | None:
    start = text.find(mark)
    return None if start < 0 else Stop(start + len(mark), start, reason)


def strange_character(answer: Answer, bounds: Bounds) -> Stop | None:
    """Ends at a character that cannot be seen, unless the user's own text has it."""
    for strange in STRANGE.finditer(answer.text):
        if strange[0] not in bounds.known:
            return Stop(strange.end(), strange.start(), "strange character")
    return None


def half_character(answer: Answer, bounds: Bounds) -> Stop | None:
    """Ends at a character that lacks some of its bytes, also where the user's own text has one:
    what a model means by U+FFFD cannot be told from what is left of another character."""
    broken = _BROKEN.search(answer.text)
    if broken is None:
        return None
    return Stop(broken.end() + 1, broken.start(), "half character")


def end_of_line(answer: Answer, bounds: Bounds) -> Stop | None:
    """Ends with the statement that the cursor's line holds, where no more than that was asked for.

    It goes on while brackets are open that the answer opened, and begins on the next line where the
    cursor's line asks for that: behind `=`, or with a brace in front of a body.
    """
    if bounds.extent != "line" or len(answer.lines) == 1:
        return None
    first, *more = answer.lines
    stop = Stop(first.end + 1, first.end, "end of line")
    begun_in_text = False  # as a template of several lines
    if bounds.one_line:
        return stop
    if not answer.text[: first.end].strip():
        begun = next((line for line in more if line.code), None)
        if begun is None:
            return None
        in_text = bounds.in_text and bounds.opened[-1].lines
        if not (continues(bounds.before) or begun.code.startswith("{") or in_text):
            return Stop(_code_start(begun) + 1, first.end, "end of line")
        first = begun
        begun_in_text = in_text
    for line in answer.lines[:-1][:_MOST_OPEN_LINES]:
        if line.end < first.end:
            continue
        inside = scan(answer.text[: line.end], bounds.language, bounds.opened)
        waits = inside.depths[-1] and not inside.in_text()
        if begun_in_text:
            waits = inside.kept == len(bounds.opened)
        if not waits:
            return Stop(line.end + 1, line.end, "end of line")
    return stop if len(answer.lines) > _MOST_OPEN_LINES else None


def _code_start(line: Line) -> int:
    return line.end - len(line.text.lstrip())


def end_of_block(answer: Answer, bounds: Bounds) -> Stop | None:
    """Ends before a line outside of the block: one that is indented less than the block's first
    line, or not more than the cursor's line if that opens the block.

    A line that may close the block (`}`, `end`) is read to its end. It belongs to the block, unless
    the line below says that the block is closed further down.
    """
    if bounds.extent != "block":
        return None
    lines = answer.lines
    first = lines[0]
    opened = bool(bounds.before.strip()) and _opens(first.text, bounds.language)
    begun = bool(first.code)
    least = width(first.text if begun else bounds.before)  # columns
    header = bool(bounds.before.strip()) and _opens(bounds.before, bounds.language)
    if header and not opened and len(lines) > 1:
        return Stop(first.end + 1, first.end, "end of line")
    for line in lines[1:]:
        if not line.code:
            continue
        columns = width(line.text)
        if columns > least or (columns == least and not opened):
            if not begun:
                least = columns
            begun = True
            continue
        if not may_be_closing(line.code[0]):
            return Stop(_code_start(line) + 1, line.start - 1, "end of block")
        if line is lines[-1]:
            return None
        closes = is_closing(line.text)
        if closes and columns == least and opened and opens_block(line.text):
            continue  # `} else {`
        below = bounds.below[0] if bounds.below else ""
        kept = closes and width(below) <= columns and not same_block(line.text, below)
        return Stop(line.end + 1, line.end if kept else line.start - 1, "end of block")
    return None


def _opens(line: str, language: str) -> bool:
    """Whether a line opens a block or has brackets that are open at its end."""
    return opens_block(line, language) or bool(scan(line, language).opened)


def end_of_span(answer: Answer, bounds: Bounds) -> Stop | None:
    """Ends before a line that is indented less than the span's text has to be."""
    if bounds.extent != "span" or not bounds.least_columns:
        return None
    for line in answer.lines[1:]:
        if line.code and width(line.text) < bounds.least_columns:
            return Stop(_code_start(line) + 1, line.start - 1, "end of span")
    return None


def closed_below(answer: Answer, bounds: Bounds) -> Stop | None:
    """Ends before a bracket or quote that closes what the text below the cursor's line closes."""
    if bounds.spare is None or bounds.extent == "span":
        return None
    inside = scan(answer.text, bounds.language, bounds.opened)
    right = scan(bounds.after, bounds.language, bounds.opened)
    allowed = bounds.spare + len(right.closers)
    if not bounds.whole:  # what closes nothing may close what stands above the window
        allowed += inside.stray
    if len(inside.closers) <= allowed:
        return None
    index = inside.closers[allowed]
    return Stop(index + 1, index, "closed below")


def unreachable(answer: Answer, bounds: Bounds) -> Stop | None:
    """Nothing is suggested behind a `return` in its own block: it would never run."""
    if bounds.before.strip() or bounds.language not in _LEAVES_FOR_GOOD or bounds.in_text:
        return None
    above = bounds.prefix[: len(bounds.prefix) - len(bounds.before)].rstrip()
    above = above[above.rfind("\n") + 1 :]
    if not _LEAVES.match(above.lstrip()) or scan(above, bounds.language).opened:
        return None
    for line in answer.written[:1]:
        if width(line.text) >= width(above) and not _REACHED.match(line.code):
            return Stop(line.end + 1, 0, "unreachable")
    return None


def blank_lines(answer: Answer, bounds: Bounds) -> Stop | None:
    """Ends before two blank lines in a row, in a span before three."""
    most = 3 if bounds.extent == "span" else 2
    blanks = 0
    code_end = 0
    for line in answer.lines[:-1]:
        if line.code:
            blanks = 0
            code_end = line.end
        else:
            blanks += 1
        if blanks == most:
            return Stop(line.end + 1, code_end, "blank lines")
    return None


def too_long(answer: Answer, bounds: Bounds) -> Stop | None:
    """Ends with the last line that is allowed."""
    if not 0 < bounds.max_lines < len(answer.lines):
        return None
    end = answer.lines[bounds.max_lines - 1].end
    return Stop(end + 1, end, "too long")


# By the names with which they can be switched off. Of two that are decided by the same character
# the first one counts.
RULES: dict[str, Rule] = {
    rule.__name__.replace("_", "-"): rule
    for rule in (
        sentinel,
        closing_mark,
        strange_character,
        chat,
        loop_in_line,
        half_character,
        repeats_below,
        repeats_above,
        defined_above,
        closed_below,
        end_of_line,
        end_of_block,
        end_of_span,
        unreachable,
        repeated_lines,
        blank_lines,
        too_long,
    )
}
