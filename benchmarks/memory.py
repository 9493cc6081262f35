"""CPU time and memory of the server and the engine: how much they use when idle, and whether their
memory grows with the requests.

    python -m benchmarks.memory [--requests 10000] [--warm-up 1000] [--idle 20] [--speedup 20]
    python -m benchmarks.memory --model FILE.gguf --warm-up 200 --requests 200 --speedup 1

Of a GGUF file first the engine at rest, before any request: started without prepared weights, and
with them. Then the warm-up, then as many replayed requests, then so many idle seconds. Memory is
RssAnon + VmSwap. With --speedup the keys come faster than anybody types, so that most requests are
superseded, as they are for a fast typist on a slow machine; the number of answered requests is
printed, too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.editor import EditorError, Home, window
from benchmarks.figures import machine
from benchmarks.peers import Exports, gguf_file
from benchmarks.replay import Key, Player
from benchmarks.targets import Side, Target, memory, parse_side, running, used
from benchmarks.typing_traces import Session, sessions, sources
from lsp_server.commands.errors import CommandError
from model.machine import memory_bytes
from model.weights.folder import find_model

SETTLE_S = 6.0  # idle work after the last key


async def play(player: Player, made: Iterator[Session], requests: int) -> list[Key]:
    keys: list[Key] = []
    while len(keys) < requests:
        keys += await player.play(next(made))
    return keys


def sizes(target: Target) -> list[float]:
    """MB of each process."""
    return [(memory_bytes(pid) or 0) / 1e6 for pid in target.pids]


async def at_rest(side: Side, folder: Path, home: Home) -> None:
    """Prints the private memory of an engine that has answered nothing yet: at its first start,
    before and after its weights are prepared, and at the next."""
    file_mb = (
        sum(each.stat().st_size for each in find_model(side.settings.model).weight_files) / 1e6
    )

    async def tell(when: str) -> None:
        _, status = await home.engine_of(side.settings.model)
        mb = status["memory_bytes"] / 1e6
        print(f"engine at rest, {when}: {mb:.0f} MB, the file's {file_mb:.0f} {mb - file_mb:+.0f}")

    async with window(folder, side.options, home):
        await tell("its weights read")
        await home.until_prepared()
        await asyncio.sleep(SETTLE_S)
        await tell("the same once they are prepared")
    async with window(folder, side.options, home):
        await tell("started with prepared weights")


async def measure(options: argparse.Namespace, folder: Path) -> None:
    packages, which = sources(options.where)
    made = sessions(packages, options.seed)
    side = parse_side(options.side, options.model)
    print(f"{machine()}; {time.strftime('%Y-%m-%d')}; {which}; {options.model}; {options.side}")
    async with contextlib.AsyncExitStack() as stack:
        home = Home()
        stack.push_async_callback(home.close)
        home.take_machine_code()
        if gguf_file(options.model) is not None:
            await at_rest(side, folder, home)
        exports = Exports(options.model, folder)
        target = await stack.enter_async_context(running(side, exports, folder, 0, home))
        player = Player(
            target, folder, speedup=options.speedup, accept=0.3, seed=options.seed, count=False
        )
        await replayed(player, target, made, options)
        started, cpu = time.perf_counter(), used(target)[0]
        await asyncio.sleep(options.idle)
        idle, seconds = used(target)[0] - cpu, time.perf_counter() - started
    print(
        f"idle for {seconds:.0f} s: {idle:.2f} CPU-seconds, {100 * idle / seconds:.2f}% of one core"
    )


async def replayed(
    player: Player, target: Target, made: Iterator[Session], options: argparse.Namespace
) -> None:
    before = len(await play(player, made, options.warm_up))
    await asyncio.sleep(SETTLE_S)
    first, first_sizes = memory(target), sizes(target)
    print(
        f"memory after {before} requests of warm-up: {first / 1e6:.1f} MB (server "
        f"{first_sizes[0]:.1f}, engine {first_sizes[1]:.1f})"
    )
    keys = await play(player, made, options.requests)
    await asyncio.sleep(SETTLE_S)
    last, last_sizes = memory(target), sizes(target)
    answered = sum(key.ms is not None for key in keys)
    print(
        f"after {len(keys)} more, of which {answered} were answered: {last / 1e6:.1f} MB "
        f"(server {last_sizes[0]:.1f}, engine {last_sizes[1]:.1f}): "
        f"{100 * (last - first) / first:+.2f}%"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--side", default="ours")
    parser.add_argument("--model", default="bundled")
    parser.add_argument(
        "--where", type=Path, help="a folder or .jsonl of files; without: the held-out packages"
    )
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
