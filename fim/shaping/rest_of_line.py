"""An answer and the rest of the cursor's line: what stands right of the cursor stands there once.

The answer may write some of the rest again, or all of it, and go on behind it. What it wrote again
is left out of the answer, where that is its end, or else replaced by it. Of all ways to put the two
together, only those are taken that leave as much open as the line had: so `g(x)` in front of `)`
stays whole, and `x)` does not.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from fim.lines import splits_word
from fim.shaping.bounds import Bounds, Reason
from fim.shaping.quotes import Scan, scan

_TOKEN = re.compile(r"\w+|[^\w\s]")
_WORD = re.compile(r"\w+")
_TERM = re.compile(r"\w+(?:\.\w+)*")
_CLOSERS = ")]}>\"'`,;:"


class Fit(NamedTuple):
    """A text that goes with the rest of the cursor's line."""

    text: str
    replaced: int = 0  # characters right of the cursor that the text takes the place of
    reason: Reason | None = None


def fit_right(text: str, bounds: Bounds, *, fixed: bool = False) -> Fit:
    """The text, fitted to the rest of the line.

    fixed: nothing is replaced, what stands right of the cursor stays.
    """
    rest = bounds.after.rstrip()
    if not rest or not text.strip() or "fit-right" in bounds.off:
        return Fit(text)
    if fixed:
        return _cut_at_rest(text, rest.lstrip(), bounds)
    alone = scan(bounds.after + "\n", bounds.language, bounds.opened)
    for replaced in _replaceable(text, rest, bounds.before):
        joined = scan(text + bounds.after[replaced:] + "\n", bounds.language, bounds.opened)
        spare = bounds.spare or 0
        if not _leaves_alike(joined, alone, spare, last=replaced == len(rest)):
            continue
        if not replaced:
            return Fit(text)
        return _without_repeated(text, bounds.after, replaced)
    return Fit("", 0, "does not fit")


def _leaves_alike(joined: Scan, alone: Scan, spare: int, *, last: bool) -> bool:
    """Whether a line leaves as much open as its rest alone does: less if nothing else closes that;
    more only at its end."""
    if joined.stray > alone.stray or not 0 <= alone.kept - joined.kept <= spare:
        return False
    own = [each.closer for each in joined.own]
    wanted = [each.closer for each in alone.own]
    if own[: len(wanted)] != wanted:
        return False
    more = joined.own[len(wanted) :]
    return not more or (last and all(each.kind == "bracket" for each in more))


def _replaceable(text: str, rest: str, before: str) -> Iterator[int]:
    """How many characters of the rest the text may stand for, the best guess first."""
    bare = text.rstrip()
    remaining = iter(_TOKEN.findall(bare))
    wanted = _TOKEN.findall(rest)
    if bare.endswith(wanted[-1]) and all(token in remaining for token in wanted):
        yield len(rest)
    blanks = len(rest) - len(rest.lstrip())
    code = rest[blanks:]
    in_word = splits_word(before + rest, len(before))
    first = _WORD.match(code) if in_word else None
    for size in range(min(len(code), len(bare)), first.end() if first else 0, -1):
        start = len(bare) - size
        parted = splits_word(code, size) or (splits_word(bare, start) and not in_word)
        if bare.endswith(code[:size]) and not parted:
            yield blanks + size
    term = _TERM.match(code)
    inner = bare.rstrip(_CLOSERS)
    wrapped = term is not None and not blanks and inner.endswith(term[0])
    if term and wrapped and not splits_word(inner, len(inner) - len(term[0])):
        yield len(term[0])
    yield from _closers_written(bare, code, blanks)
    # Two words must not become one, but for the halves of one in which the cursor stands.
    if in_word or not splits_word(text + rest, len(text)):
        yield 0


def _closers_written(text: str, code: str, blanks: int) -> Iterator[int]:
    """How much of the rest the text writes that is closers, in their order."""
    sizes = []
    index = -1
    for size, char in enumerate(code, 1):
        if char not in _CLOSERS:
            break
        index = text.find(char, index + 1)
        if index < 0:
            break
        sizes.append(blanks + size)
    yield from reversed(sizes)


def _without_repeated(text: str, after: str, replaced: int) -> Fit:
    """The text, of which the first `replaced` characters right of the cursor are a part."""
    written = after[:replaced].strip()
    bare = text.rstrip()
    if not bare.endswith(written):
        return Fit(text, replaced, "replaces right")
    kept = bare[: len(bare) - len(written)]
    # A closer on a line of its own takes the place of the one on the right, which is misplaced.
    if "\n" in kept and not kept.rpartition("\n")[2].strip():
        return Fit(text, replaced, "replaces right")
    if after[:1] in (" ", "\t"):
        kept = kept.rstrip(" \t")
    return Fit(kept, 0, "repeats right")


def _cut_at_rest(text: str, rest: str, bounds: Bounds) -> Fit:
    inside = scan(text, bounds.language, bounds.opened)
    for size in range(min(len(rest), len(text)), 0, -1):
        start = len(text) - size
        if inside.depths[start] or not text.endswith(rest[:size]):
            continue
        if not splits_word(text, start) and not splits_word(rest, size):
            kept = text[:start]
            if bounds.after[:1] in (" ", "\t"):
                kept = kept.rstrip(" \t")
            return Fit(kept, 0, "repeats right")
    for index in inside.closers:
        if text[index] == rest[0]:
            return Fit(text[:index], 0, "repeats right")
    return Fit(text)
