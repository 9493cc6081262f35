"""A picture of a run: loss and held-out bits a byte over the tokens, from its log.

python -m training.plot training/runs/NAME docs/training.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

SMOOTHED = 20  # lines of the log in a running mean


def main(run: Path, out: Path) -> None:
    log = run / "log.jsonl"
    try:
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise SystemExit(f"{run} holds no log.jsonl: make train RUN={run}") from None
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"{log} cannot be read ({error}): correct it, or name another run."
        ) from None

    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    held_out = axes.twinx()
    curves = (
        (axes, "loss", "nats a token, training"),
        (held_out, "held_out_bits_per_byte", "bits a byte, held out"),
    )
    for number, (on, key, label) in enumerate(curves):
        tokens = [line["tokens"] / 1e6 for line in lines if key in line]
        values = [line[key] for line in lines if key in line]
        if on is axes:  # a few rows a step make a jagged line
            values = [
                sum(part := values[max(0, n - SMOOTHED + 1) : n + 1]) / len(part)
                for n in range(len(values))
            ]
        on.plot(
            tokens, values, color=f"C{number}", linewidth=1, marker="." if on is held_out else ""
        )
        on.set_ylabel(label, color=f"C{number}")
    axes.set_xlabel("million tokens")
    axes.grid(alpha=0.3)
    figure.savefig(out, metadata={"Date": None})
    print(out)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line as main's parameters."""
    parser = argparse.ArgumentParser(
        prog="python -m training.plot", description="Draws a run's log."
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("out", type=Path, help="the picture, .svg")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(**vars(parse()))
