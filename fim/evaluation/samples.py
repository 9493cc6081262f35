"""Fill-in-the-middle samples from source files: for training, evaluation and fine-tuning.

A sample is a pair of offsets (code points) into a text: the middle is text[start:stop], and the
model sees the rest. Cuts fall on any character, also inside words, because a cursor does (Bavarian
et al. 2022, arXiv 2207.14255: models trained on token-level spans fail at random spans).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

from fim.editing.line_offsets import line_at, line_break, line_start

Span = tuple[int, int]


def rest_of_line(text: str, rng: Random) -> Span:
    """A cursor anywhere; the middle runs to the line's end."""
    start = rng.randrange(len(text))
    return start, line_break(text, start)


def whole_line(text: str, rng: Random) -> Span:
    """A cursor after the indentation of a line; the middle is the line."""
    start = line_start(text, rng.randrange(len(text)))
    stop = line_break(text, start)
    return stop - len(text[start:stop].lstrip(" \t")), stop


def several_lines(text: str, rng: Random) -> Span:
    """A cursor anywhere; the middle runs to the end of one of the next lines."""
    start, stop = rest_of_line(text, rng)
    for _ in range(rng.randint(1, 6)):
        stop = line_break(text, min(stop + 1, len(text)))
    return start, stop


def random_span(text: str, rng: Random) -> Span:
    """Two uniform offsets, as StarCoder2 was trained."""
    start, stop = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
    return start, stop


def random_middle(text: str, rng: Random) -> Span:
    """One span of the mixture that the bundled model is trained on; `text` must not be empty."""
    kinds = (rest_of_line, whole_line, several_lines, random_span)
    return rng.choices(kinds, weights=(45, 15, 20, 20))[0](text, rng)


Task = Literal["line", "column", "multi-line", "random-span"]
TASKS: tuple[Task, ...] = get_args(Task)
# characters of a middle of several lines: about what the setting maxTokens lets a model write
LONGEST = 240
STRETCH = 180  # characters in which the two cuts of a random span fall
LEAST_CODE = 4  # characters of a line that is worth guessing
MISSES = 10_000  # useless places in a row after which a task counts as impossible


@dataclass(frozen=True, slots=True)
class Sample:
    """A place in a file of `package` with `middle` taken out. The file was prefix + middle +
    suffix."""

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
    one of few. *line*: a line of code after its indentation; *column*: from anywhere inside such a
    line to its end; *multi-line*: two to six lines, the first after its indentation, as in
    HumanEval infilling (Bavarian et al. 2022, arXiv 2207.14255); *random-span*: between two uniform
    cuts in a stretch of 180 characters.

    Raises ValueError: no file has a place for the task.
    """
    rng = Random(f"{seed} {task}")
    names = sorted(packages)
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


def _draw_line(text: str, rng: Random) -> Span | None:
    """A drawn line without its indentation; None where it is blank, short or a comment."""
    lines = text.split("\n")
    number = rng.randrange(len(lines))
    line = lines[number]
    code = line.strip()
    if len(code) < LEAST_CODE or code.startswith("#"):
        return None
    stop = len("\n".join(lines[: number + 1]))
    return stop - len(line.lstrip()), stop


def _draw_column(text: str, rng: Random) -> Span | None:
    span = _draw_line(text, rng)
    if span is None:
        return None
    start, stop = span
    return rng.randrange(start + 1, stop), stop


def _draw_lines(text: str, rng: Random) -> Span | None:
    span = _draw_line(text, rng)
    if span is None:
        return None
    start, stop = span
    for _ in range(rng.randint(1, 5)):
        if stop == len(text):
            return None
        stop = line_break(text, stop + 1)
    if stop - start > LONGEST or not line_at(text, stop).strip():
        return None
    return start, stop


def _draw_span(text: str, rng: Random) -> Span | None:
    stretch = min(STRETCH, len(text))
    base = rng.randrange(len(text) - stretch + 1)
    start, stop = sorted((rng.randrange(stretch + 1), rng.randrange(stretch + 1)))
    return (base + start, base + stop) if text[base + start : base + stop].strip() else None


_DRAW: Mapping[Task, Callable[[str, Random], Span | None]] = {
    "line": _draw_line,
    "column": _draw_column,
    "multi-line": _draw_lines,
    "random-span": _draw_span,
}
