"""Plots of the replay's figures, as SVG that needs no library and is legible on light and on dark
pages.

    python -m benchmarks.plots distribution replay.json docs/replay.svg
    python -m benchmarks.plots context replay.json docs/context.svg
    python -m benchmarks.plots lengths throughput.json docs/lengths.svg

"distribution": the share of all keys that were answered within so many milliseconds, a curve for
each side. "context": the median from key to answer over the length of the prompt, for sides that
differ by contextTokens alone. "lengths", of benchmarks.throughput's figures: how long a prompt of
so many tokens takes, and each token behind it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from fim.evaluation.scoring import Bin

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 56, 24, 16, 44
COLOURS = (
    "#2f81f7",
    "#d9822b",
    "#3fa45b",
    "#a371f7",
    "#db5a6b",
    "#7a8490",
)  # on white and on black
INK = "#7a8490"
Point = tuple[float, float]


def distribution(times: Mapping[str, Sequence[float | None]]) -> str:
    """Milliseconds of each side's keys -> its cumulative distribution. None is a key that was
    superseded: it counts as one that is never answered. Raises ValueError where there are no
    answers.
    """
    curves: dict[str, list[Point]] = {}
    for name, values in times.items():
        ordered = sorted(ms for ms in values if ms is not None)
        if ordered:
            curves[name] = [
                (max(1.0, ms), (n + 1) / len(values) * 100) for n, ms in enumerate(ordered)
            ]
    return chart(curves, "ms from key to answer", "% of the keys", y_top=100, steps=True)


def over_context(sides: Mapping[str, tuple[float, float]]) -> str:
    """Side -> (ids in the prompt, median ms); sides that differ by contextTokens alone are points
    of one curve."""
    curves: dict[str, list[Point]] = {}
    for name, (ids, ms) in sides.items():
        if ids == ids and ms == ms:
            curves.setdefault(re.sub(r",contextTokens=\d+", "", name), []).append((ids, ms))
    curves = {name: sorted(points) for name, points in curves.items()}
    return chart(curves, "ids in the prompt (median)", "ms from key to answer (median)", marks=True)


def over_length(figures: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Side -> job of benchmarks.throughput -> tokens/s of each repeat: milliseconds over tokens."""
    curves: dict[str, list[Point]] = {}
    for side, by_job in figures.items():
        for job, rates in by_job.items():
            if found := re.fullmatch(r"(prefill|decode at) (\d+), tokens/s", job):
                tokens = int(found[2])
                ms = 1000 / statistics.median(rates)
                if found[1] == "prefill":
                    curves.setdefault(f"{side}, reading the prompt", []).append(
                        (tokens, ms * tokens)
                    )
                elif tokens:
                    curves.setdefault(f"{side}, a token behind it", []).append((tokens, ms))
    drawn = {name: sorted(points) for name, points in curves.items()}
    return chart(drawn, "tokens of the prompt", "ms (median)", marks=True, y_log=True)


def calibration(bins: Mapping[str, Sequence[Bin]]) -> str:
    """How often guesses are right over how sure the model says it is; the diagonal is perfect."""
    curves: dict[str, list[Point]] = {"as sure as right": [(0, 0), (100, 100)]}
    for name, its in bins.items():
        curves[name] = [(100 * b.confidence, 100 * b.right.hits / b.right.count) for b in its]
    return chart(curves, "% sure", "% right", y_top=100, marks=True, x_log=False)


def chart(
    curves: Mapping[str, Sequence[Point]],
    x_label: str,
    y_label: str,
    *,
    y_top: float | None = None,
    steps: bool = False,
    marks: bool = False,
    x_log: bool = True,
    y_log: bool = False,
) -> str:
    """Curves. Raises ValueError where there is nothing to draw."""
    points = [point for curve in curves.values() for point in curve]
    if not points:
        raise ValueError("there is nothing to draw")
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    low, high = (low, high) if high > low else (low / 2, high * 2)
    top = y_top or nice(max(y for _, y in points))
    bottom = 10.0 ** math.floor(math.log10(min(y for _, y in points))) if y_log else 0.0

    def x_of(x: float) -> float:
        share = (x - low) / (high - low)
        if x_log:
            share = (math.log(x) - math.log(low)) / (math.log(high) - math.log(low))
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y_of(y: float) -> float:
        share = math.log(y / bottom) / math.log(top / bottom) if y_log else min(y, top) / top
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = []
    for value in ticks(bottom, top) if y_log else [top * n / 4 for n in range(5)]:
        y = y_of(value)
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{INK}" stroke-opacity=".25"/>'
        )
        parts.append(text(LEFT - 6, y + 4, f"{value:g}", "end"))
    for x in ticks(low, high) if x_log else [low + (high - low) * n / 4 for n in range(5)]:
        parts.append(
            f'<path d="M{x_of(x):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="{INK}" '
            'stroke-opacity=".15"/>'
        )
        parts.append(text(x_of(x), HEIGHT - BOTTOM + 16, f"{x:g}", "middle"))
    parts.append(text(WIDTH - RIGHT, HEIGHT - 8, x_label, "end"))
    parts.append(text(LEFT + 6, TOP + 10, y_label, "start"))
    for n, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[n % len(COLOURS)]
        drawn = [(x_of(x), y_of(y)) for x, y in curve]
        path = f"M{drawn[0][0]:.1f} {drawn[0][1]:.1f}"
        path += "".join(f"H{x:.1f}V{y:.1f}" if steps else f"L{x:.1f} {y:.1f}" for x, y in drawn[1:])
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if marks:
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in drawn
            ]
        y = HEIGHT - BOTTOM - 14 - 16 * (len(curves) - 1 - n) if steps else TOP + 28 + 16 * n
        at = WIDTH - RIGHT - 8 if steps else LEFT + 6
        parts.append(text(at, y, name, "end" if steps else "start", colour))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" '
        f'font-size="12" role="img">\n' + "\n".join(parts) + "\n</svg>\n"
    )


def text(x: float, y: float, words: str, anchor: str, colour: str = INK) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
        f'fill="{colour}">{escape(words)}</text>'
    )


def nice(value: float) -> float:
    """The least of 1, 2, 4, 8 times a power of ten that is not below."""
    power = 10.0 ** math.floor(math.log10(max(value, 1e-9)))
    return next(power * n for n in (1, 2, 4, 8, 10) if power * n >= value)


def ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [n * 10.0**p for p in powers for n in (1, 2, 5) if low <= n * 10.0**p <= high]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=["distribution", "context", "lengths"])
    parser.add_argument("figures", type=Path, help="what --json of the benchmark wrote")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    found = json.loads(options.figures.read_text())
    if options.kind == "distribution":
        drawn = distribution({name: side["ms"] for name, side in found.items()})
    elif options.kind == "lengths":
        drawn = over_length(found)
    else:
        drawn = over_context(
            {name: (side["prompt p50"], side["p50"]) for name, side in found.items()}
        )
    options.out.write_text(drawn)
    print(options.out)


if __name__ == "__main__":
    main()
