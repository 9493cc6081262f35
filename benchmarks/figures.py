"""Percentiles, Markdown tables, and the CPU time and memory of a process, for all benchmarks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from model.machine import processor

TICKS = os.sysconf("SC_CLK_TCK")


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that at least `share` (0 to 1) of the values do not exceed; nan of none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    rank = -(-len(ordered) * round(share * 1000) // 1000)  # rounded up, without the noise of floats
    return ordered[max(0, rank - 1)]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown; figures get as many digits as they deserve."""
    lines = [head, ["---"] * len(head), *([shown(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def shown(value: object) -> str:
    if not isinstance(value, float):
        return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
    if value != value:
        return "–"
    return (
        f"{value:,.0f}"
        if abs(value) >= 100
        else f"{value:.1f}"
        if abs(value) >= 10
        else f"{value:.2f}"
    )


def cpu_seconds(process: int | str) -> float:
    """What a process and its threads have used so far; 0 of one that is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def machine() -> str:
    """The processor, with what it can do, and how many cores."""
    return f"{processor()}, {os.cpu_count()} cores"
