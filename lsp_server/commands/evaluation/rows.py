"""The figures of one contestant, or of the copy baseline, in one task, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from fim import Layout
from fim.evaluation.samples import Sample, Task
from fim.evaluation.scoring import (
    Share,
    doubles_bracket,
    doubles_line,
    is_right,
    is_same,
    parses,
    right_and_wrong,
    similarity,
)
from lsp_server.commands.evaluation.contestants import THRESHOLDS, Contestant, Guess

BASELINE = "copy baseline"

_original_parses = cache(parses)  # each contestant gets the same samples


@dataclass(frozen=True, slots=True)
class Harm:
    """What the suggestions that are shown would bring to the files, and what they would break."""

    right: int  # characters that the author wrote, too
    wrong: int  # characters from the first on that he did not write
    requests: int
    # Files that parsed before and do not any more; a beginning of what the author wrote breaks
    # nothing.
    broken: Share
    doubled_lines: Share
    doubled_brackets: Share

    @property
    def net(self) -> float:
        """Characters right less characters wrong, of a request."""
        return (self.right - self.wrong) / max(1, self.requests)

    def to_json(self) -> dict[str, Any]:
        return {
            "right_characters": self.right,
            "wrong_characters": self.wrong,
            "net_characters": self.net,
            "broken": share_to_json(self.broken),
            "doubled_lines": share_to_json(self.doubled_lines),
            "doubled_brackets": share_to_json(self.doubled_brackets),
        }


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one contestant, or of the baseline, in one task."""

    task: Task
    name: str
    exact: Share
    similarity: float  # the mean
    parses: Share  # of the Python files that parse as the author wrote them
    seconds: float
    model: str | None = None  # None: the baseline
    layout: Layout | None = None
    min_confidence: float | None = None  # None: nothing is ever hidden
    by_confidence: tuple[tuple[float, Share, Share], ...] = ()  # see _shown_at
    shown: Share | None = None
    right_of_shown: Share | None = None  # what the author wrote, as far as it goes
    harm: Harm | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "name": self.name,
            "model": self.model,
            "layout": self.layout,
            "samples": self.exact.count,
            "exact_match": share_to_json(self.exact),
            "edit_similarity": self.similarity,
            "parses": share_to_json(self.parses),
            "min_confidence": self.min_confidence,
            "shown": share_to_json(self.shown),
            "right_of_shown": share_to_json(self.right_of_shown),
            "by_confidence": [
                {
                    "min_confidence": threshold,
                    "shown": share_to_json(shown),
                    "right_of_shown": share_to_json(right),
                }
                for threshold, shown, right in self.by_confidence
            ],
            "harm": self.harm and self.harm.to_json(),
            "seconds": round(self.seconds, 2),
        }


def score(
    task: Task,
    samples: Sequence[Sample],
    guesses: Sequence[Guess],
    seconds: float,
    contestant: Contestant | None,
) -> Row:
    """The row of a contestant's guesses, one for each sample; None: of the baseline's guesses."""
    exact: list[bool] = []
    similarities: list[float] = []
    parsed: list[bool] = []
    for sample, guess in zip(samples, guesses, strict=True):
        same = is_same(sample, guess.text, guess.replaced)
        exact.append(same)
        similarities.append(similarity(sample, guess.text, guess.replaced))
        if _is_python(sample):
            parsed.append(same or parses(_completed(sample, guess)))
    row = Row(
        task,
        BASELINE,
        exact=_share(exact),
        similarity=sum(similarities) / len(similarities),
        parses=_share(parsed),
        seconds=seconds,
    )
    if contestant is None:
        return row
    row = replace(row, name=contestant.name, model=contestant.model, layout=contestant.layout)
    row = replace(row, harm=harm(samples, guesses, contestant.threshold))
    if contestant.threshold is None:
        return row
    _, shown, right_of_shown = _shown_at(contestant.threshold, samples, guesses)
    return replace(
        row,
        min_confidence=contestant.threshold,
        shown=shown,
        right_of_shown=right_of_shown,
        by_confidence=tuple(_shown_at(least, samples, guesses) for least in THRESHOLDS),
    )


