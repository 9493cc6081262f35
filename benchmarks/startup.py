"""From process start to the first suggestion, through the real server over stdio.

    python -m benchmarks.startup [--repeats 5]

It uses folders of its own; a first round, which does not count, fills their caches. Per repeat: no
engine is running; a window opens; `initialize` is answered; a document is open at once and is asked
about until a suggestion comes. "engine running" is a second window on the same engine; then single
suggestions there with a new prefix (a jump) and a grown one (typing). Memory is RssAnon + VmSwap.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.editor import Home, own_home
from lsp_server.protocol.client import EditorWindow
from model.machine import memory_bytes

TEXT = (Path(__file__).parent.parent / "model" / "decoder" / "kv_cache.py").read_text()
LINES = TEXT.splitlines()
# Lines of code with something to the left of the cursor and something to guess on the right.
PLACES = [
    (n, len(line) - 12)
    for n, line in enumerate(LINES)
    if len(line) > 40 and "=" in line[: len(line) - 12]
]


async def first_suggestion(window: EditorWindow, path: Path) -> float:
    """Milliseconds from the process's start to the first suggestion, asking every 10 ms as an
    editor might."""
    while True:
        for line, column in PLACES:
            window.put(
                path, "python", "\n".join([*LINES[:line], LINES[line][:column], *LINES[line + 1 :]])
            )
            if await window.ask(path, line, column):
                return (time.perf_counter() - window.started) * 1000
            await asyncio.sleep(0.01)


async def suggestions(window: EditorWindow, path: Path) -> tuple[list[float], list[float]]:
    """Milliseconds of suggestions after a jump, and after each of the next keys typed there."""
    jumped, typed = [], []
    for line, column in PLACES[:8]:
        for more in range(6):
            text = "\n".join([*LINES[:line], LINES[line][: column + more], *LINES[line + 1 :]])
            window.put(path, "python", text)
            started = time.perf_counter()
            await window.ask(path, line, column + more)
            (typed if more else jumped).append((time.perf_counter() - started) * 1000)
    return jumped, typed


async def one_round(home: Home, folder: Path) -> tuple[dict[str, list[float]], list[str]]:
    """Figures by their names, and the heavy packages that the engine has loaded."""
    rows: dict[str, list[float]] = {}
    await home.stop()
    async with EditorWindow(folder) as cold:
        rows["initialize"] = [cold.initialize_ms]
        rows["first suggestion, engine not running"] = [
            await first_suggestion(cold, folder / "startup.py")
        ]
        async with EditorWindow(folder) as warm:
            rows["first suggestion, engine running"] = [
                await first_suggestion(warm, folder / "startup.py")
            ]
            await home.until_upgraded()
            jumped, typed = await suggestions(warm, folder / "suggestions.py")
            rows |= {"suggestion after a jump": jumped, "suggestion after a typed key": typed}
        rows["memory of fimls lsp, MB"] = [(memory_bytes(cold.process_id) or 0) / 1e6]
        (status,) = await home.statuses()
        rows["memory of fimls engine, MB"] = [status["memory_bytes"] / 1e6]
    return rows, status["packages"]


async def main(repeats: int) -> None:
    found: dict[str, list[float]] = {}
    packages: list[str] = []
    async with own_home() as home:
        with tempfile.TemporaryDirectory(prefix="fimls-") as name:
            for number in range(repeats + 1):
                rows, packages = await one_round(home, Path(name))
                for row, values in rows.items() if number else ():
                    found.setdefault(row, []).extend(values)
    print(f"engine loaded: {', '.join(packages)}")
    for row, values in found.items():
        print(
            f"{row:40} median {statistics.median(values):7.1f}   min {min(values):7.1f}   max "
            f"{max(values):7.1f}   "
            f"of {len(values)}{'' if 'MB' in row else '   (ms)'}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    asyncio.run(main(parser.parse_args().repeats))
