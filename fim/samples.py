"""Fill-in-the-middle samples from source files: for training, evaluation and fine-tuning.

A sample is a pair of offsets (code points) into a text: the middle is text[start:stop], the rest is what the model
sees. Cuts fall on any character, also inside words, because a cursor does (Bavarian et al. 2022, arXiv 2207.14255:
models trained on token-level spans fail at random spans).
"""

from __future__ import annotations

from random import Random

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
    kind = rng.choices((rest_of_line, whole_line, several_lines, random_span), weights=(45, 15, 20, 20))[0]
    return kind(text, rng)
