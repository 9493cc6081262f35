"""Whether an answer breaks the syntax of the text around it, by the grammar of its language.

Grammars mend what they cannot read: what is counted is where they had to. The text is cut to some
lines around the cursor and the headers and closers of the blocks around those, so that the cost
does not depend on the file. What was broken before may stay as broken.
"""

import re
from collections.abc import Callable, Iterator

from fim.editing.grammars import parser_for
from fim.lines import is_closing, opens_block, width
from fim.shaping.bounds import Bounds
from fim.shaping.quotes import scan
from fim.shaping.rest_of_line import Fit

_LINES = 60  # on each side of the cursor
_FAR = 12_000  # characters that are looked at for them and for the blocks around
_KEPT = 0.4  # of a line, at least: a shorter beginning is no part of what was meant
_MOST_CUTS = 6  # beginnings of an answer that are tried, of lines and of one line
_SPLIT = re.compile(r"(?<=[\w)\]}>\"'`;])(?!\w)")
_HEADER = re.compile(
    r"\s*(?:async\s+)?(?:def|class|if|elif|else|for|while|with|try|except|finally|match|case)\b"
)

Fitter = Callable[[str], Fit]


def longest_whole(text: str, bounds: Bounds, fit: Fitter) -> Fit | None:
    """The longest beginning of an answer, fitted to the rest of the line, with which the text
    around is no more broken than without; None if there is none, or nothing can be said."""
    whole = fit(text)
    parser = parser_for(bounds.language, bounds.prefix)
    if parser is None or "syntax" in bounds.off or bounds.in_text:
        return whole
    head, tail = _around(bounds)

    def broken(middle: str, rest: str) -> int:
        odd = _odd_indents(middle, bounds) if bounds.language == "python" else 0
        return odd + parser(f"{head}{middle}{rest}{tail}")

    line, after = bounds.before, bounds.after
    limit: int | None = None
    for candidate in _beginnings(text):
        fitted = fit(candidate)
        if not fitted.text.strip():
            continue
        rest = after[fitted.replaced :]
        middle = line + fitted.text
        found = broken(middle, rest)
        if not found:
            return fitted
        if limit is None:
            limit = min(broken(line, after), broken("", ""))
        if found <= limit:
            return fitted
        if any(broken(middle, end) <= limit for end in _completions(middle, rest, bounds)):
            return fitted
        if limit and bounds.language in ("c", "cpp"):  # macros are not in the grammar
            return whole
    return None


def _odd_indents(middle: str, bounds: Bounds) -> int:
    """How many lines are indented more than the line above although that opens no block: Python's
    grammar lets that pass."""
    head = bounds.prefix[: len(bounds.prefix) - len(bounds.before)].rstrip()
    previous = head[head.rfind("\n") + 1 :]
    state = bounds.opened
    count = 0
    for number, line in enumerate(middle.split("\n")):
        code = line.split("#")[0].strip()
        if code and not state and previous.strip():
            deeper = width(line) > width(previous)
            count += deeper and previous.split("#")[0].rstrip()[-1:] not in (":", "\\", "")
        if code:
            previous = line
        written = line if number else line[len(bounds.before) :]
        state = scan(written + "\n", "python", state).opened
    return count


def _beginnings(text: str) -> Iterator[str]:
    """An answer, then shorter ones: by whole lines, then by what the first line may lose."""
    yield text
    lines = text.rstrip().split("\n")
    for count in range(len(lines) - 1, max(0, len(lines) - 1 - _MOST_CUTS), -1):
        yield "\n".join(lines[:count])
    first = lines[0]
    if len(lines) > _MOST_CUTS + 1 and first.strip():
        yield first
    ends = [found.start() for found in _SPLIT.finditer(first)]
    for end in [each for each in reversed(ends) if len(first) * _KEPT <= each < len(first)][
        :_MOST_CUTS
    ]:
        yield first[:end]


def _completions(middle: str, rest: str, bounds: Bounds) -> Iterator[str]:
    """What the rest of the line may become when it is written on."""
    line = middle[middle.rfind("\n") + 1 :] + rest
    if bounds.language == "python":
        if _HEADER.match(line):
            body = " " * (width(line) + 4) + "pass"
            yield f"{rest}\n{body}" if line.rstrip().endswith(":") else f"{rest}:\n{body}"
        if line.lstrip().startswith("@"):
            yield f"{rest}\n{' ' * width(line)}def x(): pass"
        if re.match(r"\s*try\s*:", line):
            yield f"{rest}\n{' ' * (width(line) + 4)}pass\n{' ' * width(line)}finally: pass"
    elif bounds.language not in ("lua", "ruby", "shellscript"):
        yield rest + ";"
        yield rest + " {}"
    if opens_block(middle, bounds.language) and not rest.strip():
        own = scan(middle[len(bounds.before) :], bounds.language, bounds.opened).own
        closers = "".join(each.closer for each in reversed(own))
        if closers:
            yield closers
            yield closers + ";"
        if bounds.language in ("lua", "ruby"):
            yield "\nend"
        if bounds.language == "shellscript":
            yield "\n:\nfi"
            yield "\n:\ndone"


def _around(bounds: Bounds) -> tuple[str, str]:
    """The text above the cursor's line and below it: the nearest lines, and of those further away
    the ones that open or close the blocks around."""
    above = bounds.prefix[-_FAR - len(bounds.before) : len(bounds.prefix) - len(bounds.before)]
    lines = above.split("\n")[:-1]
    start = max(0, len(lines) - _LINES)
    near = lines[start:]
    # A window begins best with one of its lines that are indented least.
    columns = [width(line) for line in near if line.strip()]
    least = min(columns, default=0)
    if start:
        while near and (not near[0].strip() or width(near[0]) > least or is_closing(near[0])):
            near.pop(0)
    headers: list[str] = []
    for line in reversed(lines[:start]):
        if not least:
            break
        if line.strip() and width(line) < least and not is_closing(line):
            least = width(line)
            headers.insert(0, line)
    below = bounds.suffix[len(bounds.after) :][:_FAR].split("\n")
    end = min(len(below), _LINES)
    far = below[end:]
    tail = below[:end]
    if far:
        columns = [width(line) for line in tail[1:] if line.strip()]
        least = min(columns, default=0)
        while len(tail) > 1 and (not tail[-1].strip() or width(tail[-1]) > least):
            tail.pop()
        closers = []
        for line in far:
            if line.strip() and width(line) < least:
                least = width(line)
                if not is_closing(line):
                    break
                closers.append(line)
        tail += closers
    return "\n".join([*headers, *near, ""]), "\n".join(tail)
