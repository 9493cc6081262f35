"""A person's requests of many hours at speed: does memory stay, do the folders keep their budgets?

    python -m benchmarks.long_life [--hours 48] [--per-hour 200]

An hour here is 200 requests at least: one every eighteen seconds, day and night, where people are
shown some dozens of suggestions in an hour of programming. Every key of a typing trace asks and
waits for its answer, because an answer is what leaves something behind. Half of each hour is typed
in a window that is opened at the start and closed at the end, the other half in one that is opened
anew for each hour; both have other files open beside the one that is typed in, accept suggestions
and use one engine, with the bundled model. Then nobody types for a while, every fourth time for so
long that computed prompts are written to disk, and memory (RssAnon + VmSwap) and folders are looked
at.

First 600 files are opened, asked in and closed: then what a window keeps of texts (the tokenizer's
words, lines without secrets, pieces as tokens) is full, and so are the engine's caches, which are
small here. Growth is the median of the last quarter over that of the first.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.editor import EditorError, Home
from benchmarks.figures import machine, table
from benchmarks.peers import Exports
from benchmarks.replay import LOOK_S, Key, Player
from benchmarks.targets import Target, parse_side, running
from benchmarks.typing_traces import Session, sessions, sources
from lsp_server.commands.errors import CommandError
from model.machine import memory_bytes

SIDE = "ours,engine.cacheMemory=64,engine.cacheDisk=16"
CACHE_BYTES = 16 * 2**20
REST_S = 5.0  # after an hour: the engine gives memory back, the window writes its counts
LONG_REST_S = 26.0  # after LONG hours: the engine writes computed prompts to disk
LONG = 4
WARM_UP = 600  # files
OTHERS = 6  # files that are open beside the one that is typed in
NO_PAUSE = 1e6


@dataclass(frozen=True, slots=True)
class Hour:
    """What there was at its end. logs: bytes of each file."""

    requests: int
    answered: int
    shown: int
    accepted: int
    server: int  # bytes of the window that stays
    engine: int
    prefixes: int  # bytes of the folder
    cache: int  # bytes of all files in the cache folder
    state: int  # bytes of counts
    logs: dict[str, int]


async def live(
    hours: int, per_hour: int, where: Path | None, told: Callable[[Hour], None]
) -> list[Hour]:
    """Raises EditorError, ValueError where a document is not what was typed, TimeoutError."""
    made = sessions(sources(where)[0], seed=0, passages=2)
    side = parse_side(SIDE, "bundled")
    found: list[Hour] = []
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fimls-")))
        home = Home()
        stack.push_async_callback(home.close)
        home.take_machine_code()
        exports = Exports("bundled", folder)
        stays = await stack.enter_async_context(running(side, exports, folder, 0, home))
        await visited(stays, folder, made, WARM_UP if hours >= 4 else 0)
        for number in range(hours):
            keys = await typed(stays, folder, made, per_hour // 2, number)
            async with running(side, exports, folder, 0, home, alone=False) as comes:
                if comes.pids[1] != stays.pids[1]:
                    raise EditorError("the second window has an engine of its own")
                keys += await typed(comes, folder, made, per_hour - len(keys), number)
            await asyncio.sleep(LONG_REST_S if number % LONG == LONG - 1 else REST_S)
            found.append(looked_at(stays, home, keys))
            told(found[-1])
    return found


async def visited(target: Target, folder: Path, made: Iterator[Session], files: int) -> None:
    for _ in range(files):
        session = next(made)
        path = folder / Path(session.path).name
        target.open(path, session.language, session.text)
        answer = target.ask(path, len(session.text) // 2)
        end = time.monotonic() + LOOK_S
        while answer.ms is None and time.monotonic() < end:
            await asyncio.sleep(0.002)
        target.close(path)


async def typed(
    target: Target, folder: Path, made: Iterator[Session], requests: int, seed: int
) -> list[Key]:
    player = Player(
        target, folder, speedup=NO_PAUSE, accept=0.3, seed=seed, count=False, patient=True
    )
    others = [next(made) for _ in range(OTHERS)]
    for number, other in enumerate(others):
        target.open(folder / f"other{number}_{Path(other.path).name}", other.language, other.text)
    keys: list[Key] = []
    while len(keys) < requests:
        keys += await player.play(next(made))
    for number, other in enumerate(others):
        target.close(folder / f"other{number}_{Path(other.path).name}")
    return keys


def looked_at(target: Target, home: Home, keys: list[Key]) -> Hour:
    server, engine = (memory_bytes(pid) or 0 for pid in target.pids)
    return Hour(
        len(keys),
        sum(key.ms is not None for key in keys),
        sum(key.shown > 0 for key in keys),
        sum(key.accepted > 0 for key in keys),
        server,
        engine,
        size(home.path / "cache" / "prefixes"),
        size(home.path / "cache"),
        size(home.path / "state"),
        {each.name: each.stat().st_size for each in (home.path / "log").iterdir()},
    )


def size(folder: Path) -> int:
    """Bytes of all files below a folder, also while some of them go."""
    total = 0
    for each in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += each.stat().st_size if each.is_file() else 0
    return total


def growth(hours: list[Hour], of: Callable[[Hour], int]) -> float:
    """The share by which something grew from the first quarter to the last."""
    quarter = len(hours) // 4
    before, after = hours[:quarter], hours[-quarter:]
    return statistics.median(map(of, after)) / statistics.median(map(of, before)) - 1


def both(hour: Hour) -> int:
    return hour.server + hour.engine


def row(number: int, hour: Hour) -> list[object]:
    mb = [round(each / 1e6, 1) for each in (hour.server, hour.engine, hour.prefixes, hour.cache)]
    logs = " ".join(f"{name} {each / 1e3:.0f}" for name, each in sorted(hour.logs.items()))
    return [number, hour.requests, hour.answered, hour.shown, hour.accepted, *mb, hour.state, logs]


HEAD = "hour requests answered shown accepted server engine prefixes cache state logs".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hours", type=int, default=48)
    parser.add_argument("--per-hour", type=int, default=200)
    parser.add_argument(
        "--where", type=Path, help="a folder or .jsonl of files; without: the held-out packages"
    )
    options = parser.parse_args()
    rows: list[list[object]] = []

    def tell(hour: Hour) -> None:
        rows.append(row(len(rows) + 1, hour))
        print(*rows[-1], flush=True)

    started = time.monotonic()
    print(f"{machine()}; {time.strftime('%Y-%m-%d')}; {sources(options.where)[1]}; {SIDE}")
    try:
        hours = asyncio.run(live(options.hours, options.per_hour, options.where, tell))
    except (CommandError, EditorError) as error:
        raise SystemExit(f"long_life: {error}") from None
    print(table(HEAD, rows))
    print(f"{time.monotonic() - started:.0f} s")
    if len(hours) >= 4:
        print(
            f"growth: both {growth(hours, both):+.2%}, server "
            f"{growth(hours, lambda hour: hour.server):+.2%}, engine "
            f"{growth(hours, lambda hour: hour.engine):+.2%}"
        )


if __name__ == "__main__":
    main()
