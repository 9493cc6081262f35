"""Prefill, decode, and steps of several rows: ours, transformers and llama.cpp on the same weights,
in one run.

    python -m benchmarks.throughput --model FILE.gguf
    python -m benchmarks.throughput [--model bundled|3b|FOLDER] [--layers 6] [--repeats 5]
        [--sides ours:int8,...]

FILE.gguf, or a name that `fimls models` lists: "ours:blocks" are the file's own blocks, what the
engine takes by default; "llama:file" is llama.cpp on the same file, its other sides are that file
quantized anew by llama.cpp. "3b" is StarCoder2-3B's shape with random weights, cut to --layers.
llama.cpp's names are those of its files: f32, f16, q8_0, q4_0, q4_k_m.

Each side is a process of its own with the same number of threads, all loaded before the first
measurement and one at work at a time; each job goes round all sides before the next, --repeats
times. Figures are medians; the best side of each job is bold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import machine, shown, table
from benchmarks.peers import STARCODER2_3B, Exports, gguf_file, process, write_random
from model.machine import usable_cores

SIDES = "ours:float32,ours:int8,transformers:float32,llama:f32,llama:q8_0,llama:q4_0,llama:q4_k_m"
GGUF_SIDES = "ours:blocks,ours:int8,ours:int4,llama:file,llama:q4_0,llama:q8_0"
DECODED, STEPS, ROWS = 32, 8, (1, 2, 4, 8, 16)
SPARE_BYTES = 10**9
TURN_S = 0.2  # a side that has just worked comes to rest


def jobs(
    positions: int, prefilled: Sequence[int], lengths: Sequence[int], decoded: int, steps: int
) -> dict[str, tuple[dict[str, Any], float]]:
    """What is measured: the job of a side, and how many tokens it is about (0: milliseconds are
    told). prefilled: the tokens of prompts. lengths: positions in the cache; steps are measured
    behind the last."""
    found: dict[str, tuple[dict[str, Any], float]] = {}
    for tokens in prefilled:
        if tokens <= positions:
            found[f"prefill {tokens}, tokens/s"] = {"job": "prefill", "tokens": tokens}, tokens
    lengths = [min(length, positions - decoded - 1) for length in lengths]
    for at in dict.fromkeys(lengths):
        found[f"decode at {at}, tokens/s"] = (
            {"job": "decode", "tokens": decoded, "length": at},
            decoded,
        )
    for rows in ROWS:
        found[f"step of {rows}, ms"] = (
            {"job": "step", "rows": rows, "length": lengths[-1], "times": steps},
            0.0,
        )
    return found


def numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--sides", help=f"without: {SIDES}; of a GGUF file {GGUF_SIDES}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prefill", type=numbers, default=[512, 2048], help="tokens of prompts")
    parser.add_argument("--lengths", type=numbers, default=[0, 1000], help="positions in the cache")
    parser.add_argument("--decoded", type=int, default=DECODED)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument(
        "--threads", type=int, help="of each side; without: one for each physical core"
    )
    parser.add_argument(
        "--clock",
        choices=["perf_counter", "process_time"],
        default="perf_counter",
        help="process_time and --threads 1 where others use the machine",
    )
    parser.add_argument("--only", default="", help="jobs whose name begins with one of A,B,…")
    parser.add_argument("--json", type=Path, help="where the figures go, with every repeat")
    options = parser.parse_args()
    options.threads = options.threads or usable_cores()
    if options.sides is None:
        named = options.model != "3b" and gguf_file(options.model) is not None
        options.sides = GGUF_SIDES if named else SIDES
    with tempfile.TemporaryDirectory(prefix="fimls-") as name:
        folder, model = Path(name), options.model
        if model == "3b":
            shape = STARCODER2_3B | {"num_hidden_layers": options.layers}
            model = str(write_random(folder / f"starcoder2-3b-{options.layers}-layers", shape))
        figures = measure(Exports(model, folder), options)
    print(
        f"{machine()}; {options.threads} threads; {options.model}"
        f"{f', {options.layers} layers, random weights' if options.model == '3b' else ''}; "
        f"medians of {options.repeats} repeats, all sides in turn; {time.strftime('%Y-%m-%d')}\n"
    )
    print(report(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def measure(exports: Exports, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Side -> job -> a figure for each repeat."""
    positions = max(*options.prefill, *options.lengths) + options.decoded + max(ROWS)
    with contextlib.ExitStack() as stack:
        running = {}
        for side in options.sides.split(","):
            kind, _, precision = side.partition(":")
            try:
                arguments = ["--threads", str(options.threads), "--precision", precision]
                arguments += ["--positions", str(positions), "--clock", options.clock]
                model = exports.path(kind, precision)
                check_room(model)
                running[side] = stack.enter_context(process("sides", kind, model, *arguments))
            except (
                SystemExit
            ) as error:  # a peer that is not there, or a precision that we do not have yet
                print(f"without {side}: {error}")
        positions = min(first["positions"] for _, first in running.values())
        wanted = jobs(positions, options.prefill, options.lengths, options.decoded, options.steps)
        only = tuple(options.only.split(","))
        wanted = {name: job for name, job in wanted.items() if name.startswith(only)}
        figures: dict[str, dict[str, list[float]]] = {side: {} for side in running}
        for number in range(options.repeats + 1):
            for name, (job, tokens) in wanted.items():
                for side, (worker, _) in running.items():
                    time.sleep(TURN_S)
                    seconds = ask(worker, job)
                    if number:  # the first round is for warming up
                        figures[side].setdefault(name, []).append(
                            tokens / seconds if tokens else seconds * 1000
                        )
    return figures


