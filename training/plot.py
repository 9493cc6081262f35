"""A picture of a run: loss and held-out bits a byte over the tokens, from its log.

    python -m training.plot training/runs/NAME docs/training.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

SMOOTHED = 20  # lines of the log in a running mean


def main(run: Path, out: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    held_out = axes.twinx()
    curves = ((axes, "loss", "nats a token, training"), (held_out, "held_out_bits_per_byte", "bits a byte, held out"))
    for number, (on, key, label) in enumerate(curves):
        tokens = [line["tokens"] / 1e6 for line in lines if key in line]
        values = [line[key] for line in lines if key in line]
        if on is axes:  # a few rows a step make a jagged line
            values = [sum(part := values[max(0, n - SMOOTHED + 1) : n + 1]) / len(part) for n in range(len(values))]
        on.plot(tokens, values, color=f"C{number}", linewidth=1, marker="." if on is held_out else "")
        on.set_ylabel(label, color=f"C{number}")
    axes.set_xlabel("million tokens")
    axes.grid(alpha=0.3)
    figure.savefig(out, metadata={"Date": None})
    print(out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
