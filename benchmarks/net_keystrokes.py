"""The keys that suggestions save a typist, less what it costs to look at them.

    python -m benchmarks.net_keystrokes --model FILE.gguf --side ours --side llama.vim:file
    [--keys 100] [--package NAME]

A simulated typist writes passages of held-out files anew, a package at a time, at a person's pace
(typing_traces.py), with every side in turn. Each suggestion that appears before the next key is
looked at: LOOK_S, and READ_S for each of its words up to the first wrong one. One that is right as
a whole is accepted, with one key. What comes after the next key saves nothing, and what is typed
along costs nothing more. Times are turned into keys at the typist's pace.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.editor import EditorError
from benchmarks.figures import machine, table
from benchmarks.peers import Exports
from benchmarks.replay import Key, Player
from benchmarks.targets import parse_side, running
from benchmarks.typing_traces import KEY_S, MOST, Session, enough, sessions, sources
from fim.evaluation.scoring import common_prefix
from lsp_server.commands.errors import CommandError
from model.machine import usable_cores

LOOK_S = 0.1
READ_S = 0.05  # a word, or a sign
WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Tally:
    """What came of some keys. Costs are in keys."""

    strokes: int = 0  # that it takes without suggestions
    appeared: int = 0  # suggestions
    accepted: int = 0  # of these
    saved: int = 0  # strokes, less one for each acceptance
    cost: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.strokes + other.strokes,
            self.appeared + other.appeared,
            self.accepted + other.accepted,
            self.saved + other.saved,
            self.cost + other.cost,
        )

    def net(self, weight: float = 1.0) -> float:
        """Of 100 strokes. weight: of the cost of looking."""
        return 100 * (self.saved - weight * self.cost) / max(1, self.strokes)

    @property
    def accepted_share(self) -> float:
        return self.accepted / max(1, self.appeared)


def tally(keys: Sequence[Key], strokes: int) -> Tally:
    fresh = [key for key in keys if key.fresh]
    accepted = [key for key in keys if key.accepted]
    return Tally(
        strokes,
        len(fresh),
        len(accepted),
        sum(key.saved - 1 for key in accepted),
        sum(cost_of(key.fresh, key.ahead) for key in fresh) / KEY_S,
    )


def cost_of(suggestion: str, ahead: str) -> float:
    """Seconds to look at a suggestion where the author writes `ahead`."""
    right = common_prefix(suggestion, ahead)
    read = sum(word.start() <= right for word in WORD.finditer(suggestion))
    return LOOK_S + READ_S * read


async def play(
    made: Mapping[str, Sequence[Session]], options: argparse.Namespace, folder: Path
) -> tuple[dict[str, dict[str, Tally]], dict[str, dict[str, list[Key]]]]:
    """By side and package."""
    exports = Exports(options.model, folder)
    tallies: dict[str, dict[str, Tally]] = {name: {} for name in options.side}
    keys: dict[str, dict[str, list[Key]]] = {name: {} for name in options.side}
    async with AsyncExitStack() as stack:
        players = {}
        for name in options.side:
            side = parse_side(name, options.model)
            target = await stack.enter_async_context(
                running(side, exports, folder, options.threads)
            )
            players[name] = Player(
                target, folder, speedup=1.0, accept=1.0, seed=options.seed, count=False
            )
        for package, its in made.items():
            for name, player in players.items():
                played = [key for session in its for key in await player.play(session)]
                keys[name][package] = played
                tallies[name][package] = tally(played, sum(session.keys for session in its))
            print(package, file=sys.stderr, flush=True)
    return tallies, keys


def report(tallies: Mapping[str, Mapping[str, Tally]]) -> str:
    sides = list(tallies)
    packages = list(tallies[sides[0]])
    heading = ["", *(f"{name}: net of 100 keys" for name in sides)]
    rows: list[list[object]] = []
    for package in packages:
        rows.append([package, *(f"{tallies[name][package].net():.1f}" for name in sides)])
    sums = {name: sum(tallies[name].values(), Tally()) for name in sides}
    rows.append(["all", *(f"{each.net():.1f}" for each in sums.values())])
    for weight in (0.0, 0.5, 2.0):
        nets = [f"{each.net(weight):.1f}" for each in sums.values()]
        rows.append([f"all, looking costs {weight:g} of it", *nets])
    rows.append(["suggestions, of 100 keys", *(per_hundred(each) for each in sums.values())])
    rows.append(["accepted of them", *(f"{s.accepted_share:.0%}" for s in sums.values())])
    return table(heading, rows)


def per_hundred(sums: Tally) -> str:
    return f"{100 * sums.appeared / max(1, sums.strokes):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--side", action="append", help="repeatable; without: ours")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--keys", type=int, default=100, help="of each package and side, at least")
    parser.add_argument("--package", action="append", help="repeatable; without: all")
    parser.add_argument("--where", type=Path, help="without: the held-out packages")
    parser.add_argument("--least", type=int, default=3000, help="characters of a file")
    parser.add_argument("--longest", type=int, default=2 * MOST, help="characters of a passage")
    parser.add_argument("--threads", type=int, help="of the peers; without: one for each core")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where the figures go, with every key")
    options = parser.parse_args()
    options.side = options.side or ["ours"]
    options.threads = options.threads or usable_cores()
    try:
        packages, which = sources(options.where)
        made = {}
        for name in options.package or sorted(packages):
            written = sessions(
                {name: packages[name]}, options.seed, least=options.least, longest=options.longest
            )
            made[name] = enough(written, options.keys)
        with tempfile.TemporaryDirectory(prefix="fimls-") as folder:
            tallies, keys = asyncio.run(play(made, options, Path(folder)))
    except (CommandError, EditorError, ValueError) as error:
        raise SystemExit(f"net_keystrokes: {error}") from None
    print(
        f"\n{machine()}; {time.strftime('%Y-%m-%d')}; {options.model}; {options.keys} keys and "
        f"more of each package of {which}, seed {options.seed}\n\n{report(tallies)}"
    )
    if options.json:
        every = {
            name: {package: [asdict(key) for key in its] for package, its in packages.items()}
            for name, packages in keys.items()
        }
        options.json.write_text(json.dumps(every))


if __name__ == "__main__":
    main()
