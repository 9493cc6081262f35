"""Types in real files, key by key at a person's pace, and measures how long each suggestion takes
and how much CPU time and memory it costs.

    python -m benchmarks.replay [--keys 600] [--side ours] [--side llama:q8_0] [--side transformers]
    [--decode 20]

Each side gets the same files, a file at a time, in turn. benchmarks/targets.py says how a side is
written and which options it takes (`ours,engine.cacheMemory=0` is ours without the prefix cache).
Every key changes the document and asks for a suggestion; a request that is not answered at the next
key is cancelled and counts as superseded. Only after the first key at a place the next key waits
for the answer, ten seconds at most. Latency runs from the key to the answer. A suggestion that
equals the text that follows in the file may be accepted (--accept). --decode N: at the passages of
N files, characters per second after the first piece of an answer, each side with its own
speculation.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.editor import EditorError
from benchmarks.figures import machine, percentile, table
from benchmarks.peers import Exports, write_random
from benchmarks.targets import (
    WINDOW,
    Answer,
    Side,
    Target,
    memory,
    parse_side,
    passes,
    running,
    used,
)
from benchmarks.typing_traces import MOST, Passage, Session, enough, sessions, sources
from lsp_server.commands.errors import CommandError
from lsp_server.commands.source_files import Packages
from lsp_server.documents import Snapshot
from lsp_server.engines.http import HttpClient
from lsp_server.engines.interface import CompletionRequest, EngineUnavailable
from lsp_server.session.prompter import Prompter
from lsp_server.settings import RemoteSettings
from model.machine import usable_cores

Kind = Literal["jump", "key", "through", "again", "accept"]
KINDS: dict[Kind, str] = {
    "jump": "first key after a jump",
    "key": "any other key",
    "through": "a key of the suggestion that is shown",
    "again": "back in a text that was answered before",
    "accept": "a suggestion was accepted",
}
ACCEPT_S = 0.4  # to read a suggestion before it is accepted
LEAST_ACCEPTED = 4  # characters
LOOK_S = 10.0  # how long the first key at a place waits for its answer


@dataclass(frozen=True, slots=True)
class Key:
    """What one key led to. ms None: superseded, after it had waited so long. counted: forward
    passes of the engine from this key to its answer. fresh: the suggestion that appeared, "" where
    the one before is only typed along; ahead: what the file has there; saved: strokes that became
    needless.
    """

    kind: Kind
    ms: float | None
    waited: float = 0.0
    prompt: int | None = None
    prefilled: int | None = None
    shown: int = 0
    right: int = 0
    accepted: int = 0
    passes: int | None = None
    counted: int | None = None
    fresh: str = ""
    ahead: str = ""
    saved: int = 0


@dataclass(slots=True)
class Played:
    """One side's figures so far."""

    keys: list[Key] = field(default_factory=list)
    cpu: float = 0.0
    client_cpu: float = 0.0
    memory: list[int] = field(default_factory=list)
    characters_per_second: list[float] = field(default_factory=list)