def check_room(model: str) -> None:
    """Raises SystemExit where a GGUF file as a side would have the machine run out of memory."""
    path = Path(model)
    if not path.is_file():
        return
    free = re.search(r"MemAvailable: *(\d+)", Path("/proc/meminfo").read_text())
    needed = 2 * path.stat().st_size + SPARE_BYTES
    if free and int(free[1]) * 1024 < needed:
        raise SystemExit(f"that takes up to {needed / 1e9:.1f} GB of memory; give fewer --sides")


def ask(worker: Any, job: dict[str, Any]) -> float:
    worker.stdin.write(json.dumps(job) + "\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"a side ended in the middle of {job}: its error stands above")
    return float(json.loads(line)["seconds"])


def report(figures: dict[str, dict[str, list[float]]]) -> str:
    """Medians, how many times as fast as the best peer each of ours is, and the best of ours as
    each peer."""
    names = list(dict.fromkeys(name for by_job in figures.values() for name in by_job))
    medians = {
        side: {n: statistics.median(v) for n, v in by_job.items()}
        for side, by_job in figures.items()
    }
    ours = [side for side in figures if side.startswith("ours")]
    peers = [side for side in figures if side not in ours]
    rows: list[list[object]] = []
    for name in names:
        speed = {
            side: m[name] if "tokens/s" in name else 1 / m[name] for side, m in medians.items()
        }
        best = max(speed, key=lambda side: speed[side])
        row: list[object] = [name]
        for side in figures:
            low, high = min(figures[side][name]), max(figures[side][name])
            text = shown(medians[side][name])
            row.append((f"**{text}**" if side == best else text) + f" ({shown(low)}–{shown(high)})")
        mine = max((speed[side] for side in ours), default=float("nan"))
        theirs = max((speed[side] for side in peers), default=float("nan"))
        row += [speed[side] / theirs for side in ours]
        row += [", ".join(f"{mine / speed[side]:.2f} {side}" for side in peers)]
        rows.append(row)
    head = [*figures, *(f"{side} / best peer" for side in ours), "our best / each peer"]
    text = table(["", *head], rows)
    for side, times in medians.items():
        if "step of 1, ms" in times:
            more = [
                f"{rows} rows {times[name] / times['step of 1, ms']:.2f}"
                for rows in ROWS[1:]
                if (name := f"step of {rows}, ms") in times
            ]
            if more:
                text += f"\n\n{side}, times its step of 1 row: {', '.join(more)}."
    return text


if __name__ == "__main__":
    main()
