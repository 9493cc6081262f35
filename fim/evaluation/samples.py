"""Fill-in-the-middle samples from source files: for training, evaluation and fine-tuning.

A sample is a pair of offsets (code points) into a text: the middle is text[start:stop], the rest is
what the model sees. Cuts fall on any character, also inside words, because a cursor does (Bavarian
et al. 2022, arXiv 2207.14255: models trained on token-level spans fail at random spans).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

Span = tuple[int, int]


def line_end(text: str, offset: int) -> int:
    end = text.find("\n", offset)
    return len(text) if end < 0 else end


def rest_of_line(text: str, rng: Random) -> Span:
    """A cursor anywhere; the middle runs to the line's end."""
    start = rng.randrange(len(text))
    return start, line_end(text, start)


def whole_line(text: str, rng: Random) -> Span:
    """A cursor after the indentation of a line; the middle is the line."""
    start = text.rfind("\n", 0, rng.randrange(len(text))) + 1
    stop = line_end(text, start)
    return start + (stop - start) - len(text[start:stop].lstrip(" \t")), stop


def several_lines(text: str, rng: Random) -> Span:
    """A cursor anywhere; the middle runs to the end of one of the next lines."""
    start, stop = rest_of_line(text, rng)
    for _ in range(rng.randint(1, 6)):
        stop = line_end(text, min(stop + 1, len(text)))
    return start, stop


def random_span(text: str, rng: Random) -> Span:
    """Two uniform offsets, as StarCoder2 was trained."""
    start, stop = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
    return start, stop


def random_middle(text: str, rng: Random) -> Span:
    """One span of the mixture that the bundled model is trained on; `text` must not be empty."""
    kind = rng.choices(
        (rest_of_line, whole_line, several_lines, random_span), weights=(45, 15, 20, 20)
    )[0]
    return kind(text, rng)


Task = Literal["line", "column", "multi-line", "random-span"]
TASKS: tuple[Task, ...] = get_args(Task)
# characters of a middle of several lines: about what the setting maxTokens lets a model write
LONGEST = 240
STRETCH = 180  # characters in which the two cuts of a random span fall
LEAST_CODE = 4  # characters of a line that is worth guessing
MISSES = 10_000  # places in a row that will not do, before there is taken to be none


@dataclass(frozen=True, slots=True)
class Sample:
    """A place in a file of `package`, of which `middle` was taken out. The file was prefix + middle
    + suffix."""

    package: str
    path: str
    prefix: str
    middle: str
    suffix: str


def draw(
    packages: Mapping[str, Sequence[tuple[str, str]]], task: Task, count: int, seed: int
) -> list[Sample]:
    """`count` samples from package -> (path, text) of its files; the same for the same files, in
    the same order.

    A package is drawn first, then a file, then a place: a package of many files counts no more than
    one of few. *line*: a line of code behind its indentation; *column*: from anywhere inside such a
    line to its end; *multi-line*: two to six lines, the first behind its indentation, as in
    HumanEval infilling (Bavarian et al. 2022, arXiv 2207.14255); *random-span*: between two uniform
    cuts in a stretch of 180 characters.

    Raises ValueError: no file has a place for the task.
    """
    rng, names = Random(f"{seed} {task}"), sorted(packages)
    samples: list[Sample] = []
    misses = 0
    while len(samples) < count:
        package = rng.choice(names)
        path, text = rng.choice(packages[package])
        span = _DRAW[task](text, rng)
        if span is None:
            misses += 1
            if misses == MISSES:
                raise ValueError(f"no place for the task {task!r} was found")
            continue
        misses = 0
        start, stop = span
        samples.append(Sample(package, path, text[:start], text[start:stop], text[stop:]))
    return samples


def _line_of_code(text: str, rng: Random) -> tuple[list[str], int, int] | None:
    """The lines, the number of a drawn one and its indentation; None where that one is blank, short
    or a comment."""
    lines = text.split("\n")
    number = rng.randrange(len(lines))
    code = lines[number].strip()
    if len(code) < LEAST_CODE or code.startswith("#"):
        return None
    return lines, number, len(lines[number]) - len(lines[number].lstrip())


def _offset(lines: list[str], number: int) -> int:
    return sum(len(line) + 1 for line in lines[:number])


def _draw_line(text: str, rng: Random) -> Span | None:
    if (found := _line_of_code(text, rng)) is None:
        return None
    lines, number, indent = found
    start = _offset(lines, number)
    return start + indent, start + len(lines[number])


def _draw_column(text: str, rng: Random) -> Span | None:
    if (found := _line_of_code(text, rng)) is None:
        return None
    lines, number, indent = found
    start, length = _offset(lines, number), len(lines[number])
    return start + rng.randrange(indent + 1, length), start + length


def _draw_lines(text: str, rng: Random) -> Span | None:
    if (found := _line_of_code(text, rng)) is None:
        return None
    lines, number, indent = found
    last = number + rng.randint(1, 5)
    if last >= len(lines) or not lines[last].strip():
        return None
    start = _offset(lines, number) + indent
    stop = _offset(lines, last) + len(lines[last])
    return (start, stop) if stop - start <= LONGEST else None


def _draw_span(text: str, rng: Random) -> Span | None:
    stretch = min(STRETCH, len(text))
    base = rng.randrange(len(text) - stretch + 1)
    start, stop = sorted(base + rng.randrange(stretch + 1) for _ in range(2))
    return (start, stop) if text[start:stop].strip() else None


_DRAW: Mapping[Task, Callable[[str, Random], Span | None]] = {
    "line": _draw_line,
    "column": _draw_column,
    "multi-line": _draw_lines,
    "random-span": _draw_span,
}
