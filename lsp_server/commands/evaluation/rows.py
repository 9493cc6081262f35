"""The figures of one contestant, or of the copy baseline, in one task, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from fim import Layout
from fim.evaluation.samples import Sample, Task
from fim.evaluation.scoring import Share, is_same, parses, similarity
from lsp_server.commands.evaluation.contestants import Contestant, Guess

BASELINE = "copy baseline"
THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)

_original_parses = cache(parses)  # each contestant gets the same samples


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
    exact_of_shown: Share | None = None

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
            "exact_match_of_shown": share_to_json(self.exact_of_shown),
            "by_confidence": [
                {
                    "min_confidence": threshold,
                    "shown": share_to_json(shown),
                    "exact_match_of_shown": share_to_json(exact),
                }
                for threshold, shown, exact in self.by_confidence
            ],
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
            completed = sample.prefix + guess.text + sample.suffix[guess.replaced :]
            parsed.append(same or parses(completed))
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
    if contestant.threshold is None:
        return row
    _, shown, exact_of_shown = _shown_at(contestant.threshold, guesses, exact)
    return replace(
        row,
        min_confidence=contestant.threshold,
        shown=shown,
        exact_of_shown=exact_of_shown,
        by_confidence=tuple(_shown_at(threshold, guesses, exact) for threshold in THRESHOLDS),
    )


def _is_python(sample: Sample) -> bool:
    """Whether the sample's file is Python that parses as the author wrote it."""
    if not sample.path.endswith((".py", ".pyi")):
        return False
    return _original_parses(sample.prefix + sample.middle + sample.suffix)


def _shown_at(
    threshold: float, guesses: Sequence[Guess], exact: Sequence[bool]
) -> tuple[float, Share, Share]:
    """The threshold, the share of guesses that it shows, and the share of those that is exact."""
    shown = []
    for guess, same in zip(guesses, exact, strict=True):
        if not guess.hidden and guess.confidence >= threshold:
            shown.append(same)
    return threshold, Share(len(shown), len(exact)), _share(shown)


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
            columns += f"{'shown':>8}{'exact of shown':>20}"
        return self._start("task", "") + columns

    def line(self, row: Row) -> str:
        line = (
            f"{self._start(row.task, row.name)}{with_interval(row.exact):>20}"
            f"{row.similarity:12.3f}{percent(row.parses):>8}"
            f"{percent(row.shown):>8}{with_interval(row.exact_of_shown):>20}"
        )
        return line.rstrip()

    def confidence_lines(self, row: Row) -> list[str]:
        """For each value of minConfidence: the share that it shows, and how much is exact."""
        lines = []
        for threshold, shown, exact in row.by_confidence:
            lines.append(
                f"{self._start(row.task, row.name)}  minConfidence {threshold:.1f}: "
                f"{percent(shown):>6} shown, {percent(exact):>6} of them exact"
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