class Player:
    """Plays sessions to one target. patient: waits for the answer at every key."""

    def __init__(
        self,
        target: Target,
        folder: Path,
        *,
        speedup: float,
        accept: float,
        seed: int,
        count: bool,
        patient: bool = False,
    ) -> None:
        self._patient = patient
        self._target, self._folder, self._speedup = target, folder, speedup
        self._accept, self._seed, self._count = accept, seed, count
        self._answer: Answer | None = None
        self._kind: Kind = "key"
        self._rest = ""  # what the file has behind the cursor of the last key
        self._passes: int | None = None
        self._answered: set[tuple[str, int]] = set()
        self._seen = ""  # the suggestion on the screen
        self._next = 0.0
        self._keys: list[Key] = []

    async def play(self, session: Session) -> list[Key]:
        """The keys of the session. Raises ValueError when the document is not the file in the
        end."""
        target, path = self._target, self._folder / session.path
        target.open(path, session.language, session.beginning)
        self._next, self._keys = time.perf_counter() + 0.3 / self._speedup, []
        self._answered.clear()
        for number, passage in enumerate(session.passages):
            await self._type(path, passage, session.place(number))
        if target.text(path) != session.text:
            raise ValueError(f"{session.path} was not typed as it is")
        target.close(path)
        return self._keys

    async def _type(self, path: Path, passage: Passage, place: int) -> None:
        target, number, cursor = self._target, 0, place
        await self._pause(0)
        target.focus(path, place)
        first = True
        while number < len(passage.strokes):
            stroke = passage.strokes[number]
            await self._pause(stroke.wait)
            at, wrong = cursor - place, cursor - place - stroke.at
            if not first and not wrong and (taken := self._takes(passage, number, at)):
                await self._pause(ACCEPT_S)
                assert self._answer is not None
                target.change(path, cursor, cursor, self._answer.text)
                target.accepted(self._answer)
                after = passage.after(number, at + taken)
                self._settle(accepted=taken, saved=after - number)
                self._seen = ""
                cursor += taken
                number = after
                await self._ask(path, cursor, passage.text[at + taken :], "accept")
                if self._patient:
                    await self._look()
                continue
            through = bool(not first and stroke.insert and self._goes_on(stroke.insert))
            self._settle()
            target.change(path, cursor - stroke.delete, cursor, stroke.insert)
            cursor += len(stroke.insert) - stroke.delete
            number += 1
            along = stroke.insert and self._seen.startswith(stroke.insert)
            self._seen = self._seen[len(stroke.insert) :] if along else ""
            again = (target.text(path), cursor) in self._answered
            kind: Kind = "jump" if first else "again" if again else "through" if through else "key"
            await self._ask(path, cursor, passage.text[cursor - place :], kind)
            if first or self._patient:
                await self._look()
            first = False
        await self._pause(0.3)
        self._settle()

    async def _ask(self, path: Path, cursor: int, rest: str, kind: Kind) -> None:
        self._passes = await passes(self._target) if self._count else None
        self._answer, self._kind, self._rest = self._target.ask(path, cursor), kind, rest
        self._state = self._target.text(path), cursor
        self._counted = None

    async def _look(self) -> None:
        """Waits for the answer: whoever has just come to a place looks what is there."""
        end = time.perf_counter() + LOOK_S
        while self._answer is not None and self._answer.ms is None and time.perf_counter() < end:
            await asyncio.sleep(0.002)

    def _takes(self, passage: Passage, number: int, at: int) -> int:
        """How many characters of a suggestion are accepted now; 0 for none."""
        answer = self._answer
        if (
            answer is None
            or answer.ms is None
            or not answer.insertion
            or len(answer.text) < LEAST_ACCEPTED
        ):
            return 0
        end = at + len(answer.text)
        on = end == len(passage.text) or passage.after(number, end) < len(passage.strokes)
        willing = random.Random(f"{self._seed} {passage.start} {at}").random() < self._accept
        return (
            len(answer.text) if willing and on and passage.text[at:].startswith(answer.text) else 0
        )

    def _goes_on(self, insert: str) -> bool:
        answer = self._answer
        whole = answer is not None and answer.ms is not None and answer.insertion
        return (
            whole
            and answer is not None
            and len(answer.text) > len(insert)
            and answer.text.startswith(insert)
        )

    def _settle(self, accepted: int = 0, saved: int = 0) -> None:
        """The last key's answer is what it is by now."""
        if (answer := self._answer) is None:
            return
        self._answer = None
        if answer.ms is not None:
            self._answered.add(self._state)
        right = len(answer.text) if answer.insertion and self._rest.startswith(answer.text) else 0
        fresh = ""
        if answer.ms is not None:
            was_seen = self._seen and answer.text.startswith(self._seen)
            fresh = "" if was_seen else answer.text
            self._seen = answer.text
        self._keys.append(
            Key(
                self._kind,
                answer.ms,
                (time.perf_counter() - answer.asked) * 1000,
                answer.prompt,
                answer.prefilled,
                len(answer.text),
                right,
                accepted,
                answer.passes,
                self._counted,
                fresh,
                self._rest[: len(fresh) + 1],
                saved,
            )
        )

    async def _pause(self, seconds: float) -> None:
        """Until so long after the last key; whatever was late does not make later keys faster."""
        self._next = max(self._next + seconds / self._speedup, time.perf_counter())
        if self._count and self._passes is not None and self._answer is not None:
            while self._answer.ms is None and time.perf_counter() < self._next:
                await asyncio.sleep(0.001)
            if self._answer.ms is not None and self._counted is None:
                now = await passes(self._target)
                self._counted = None if now is None else now - self._passes
        await asyncio.sleep(max(0.0, self._next - time.perf_counter()))


def write_files(packages: Packages, folder: Path) -> None:
    for path, text in (file for files in packages.values() for file in files):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")


async def play_all(
    made: Sequence[Session],
    sides: Sequence[Side],
    exports: Exports,
    folder: Path,
    options: argparse.Namespace,
) -> dict[str, Played]:
    found = {side.name: Played() for side in sides}
    async with AsyncExitStack() as stack:
        targets = {}
        for side in sides:
            targets[side.name] = await stack.enter_async_context(
                running(side, exports, folder, options.threads)
            )
        players = {
            name: Player(
                target,
                folder,
                speedup=options.speedup,
                accept=options.accept,
                seed=options.seed,
                count=options.count_passes,
            )
            for name, target in targets.items()
        }
        for number, session in enumerate(made, 1):
            for name, target in targets.items():
                before = used(target)
                found[name].keys += await players[name].play(session)
                after = used(target)
                found[name].cpu += after[0] - before[0]
                found[name].client_cpu += after[1] - before[1]
                found[name].memory.append(memory(target))
            if sys.stderr.isatty():
                print(f"\r{number} of {len(made)} files", end="", file=sys.stderr, flush=True)
        for number, session in enumerate(made[: options.decode]):
            for side in sides:
                rate = await decoded(side, targets[side.name].client(), session, number)
                found[side.name].characters_per_second += rate
    return found


