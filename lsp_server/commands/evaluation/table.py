"""The rows of an evaluation as lines of a table."""

from __future__ import annotations

from collections.abc import Sequence

from fim.evaluation.scoring import Share
from lsp_server.commands.evaluation.contestants import Contestant
from lsp_server.commands.evaluation.rows import BASELINE, Row


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
            f"{self._start(row.task, row.name)}{_with_interval(row.exact):>20}"
            f"{row.similarity:12.3f}{_percent(row.parses):>8}"
            f"{_percent(row.shown):>8}{_with_interval(row.exact_of_shown):>20}"
        )
        return line.rstrip()

    def confidence_lines(self, row: Row) -> list[str]:
        """For each value of minConfidence: the share that it shows, and how much is exact."""
        lines = []
        for threshold, shown, exact in row.by_confidence:
            lines.append(
                f"{self._start(row.task, row.name)}  minConfidence {threshold:.1f}: "
                f"{_percent(shown):>6} shown, {_percent(exact):>6} of them exact"
            )
        return lines

    def _start(self, task: str, name: str) -> str:
        """The first two columns."""
        return f"{task:13}{name:{self._name_width}}"


def _percent(share: Share | None) -> str:
    if share is None:
        return ""
    if share.value is None:
        return "-"
    return f"{100 * share.value:.1f}%"


def _with_interval(share: Share | None) -> str:
    if share is None or share.interval is None:
        return _percent(share)
    low, high = share.interval
    return f"{_percent(share)} [{100 * low:4.1f}, {100 * high:4.1f}]"
