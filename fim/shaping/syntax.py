"""Whether an answer breaks the syntax of the text around it, by the grammar of its language.

Grammars mend what they cannot read: what is counted is where they had to. The text is cut to some
lines around the cursor and the headers and closers of the blocks around those, so that the cost
does not depend on the file. What was broken before may stay as broken.
"""

import re
from collections.abc import Callable, Iterator

from fim.editing.grammars import broken_places
from fim.lines import is_closing, opens_block, width
from fim.shaping.bounds import Bounds
from fim.shaping.quotes import begun_in, scan
from fim.shaping.rest_of_line import Fit

_LINES = 30  # on each side of the cursor
_FAR = 4_000  # characters that are looked at for them and for the blocks around
_HOPELESS = 10  # broken places around the cursor: the window is no code, or not of this language
_KEPT = 0.4  # of a line, at least: a shorter beginning is no part of what was meant
_MOST_CUTS = 4  # beginnings of an answer that are tried, of lines and of one line
_OPENERS = {")": "(", "]": "[", "}": "{"}
_SPLIT = re.compile(r"(?<=[\w)\]}>\"'`;])(?!\w)")
_HEADER = re.compile(
    r"\s*(?:async\s+)?(?:def|class|if|elif|else|for|while|with|try|except|finally|match|case)\b"
)

# With which half a line may go on.
_WORDS = (",", " = x,", " x", " import x", " x import x", "()", " x in x", "x")

Fitter = Callable[[str], Fit]


def longest_whole(text: str, bounds: Bounds, fit: Fitter, *, half: bool = False) -> Fit | None:
    """The longest beginning of an answer, fitted to the rest of the line, with which the text
    around is no more broken than without; None if there is none.

    half: its last line is half a line, which only has to be the beginning of a good one.
    """
    if "syntax" in bounds.off or bounds.in_text:
        return fit(text)
    judge = _Judge(bounds, half)
    for candidate in _beginnings(text):
        fitted = fit(candidate)
        if fitted.text.strip() and judge.accepts(fitted):
            return fitted
        if judge.limit and bounds.language in ("c", "cpp"):  # macros are not in the grammar
            return fit(text)
    return None


class _Judge:
    """Compares what is broken with a text and without it."""

    def __init__(self, bounds: Bounds, half: bool) -> None:
        self._bounds = bounds
        self._half = half
        self._head, self._tail = _around(bounds)
        self.limit: int | None = None  # what may be broken

    def accepts(self, fitted: Fit) -> bool:
        bounds = self._bounds
        middle = bounds.before + fitted.text
        rest = bounds.after[fitted.replaced :]
        found = self._broken(middle, rest)
        if not found:
            return True
        if self.limit is None:
            self.limit = self._without()
            found = self._broken(middle, rest)
        if self.limit > _HOPELESS:
            return True
        ends = [*_completions(middle, rest, bounds)]
        if self._half and not rest.strip():
            ends += [f"{word}{end}" for word in _WORDS for end in ("", *ends)]
        return found <= self.limit or any(self._broken(middle, end) <= self.limit for end in ends)

    def _without(self) -> int:
        """What is broken without the text, with the cursor's line as it is or without that."""
        bounds = self._bounds
        counts: list[int] = []
        for narrow in (False, True):
            if narrow:  # broken elsewhere, perhaps: there the count says little
                lines = self._head.split("\n")
                tops = [
                    n for n, line in enumerate(lines) if line[:1].strip() and not is_closing(line)
                ]
                self._head = "\n".join(lines[tops[-1] if tops else 0 :])
                below = self._tail.split("\n")
                ends = [n for n, line in enumerate(below) if n and line[:1].strip()]
                if ends:
                    end = ends[0] + is_closing(below[ends[0]])
                    self._tail = "\n".join(below[:end])
            counts = [self._broken(bounds.before, bounds.after), self._broken("", "")]
            if not min(counts):
                return 0
        return max(counts)

    def _broken(self, middle: str, rest: str) -> int:
        language = self._bounds.language
        count = broken_places(f"{self._head}{middle}{rest}{self._tail}", language)
        if count is None:  # nothing can be said
            return 0
        return count + (_odd_indents(middle, self._bounds) if language == "python" else 0)


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
    columns = [width(line) for line in near if line.strip() and not is_closing(line)]
    least = min(columns, default=0)
    if start and columns:
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
    head = "\n".join([*headers, *near, ""])
    rest = "\n".join(tail)
    # Brackets and strings that were opened above the window are opened in front of it.
    begun = begun_in(head, bounds.language)
    opened = scan(head, bounds.language, begun, roughly=True).opened
    line = bounds.before + bounds.after
    read = scan(f"{line}{rest}", bounds.language, opened, roughly=True)
    openers: list[str] = []
    if bounds.language == "python" and not bounds.whole:
        openers = [_OPENERS[mark] for mark in reversed(read.strays)]
    # What the window's end breaks off is left out of it.
    for what, start in zip(read.own, read.starts, strict=True):
        is_broken = what.kind == "string" or (bounds.language == "python" and far)
        if is_broken and start > len(line):
            rest = f"{line}{rest}"[len(line) : start].rpartition("\n")[0]
            break
    return "\n".join([*openers, *(each.mark for each in begun), head]), rest