async def decoded(side: Side, client: HttpClient, session: Session, number: int) -> list[float]:
    """Characters a second of the answers at the session's passages, once the prompt is in the
    cache."""
    settings = side.settings
    if side.kind != "ours":
        settings = replace(settings, remote=RemoteSettings("http://127.0.0.1", "peer"))
    prompter = Prompter.for_settings(settings)
    rates = []
    for n, passage in enumerate(session.passages):
        whole, place = session.beginning, session.place(n)
        before = (whole[:place] + passage.text[: len(passage.text) // 2])[-WINDOW:]
        uri = "file:///" + session.path
        snapshot = Snapshot(uri, 1, session.language, before + whole[place:][:WINDOW], len(before))
        request, _ = prompter.request(
            prompter.context(snapshot, settings, session.path), settings, "replay"
        )
        await answer_rate(client, request)
        if rate := await answer_rate(client, request):
            rates.append(rate)
    return rates


async def answer_rate(client: HttpClient, request: CompletionRequest) -> float | None:
    first = last = 0.0
    count = 0
    try:
        async for piece in client.stream(request):
            if piece.text:
                last = time.perf_counter()
                count += len(piece.text) if first else 0
                first = first or last
    except EngineUnavailable:
        return None
    return count / (last - first) if count and last > first else None


# ---- what it comes to ----


def summary(played: Played) -> dict[str, Any]:
    keys = played.keys
    answered = [key for key in keys if key.ms is not None]
    typed = [key for key in answered if key.kind != "jump"]
    prefilled = [float(key.prefilled) for key in typed if key.prefilled is not None]

    def times(kinds: Sequence[Kind]) -> list[float]:
        return [key.ms for key in answered if key.kind in kinds and key.ms is not None]

    everything = times(list(KINDS))
    at_least = [key.waited if key.ms is None else key.ms for key in keys]
    free = [key for key in answered if key.kind in ("through", "again")]
    counts = [key.counted if key.counted is not None else key.passes for key in free]
    known = [count for count in counts if count is not None]
    memory_mb = [size / 1e6 for size in played.memory]
    return {
        "keys": len(keys),
        "superseded": len(keys) - len(answered),
        "p50": percentile(everything, 0.5),
        "p95": percentile(everything, 0.95),
        "p50 at least": percentile(at_least, 0.5),
        "p95 at least": percentile(at_least, 0.95),
        "jump p50": percentile(times(["jump"]), 0.5),
        "jump p95": percentile(times(["jump"]), 0.95),
        "prefilled p50": percentile(prefilled, 0.5),
        "prefilled p95": percentile(prefilled, 0.95),
        "prompt p50": percentile([float(key.prompt) for key in answered if key.prompt], 0.5),
        "free keys": len(known),
        "free keys without a pass": sum(count == 0 for count in known),
        "shown": sum(key.shown for key in keys),
        "right": sum(key.right for key in keys),
        "accepted": sum(key.accepted for key in keys),
        "cpu s per 1000 keys": 1000 * (played.cpu + played.client_cpu) / max(1, len(keys)),
        "client's share of it": 1000 * played.client_cpu / max(1, len(keys)),
        "MB at first": memory_mb[0] if memory_mb else float("nan"),
        "MB at last": memory_mb[-1] if memory_mb else float("nan"),
        "characters/s": percentile(played.characters_per_second, 0.5),
        "by kind": {
            kind: {
                "count": len(found := times([kind])),
                "p50": percentile(found, 0.5),
                "p95": percentile(found, 0.95),
            }
            for kind in KINDS
        },
    }


def report(found: dict[str, Played]) -> str:
    sums = {name: summary(played) for name, played in found.items()}
    rows: list[tuple[str, str]] = [
        ("keys", "keys"),
        ("superseded", "superseded"),
        ("key to answer, p50, ms", "p50"),
        ("key to answer, p95, ms", "p95"),
        ("p50 with the wait of the superseded, ms", "p50 at least"),
        ("p95 with the wait of the superseded, ms", "p95 at least"),
        ("first key after a jump, p50, ms", "jump p50"),
        ("first key after a jump, p95, ms", "jump p95"),
        ("ids in the prompt, p50", "prompt p50"),
        ("ids prefilled at a key, p50", "prefilled p50"),
        ("ids prefilled at a key, p95", "prefilled p95"),
        ("keys typed through or again, passes known", "free keys"),
        ("of these without a forward pass", "free keys without a pass"),
        ("characters shown", "shown"),
        ("of these right", "right"),
        ("of these accepted", "accepted"),
        ("CPU-seconds a 1,000 keys", "cpu s per 1000 keys"),
        ("of these the client's", "client's share of it"),
        ("memory after the first file, MB", "MB at first"),
        ("memory after the last, MB", "MB at last"),
        ("characters/s decoded", "characters/s"),
    ]
    text = table(
        ["", *found], [[label, *(each[key] for each in sums.values())] for label, key in rows]
    )
    first, *others = sums
    lines = [
        f"{first} against {other}: p50 {sums[first]['p50'] / sums[other]['p50']:.2f}, p95 "
        f"{sums[first]['p95'] / sums[other]['p95']:.2f}, characters/s "
        f"{sums[first]['characters/s'] / sums[other]['characters/s']:.2f}"
        for other in others
    ]
    kinds = table(
        ["ms, p50 / p95 (keys)", *found],
        [
            [
                KINDS[kind],
                *(
                    f"{e['p50']:.1f} / {e['p95']:.1f} ({e['count']})"
                    if (e := each["by kind"][kind])["count"]
                    else "–"
                    for each in sums.values()
                ),
            ]
            for kind in KINDS
        ],
    )
    return "\n\n".join([text, kinds, *lines])


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--side", action="append", help="repeatable; without: ours")
    parser.add_argument("--keys", type=int, default=600, help="of each side, at least")
    parser.add_argument(
        "--where", type=Path, help="a folder or .jsonl of files; without: the held-out packages"
    )
    parser.add_argument("--least", type=int, default=3000, help="characters of a file")
    parser.add_argument(
        "--longest",
        type=int,
        default=MOST,
        help="characters of a passage: the fewer, the more jumps",
    )
    parser.add_argument(
        "--model",
        default="bundled",
        help="or a folder, or 'long': the bundled shape with random weights and 16,384 positions",
    )
    parser.add_argument(
        "--context-tokens", type=int, help="the setting contextTokens of every side"
    )
    parser.add_argument("--suffix-tokens", type=int, help="the setting suffixTokens of every side")
    parser.add_argument(
        "--no-cache", action="store_true", help="one more side: ours without the prefix cache"
    )
    parser.add_argument(
        "--accept", type=float, default=0.3, help="the share of right suggestions that is accepted"
    )
    parser.add_argument(
        "--decode", type=int, default=0, help="files at whose passages decoding is measured"
    )
    parser.add_argument(
        "--count-passes",
        action="store_true",
        help="asks the engine for its count at every key: for a run of its own",
    )
    parser.add_argument(
        "--project",
        action="store_true",
        help="the other files of all packages lie beside the one that is typed",
    )
    parser.add_argument("--speedup", type=float, default=1.0, help="for tests")
    parser.add_argument(
        "--threads", type=int, help="of the peers; without: one for each physical core"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where the figures go, with every key's time")
    parser.add_argument("--svg", type=Path, help="where a plot of the distribution goes")
    return parser


def main() -> None:
    options = arguments().parse_args()
    options.threads = options.threads or usable_cores()
    with tempfile.TemporaryDirectory(prefix="fimls-") as name:
        folder, model = Path(name), options.model
        if model == "long":
            model = str(
                write_random(folder / "long", {"max_position_embeddings": 16_384}, "float32")
            )
        shared = "".join(
            f",{key}={value}"
            for key, value in (
                ("contextTokens", options.context_tokens),
                ("suffixTokens", options.suffix_tokens),
            )
            if value is not None
        )
        try:
            names = (options.side or ["ours"]) + ["ours,engine.cacheMemory=0"] * options.no_cache
            sides = [parse_side(each + shared, model) for each in names]
            packages, which = sources(options.where)
            written = sessions(packages, options.seed, least=options.least, longest=options.longest)
            made = enough(written, options.keys)
            if options.project:
                write_files(packages, folder)
            found = asyncio.run(play_all(made, sides, Exports(model, folder), folder, options))
        except (CommandError, EditorError, ValueError) as error:
            raise SystemExit(f"replay: {error}") from None
    print(
        f"\n{machine()}; {time.strftime('%Y-%m-%d')}; {options.model}; {len(made)} files of "
        f"{which}, seed "
        f"{options.seed}\n\n{report(found)}"
    )
    if options.json:
        whole = {
            n: summary(p)
            | {"ms": [key.ms for key in p.keys], "each key": [asdict(key) for key in p.keys]}
            for n, p in found.items()
        }
        options.json.write_text(json.dumps(whole))
    if options.svg:
        from benchmarks.plots import distribution

        options.svg.write_text(
            distribution({n: [key.ms for key in p.keys] for n, p in found.items()})
        )


if __name__ == "__main__":
    main()
