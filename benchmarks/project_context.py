"""What it costs to look for snippets of other files, without an engine: the time until there are
some, and how long the event loop is held up meanwhile.

    python -m benchmarks.project_context [--corpus training/data/test.jsonl]

Two workspaces: one that somebody made to harm (tests/lsp_server/context/hostile.py: 50,000 files
and more), and the held-out packages as they are. "loop": the longest pause between two turns of the
event loop while snippets are looked for, beside that of as long a time without. "again": the search
after an edit, with everything read.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.cross_file import CORPUS, read_corpus
from benchmarks.figures import machine, percentile, table
from lsp_server.context.project import ProjectContext
from lsp_server.documents import Document, Snapshot
from lsp_server.session.prompter import Prompter
from lsp_server.session.stand_in import load_modules
from lsp_server.settings import Settings
from tests.lsp_server.context.hostile import make

ROUNDS = 5
JUMP = 100  # lines


class Loop:
    """Measures the pauses between turns of the event loop while it is entered."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    async def __aenter__(self) -> Loop:
        self._task = asyncio.ensure_future(self._turn())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _turn(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            self.pauses.append((time.perf_counter() - before - 0.001) * 1000)


async def measure(name: str, root: Path, main: Path, count: Callable[[str], int]) -> list[object]:
    text = main.read_text(encoding="utf-8")
    uri = main.as_uri()
    documents = {uri: Document(uri, 1, "python", text)}
    project = ProjectContext(lambda: documents, lambda: [root])
    places = [0] * ROUNDS
    firsts, again, busy, quiet = [], [], [], []
    for number, _ in enumerate(places):
        padded = text + "\n" * (JUMP * number) + "order.add_"
        snapshot = Snapshot(uri, number, "python", padded, len(padded))
        async with Loop() as loop:
            started = time.perf_counter()
            project.visit(snapshot, 512, count)
            await project.settled(uri)
            took = time.perf_counter() - started
        (again if number else firsts).append(took)
        busy += loop.pauses
        async with Loop() as loop:
            await asyncio.sleep(took)
        quiet += loop.pauses
    snippets = project.surroundings(uri).snippets
    project.close()
    return [
        name,
        firsts[0],
        percentile(again, 0.5),
        f"{percentile(busy, 0.99):.1f} / {max(busy):.1f}",
        f"{percentile(quiet, 0.99):.1f} / {max(quiet):.1f}",
        len(snippets),
        count("".join(each.text for each in snippets)),
    ]


async def run(corpus: Path, folder: Path) -> str:
    load_modules()
    count = Prompter.for_settings(Settings()).count
    hostile = make(folder / "hostile")
    rows = [await measure("made to harm", hostile.root, hostile.main, count)]
    packages = read_corpus(corpus)
    for name in ("flask", "networkx"):
        for path, text in packages[name].items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        main = next(path for path in sorted(packages[name]) if len(packages[name][path]) > 20_000)
        root = folder / main.split("/")[0]
        rows.append(await measure(name, root, folder / main, count))
    head = ("workspace", "first, s", "again, s (with the pause)", "loop p99 / longest, ms",
            "without, ms", "files", "tokens")  # fmt: skip
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fimls-") as name:
        print(f"{machine()}; {time.strftime('%Y-%m-%d')}\n\n"
              f"{asyncio.run(run(options.corpus, Path(name)))}")  # fmt: skip


if __name__ == "__main__":
    main()
