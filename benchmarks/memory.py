"""CPU time and memory of the server and the engine: how much they use when idle, and whether their
memory grows with the requests.

    python -m benchmarks.memory [--requests 10000] [--warm-up 1000] [--idle 20] [--speedup 20]

First the warm-up, then as many replayed requests, then so many idle seconds. Memory is RssAnon +
VmSwap. With --speedup the keys come faster than anybody types, so that most requests are
superseded, as they are for a fast typist on a slow machine; the number of answered requests is
printed, too.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.editor import EditorError
from benchmarks.figures import machine
from benchmarks.peers import Exports
from benchmarks.replay import Key, Player
from benchmarks.targets import Target, memory, parse_side, running, used
from benchmarks.typing_traces import Session, sessions, sources
from lsp_server.commands.errors import CommandError
from model.machine import memory_bytes

SETTLE_S = 3.0  # idle work after the last key


async def play(player: Player, made: Iterator[Session], requests: int) -> list[Key]:
    keys: list[Key] = []
    while len(keys) < requests:
        keys += await player.play(next(made))
    return keys


def sizes(target: Target) -> list[float]:
    """MB of each process."""
    return [(memory_bytes(pid) or 0) / 1e6 for pid in target.pids]


async def measure(options: argparse.Namespace, folder: Path) -> None:
    packages, which = sources(None)
    made = sessions(packages, options.seed)
    side = parse_side(options.side, options.model)
    async with running(side, Exports(options.model, folder), folder, 0) as target:
        player = Player(
            target, folder, speedup=options.speedup, accept=0.3, seed=options.seed, count=False
        )
        before = len(await play(player, made, options.warm_up))
        await asyncio.sleep(SETTLE_S)
        first, first_sizes = memory(target), sizes(target)
        keys = await play(player, made, options.requests)
        await asyncio.sleep(SETTLE_S)
        last, last_sizes = memory(target), sizes(target)
        started, cpu = time.perf_counter(), used(target)[0]
        await asyncio.sleep(options.idle)
        idle, seconds = used(target)[0] - cpu, time.perf_counter() - started
    answered = sum(key.ms is not None for key in keys)
    print(f"{machine()}; {time.strftime('%Y-%m-%d')}; {which}; {options.side}")
    print(
        f"memory after {before} requests of warm-up: {first / 1e6:.1f} MB (server "
        f"{first_sizes[0]:.1f}, engine "
        f"{first_sizes[1]:.1f})"
    )
    print(
        f"after {len(keys)} more, of which {answered} were answered: {last / 1e6:.1f} MB "
        f"(server {last_sizes[0]:.1f}, engine {last_sizes[1]:.1f}): "
        f"{100 * (last - first) / first:+.2f}%"
    )
    print(
        f"idle for {seconds:.0f} s: {idle:.2f} CPU-seconds, {100 * idle / seconds:.2f}% of one core"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--side", default="ours")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--warm-up", type=int, default=1000)
    parser.add_argument("--idle", type=float, default=20.0)
    parser.add_argument("--speedup", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fimls-") as folder:
        try:
            asyncio.run(measure(options, Path(folder)))
        except (CommandError, EditorError) as error:
            raise SystemExit(f"memory: {error}") from None


if __name__ == "__main__":
    main()