def harm(samples: Sequence[Sample], guesses: Sequence[Guess], threshold: float | None) -> Harm:
    """The sums over what is shown at a threshold; None: all that no filter hides."""
    right = wrong = 0
    broken: list[bool] = []
    lines: list[bool] = []
    brackets: list[bool] = []
    for sample, guess in zip(samples, guesses, strict=True):
        seen = guess.at(threshold)
        if seen is None:
            continue
        shown = (sample, seen.text, seen.replaced)
        good, bad = right_and_wrong(*shown)
        right += good
        wrong += bad
        lines.append(doubles_line(*shown))
        brackets.append(doubles_bracket(*shown))
        if _is_python(sample):
            was_whole = parses(sample.prefix + sample.suffix)
            whole = is_right(*shown) or parses(_completed(sample, seen))
            broken.append(was_whole and not whole)
    return Harm(right, wrong, len(samples), _share(broken), _share(lines), _share(brackets))


def _completed(sample: Sample, guess: Guess) -> str:
    return sample.prefix + guess.text + sample.suffix[guess.replaced :]


def _is_python(sample: Sample) -> bool:
    """Whether the sample's file is Python that parses as the author wrote it."""
    if not sample.path.endswith((".py", ".pyi")):
        return False
    return _original_parses(sample.prefix + sample.middle + sample.suffix)


def _shown_at(
    threshold: float, samples: Sequence[Sample], guesses: Sequence[Guess]
) -> tuple[float, Share, Share]:
    """The threshold, the share of places where it shows something, and the share of that which is
    right."""
    right = []
    for sample, guess in zip(samples, guesses, strict=True):
        seen = guess.at(threshold)
        if seen is not None:
            right.append(is_right(sample, seen.text, seen.replaced))
    return threshold, Share(len(right), len(guesses)), _share(right)


def _share(hits: Sequence[bool]) -> Share:
    return Share(sum(hits), len(hits))


def share_to_json(share: Share | None) -> dict[str, Any] | None:
    if share is None:
        return None
    return {"share": share.value, "interval": share.interval, "hits": share.hits, "of": share.count}


class Table:
    """Formats rows so that they align, however many of them are known."""

    def __init__(self, contestants: Sequence[Contestant]) -> None:
        names = [BASELINE, *(contestant.name for contestant in contestants)]
        self._name_width = max(map(len, names))
        self._hides = contestants[0].threshold is not None

    def heading(self) -> str:
        columns = f"{'exact match':>20}{'similarity':>12}{'parses':>8}"
        if self._hides:
            columns += f"{'shown':>8}{'right of shown':>20}"
        columns += f"{'net':>7}{'broken':>8}{'doubled':>9}"
        return self._start("task", "") + columns

    def line(self, row: Row) -> str:
        line = (
            f"{self._start(row.task, row.name)}{with_interval(row.exact):>20}"
            f"{row.similarity:12.3f}{percent(row.parses):>8}"
        )
        if self._hides:
            line += f"{percent(row.shown):>8}{with_interval(row.right_of_shown):>20}"
        if row.harm is not None:
            doubled = row.harm.doubled_lines.hits + row.harm.doubled_brackets.hits
            line += f"{row.harm.net:7.1f}{percent(row.harm.broken):>8}{doubled:9}"
        return line.rstrip()

    def confidence_lines(self, row: Row) -> list[str]:
        """For each value of minConfidence: the share that it shows, and how much is right."""
        lines = []
        for threshold, shown, right in row.by_confidence:
            lines.append(
                f"{self._start(row.task, row.name)}  minConfidence {threshold:.1f}: "
                f"{percent(shown):>6} shown, {percent(right):>6} of them right"
            )
        return lines

    def _start(self, task: str, name: str) -> str:
        """The first two columns."""
        return f"{task:13}{name:{self._name_width}}"


def percent(share: Share | None) -> str:
    if share is None:
        return ""
    if share.value is None:
        return "-"
    return f"{100 * share.value:.1f}%"


def with_interval(share: Share | None) -> str:
    if share is None or share.interval is None:
        return percent(share)
    low, high = share.interval
    return f"{percent(share)} [{100 * low:4.1f}, {100 * high:4.1f}]"
