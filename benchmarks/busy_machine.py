"""Decode and prefill on a machine at rest, and on one with a busy neighbour.

    python -m benchmarks.busy_machine [--model FILE.gguf] [--sides ours:blocks,llama:file]

The neighbour is an endless matrix product on every core, in a session of its own, as a build in
another terminal would be: Linux shares the processor among sessions first. Each repeat goes round
all sides alone, then beside it. A share of one half of every core, the least that one can hope for,
is 2.0 times the time. Ours has the engine's priority and GOMP_SPINCOUNT=1000, unless the
environment says otherwise; the peers have what they set themselves.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.figures import machine, table
from benchmarks.peers import Exports, gguf_file, process
from benchmarks.throughput import ask
from model.machine import usable_cores

BURN = "import torch\na = torch.randn(1500, 1500)\nwhile True: a @ a"
WARM_S = 3.0  # until the neighbour has loaded torch
POSITIONS = 2048
DECODED = 16
JOBS: dict[str, tuple[dict[str, Any], int]] = {
    "decode behind 1,000 positions, ms a token": (
        {"job": "decode", "tokens": DECODED, "length": 1000},
        DECODED,
    ),
    "prefill 512, ms": ({"job": "prefill", "tokens": 512}, 1),
}
Figures = dict[tuple[str, str, bool], list[float]]
"""(Job, side, whether the neighbour is there) -> milliseconds of each repeat."""


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    burner = subprocess.Popen([sys.executable, "-c", BURN], start_new_session=True)
    try:
        time.sleep(WARM_S)
        yield
    finally:
        burner.kill()
        burner.wait()


def measure(model: str, sides: list[str], threads: int, repeats: int) -> Figures:
    found: Figures = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fimls-")))
        exports = Exports(model, folder)
        running = {}
        for side in sides:
            kind, _, precision = side.partition(":")
            arguments = ["--threads", str(threads), "--precision", precision]
            arguments += ["--positions", str(POSITIONS)]
            running[side], _ = stack.enter_context(
                process("sides", kind, exports.path(kind, precision), *arguments)
            )
        for number in range(repeats + 1):
            for busy in (False, True):
                with neighbour() if busy else contextlib.nullcontext():
                    for name, (job, count) in JOBS.items():
                        for side, worker in running.items():
                            ms = ask(worker, job) * 1000 / count
                            if number:  # the first round is for warming up
                                found.setdefault((name, side, busy), []).append(ms)
    return found


def report(found: Figures) -> str:
    rows: list[list[object]] = []
    for (name, side, busy), times in found.items():
        if busy:
            alone, beside = statistics.median(found[name, side, False]), statistics.median(times)
            rows.append([name, side, alone, beside, max(times), beside / alone])
    return table(["", "", "alone", "busy", "its worst", "busy / alone"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--sides", help="as of benchmarks.throughput")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cores())
    options = parser.parse_args()
    named = gguf_file(options.model) is not None
    sides = (options.sides or ("ours:blocks,llama:file" if named else "ours:int8")).split(",")
    found = measure(options.model, sides, options.threads, options.repeats)
    print(f"{machine()}; {options.threads} threads; {options.model}; {time.strftime('%Y-%m-%d')}\n")
    print(report(found))


if __name__ == "__main__":
    main()
