"""Which parts of other files suit a cursor, and how they are put together as snippets.

The rank is BM25 over the words of names (Robertson and Zaragoza 2009): the nearer a word of the
cursor's own text stands to the cursor, the more it counts; then what is known of the file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fim.context import Snippet
from fim.project.outlines import Part
from fim.project.terms import terms

Count = Callable[[str], int]
"""The number of tokens of a text."""

_K = 1.2  # BM25: how soon more of the same word is worth nothing more
_B = 0.4  # BM25: how much longer parts have to have more words
_NEAR = 6.0  # lines from the cursor at which a word counts half
_LINES = 60  # that are looked at on each side
_IMPORTED = 3.0  # weight of a part that is imported by its name,
_OF_IMPORTED = 1.5  # and of one in a type that is
_PLAIN = 1.0  # score of a part that is imported and shares no word with the place
_COMMON = 0.25  # the share of parts that may have a word that counts,
_FEW = 20  # where there are more parts than these
_SWAP = 1.3  # so much better have other snippets to be
_MARK_TOKENS = 3  # of a file's mark and line ends


@dataclass(frozen=True, slots=True)
class Source:
    """A file whose parts may be shown. origin: for the user. weight: of its parts' scores."""

    origin: str
    weight: float
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Place:
    """The text around the cursor."""

    before: str
    after: str
    imported: frozenset[str] = frozenset()  # the names in the file's import statements


Ranked = tuple[float, Part, Source]


def choose(
    place: Place,
    sources: Iterable[Source],
    budget: int,
    count: Count,
    may_show: Callable[[Part], bool] = lambda part: True,
    check: Callable[[], None] = lambda: None,
) -> tuple[Snippet, ...]:
    """The snippets of at most `budget` tokens, the best last. Each is of another file.

    may_show: asked only of what would be taken. check: is called now and then, and may raise.
    """
    window = place.before + place.after
    taken: list[Ranked] = []
    texts: set[str] = set()
    left = budget
    files: set[str] = set()
    types: set[tuple[str, ...]] = set()
    for score, part, source in ranked(place, sources, check):
        check()
        shown = part.text.strip()
        if shown in texts or _stands_in(part, window):
            continue
        cost = count(part.text) + 1
        if part.path not in files:
            cost += _MARK_TOKENS + count(part.path)
        if part.around and (part.path, *part.around) not in types:
            cost += count("\n".join(part.around))
        if cost > left:
            if left < budget // 8:
                break
            continue
        if not may_show(part):
            continue
        left -= cost
        texts.add(shown)
        files.add(part.path)
        types.add((part.path, *part.around))
        taken.append((score, part, source))
    return _snippets(taken)


def ranked(
    place: Place, sources: Iterable[Source], check: Callable[[], None] = lambda: None
) -> list[Ranked]:
    """The parts that share words with the place, the best first."""
    wanted = _wanted(place)
    words = frozenset(wanted)
    frequency: Counter[str] = Counter()
    total = 0
    length = 0
    sharing: list[tuple[frozenset[str], Part, Source]] = []
    for source in sources:
        check()
        for part in source.parts:
            shared = words & part.words
            total += 1
            length += part.length
            if shared or part.name in place.imported:
                frequency.update(shared)
                sharing.append((shared, part, source))
    worth = {}
    for term, often in frequency.items():
        if often <= total * _COMMON or total < _FEW:
            rare = math.log(1 + (total - often + 0.5) / (often + 0.5))
            worth[term] = wanted[term] * rare
    mean = length / max(total, 1)
    found: list[Ranked] = []
    for shared, part, source in sharing:
        score = _score(part, shared, worth, mean)
        if part.name in place.imported:
            score = _IMPORTED * (score + _PLAIN)
        elif not place.imported.isdisjoint(part.names):
            score *= _OF_IMPORTED
        if score > 0:
            found.append((score * source.weight, part, source))
    check()
    found.sort(key=lambda each: (-each[0], each[1].path, each[1].start))
    return found


def better(old: Sequence[Snippet], new: Sequence[Snippet]) -> bool:
    """Whether the new snippets are worth it that the model reads them anew."""
    return sum(s.score for s in new) > _SWAP * sum(s.score for s in old)


def _wanted(place: Place) -> Mapping[str, float]:
    """The words around the cursor, with weights: 1 on its line."""
    wanted: dict[str, float] = {}
    before = place.before.rsplit("\n", _LINES)[-_LINES:]
    after = place.after.split("\n", _LINES)[:_LINES]
    for lines in (reversed(before), after):
        for distance, line in enumerate(lines):
            weight = 1 / (1 + distance / _NEAR)
            for term in terms(line):
                wanted[term] = max(weight, wanted.get(term, 0.0))
    return wanted


def _score(part: Part, shared: Iterable[str], worth: Mapping[str, float], mean: float) -> float:
    score = 0.0
    norm = _K * (1 - _B + _B * part.length / mean)
    for term in shared:
        if term not in worth:
            continue
        often = part.terms[term]
        score += worth[term] * often * (_K + 1) / (often + norm)
    return score


def _stands_in(part: Part, window: str) -> bool:
    """Whether the text at the cursor has it already."""
    head = part.text.strip().removesuffix(" ...").removesuffix("{ ... }").rstrip()
    return head in window


def _snippets(taken: Sequence[Ranked]) -> tuple[Snippet, ...]:
    by_path: dict[str, list[Ranked]] = {}
    for each in taken:
        by_path.setdefault(each[1].path, []).append(each)
    made = []
    for path, pieces in by_path.items():
        text = _rendered([part for _, part, _ in pieces])
        score = sum(score for score, _, _ in pieces)
        made.append((pieces[0][0], Snippet(path, text, pieces[0][2].origin, score)))
    made.sort(key=lambda each: each[0])
    return tuple(snippet for _, snippet in made)


def _rendered(parts: Sequence[Part]) -> str:
    """Parts of one file in its order, each below the first lines of the types that hold it."""
    lines: list[str] = []
    open_types: tuple[str, ...] = ()
    for part in sorted(parts, key=lambda part: part.start):
        for depth, head in enumerate(part.around):
            if open_types[: depth + 1] != part.around[: depth + 1]:
                lines.append(head)
        open_types = (*part.around, part.text.partition("\n")[0].rstrip())
        lines.append(part.text.rstrip())
    return "\n".join(lines) + "\n"
