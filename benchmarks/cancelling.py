"""A cancelled prefill at StarCoder2-3B's shape: how soon the CPU is idle, and how much of the
prompt the next request finds in the cache.

    python -m benchmarks.cancelling [--layers 30] [--ids 1000] [--after 6] [--repeats 3]

Random weights, int8 as loaded, in this process, through the engine's queue. A request with a prompt
of --ids is cancelled --after seconds from its start; "idle" is when the engine is no longer busy
and this process's CPU time stands still. Then the same request again.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.figures import machine, table
from benchmarks.peers import STARCODER2_3B, write_random
from model import load_model
from model.engine.queue import Job
from model.engine.request import Event, Failed, Finished, Request
from model.engine.worker import Engine

POLL_S = 0.005


class Asked:
    """A request, and its last event."""

    def __init__(self, engine: Engine, ids: tuple[int, ...]) -> None:
        self._done = threading.Event()
        self.end: Event | None = None
        self.job: Job = engine.submit(Request(ids, 0), self._hear)

    def _hear(self, event: Event) -> None:
        if isinstance(event, Finished | Failed):
            self.end = event
            self._done.set()

    def wait(self) -> Finished:
        self._done.wait()
        assert isinstance(self.end, Finished)
        return self.end


def until_idle(engine: Engine) -> float:
    """Seconds until nothing computes; the CPU stands still over two looks."""
    started = time.perf_counter()
    while True:
        cpu = time.process_time()
        time.sleep(POLL_S)
        if not engine.busy and time.process_time() - cpu < POLL_S / 2:
            return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--ids", type=int, default=1000)
    parser.add_argument("--after", type=float, default=6.0)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_random(Path(folder), STARCODER2_3B | {"num_hidden_layers": options.layers})
        model = load_model(folder, "cpu", quantization="int8")
    engine = Engine(model)
    engine.start()
    rng = random.Random(0)
    rows: list[list[object]] = []
    pauses: list[float] = []
    for _ in range(options.repeats):
        ids = tuple(rng.choices(range(100, model.decoder.config.vocab_size), k=options.ids))
        first = Asked(engine, ids)
        time.sleep(options.after)
        first.job.cancel()
        pauses.append(until_idle(engine) * 1000)
        done = first.wait()
        again = Asked(engine, ids).wait()
        rows.append(
            [
                done.reason,
                pauses[-1],
                done.prefilled,
                again.reused,
                again.prefilled,
                again.prefill_s,
            ]
        )
    engine.close(save=False)
    engine.join(10.0)
    print(
        f"{machine()}; {options.layers} layers, {model.decoder.scheme}, prompts of {options.ids} "
        "ids\n"
    )
    print(table(["first", "idle after, ms", "prefilled", "again: reused", "prefilled", "s"], rows))
    print(f"\nidle after {statistics.median(pauses):.0f} ms (median)")


if __name__ == "__main__":
    main()
