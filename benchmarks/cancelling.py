"""Requests that are cancelled: how soon the engine is free, and how much of the prompt the next
request finds in the cache.

    python -m benchmarks.cancelling --model FILE.gguf [--ids 1000] [--requests 40] [--threads N]

FILE.gguf, or whatever else load_model takes; "3b" is StarCoder2-3B's shape with random weights, cut
to --layers. In this process, through the engine's queue: requests of --ids ids, half of them
cancelled at some moment of their prefill, half while they decode, and after each a request for the
same ids. "free" is the time from the interruption until the engine says that the request has ended;
"next" until it says that the one that was asked for at that moment has begun. Ids are those of the
file that is named by --text, this one without.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks.figures import machine, percentile, table
from benchmarks.peers import STARCODER2_3B, write_random
from lsp_server.folders import cache_folder
from model import LoadedModel, load_model
from model.cpu.upgrade import upgrade_now
from model.engine.request import Event, Finished, Request, Started
from model.engine.worker import Engine
from model.generation.generate import Token
from model.machine import usable_cores

DECODED = 64
MOST_TOKENS = 12  # of a request that is cancelled while it decodes


class Asked:
    """A request, and when its events came."""

    def __init__(self, engine: Engine, ids: tuple[int, ...], tokens: int) -> None:
        self._changed = threading.Condition()
        self._events: list[tuple[float, Event]] = []
        self.job = engine.submit(Request(ids, tokens), self._hear)

    def _hear(self, event: Event) -> None:
        now = time.perf_counter()
        with self._changed:
            self._events.append((now, event))
            self._changed.notify()

    def first(self, kind: type[Event], count: int = 1) -> tuple[float, Event]:
        """When the first event of a kind came, or that of a number; waits for it, or the end."""
        with self._changed:
            while True:
                found = [pair for pair in self._events if isinstance(pair[1], kind)]
                if len(found) >= count:
                    return found[count - 1]
                if self._events and isinstance(self._events[-1][1], Finished):
                    return self._events[-1]
                self._changed.wait()

    def end(self) -> Finished:
        _, event = self.first(Finished)
        assert isinstance(event, Finished)
        return event


def load(options: argparse.Namespace, folder: Path) -> LoadedModel:
    if options.model == "3b":
        write_random(folder, STARCODER2_3B | {"num_hidden_layers": options.layers})
        return load_model(folder, "cpu", quantization="int8", measured=cache_folder())
    return load_model(options.model, "cpu", quantization="auto", measured=cache_folder())


def prompts(model: LoadedModel, text: Path, length: int) -> list[int]:
    """Ids to take prompts from."""
    ids = model.tokenizer.encode(text.read_text(encoding="utf-8"))
    return ids * (2 + length // len(ids))


def measure(engine: Engine, ids: list[int], options: argparse.Namespace) -> list[list[object]]:
    """A row for each kind of moment."""
    rng = random.Random(0)
    rows: list[list[object]] = []
    whole = Asked(engine, (rng.randrange(100), *ids[: options.ids]), 1).end()
    for kind in ("prefill", "decode"):
        free: list[float] = []
        following: list[float] = []
        kept: list[int] = []
        for _ in range(options.requests // 2):
            prompt = (rng.randrange(100), *ids[rng.randrange(500) :][: options.ids - 1])
            first = Asked(engine, prompt, 0 if kind == "prefill" else DECODED)
            if kind == "prefill":
                first.first(Started)
                time.sleep(rng.uniform(0.05, 0.9) * whole.prefill_s)
            else:
                first.first(Token, rng.randrange(1, MOST_TOKENS))
                time.sleep(rng.uniform(0, 0.05))
            again = Asked(engine, prompt, 1)
            interrupted = time.perf_counter()
            first.job.cancel()
            ended, event = first.first(Finished)
            begun, started = again.first(Started)
            again.end()
            assert isinstance(event, Finished) and isinstance(started, Started)
            if event.reason != "cancelled":
                continue
            free.append(1000 * (ended - interrupted))
            following.append(1000 * (begun - interrupted))
            kept.append(started.reused)
        shares = [percentile(each, share) for each in (free, following) for share in (0.5, 0.95, 1)]
        rows.append([kind, len(free), *shares, int(percentile(kept, 0.5))])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="3b")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--ids", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--threads", type=int, help="without: one for each physical core")
    parser.add_argument("--text", type=Path, default=Path(__file__))
    options = parser.parse_args()
    torch.set_num_threads(options.threads or usable_cores())
    with ExitStack() as stack:
        model = load(options, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        upgrade_now(model.decoder, cache_folder())
        ids = prompts(model, options.text, options.ids + 500)
        engine = Engine(model)
        engine.start()
        stack.callback(engine.join, 10.0)
        stack.callback(engine.close, save=False)
        rows = measure(engine, ids, options)
        print(
            f"{machine()}; {options.model}, {model.decoder.scheme}, prompts of {options.ids} ids, "
            f"{engine.speed.prefill or 0:.0f} positions/s\n"
        )
    head = ["cancelled in", "requests", "free p50, ms", "p95", "max", "next p50, ms", "p95", "max"]
    print(table([*head, "ids kept, p50"], rows))


if __name__ == "__main__":
    main()
