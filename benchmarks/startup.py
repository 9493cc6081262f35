"""From process start to the first suggestion, through the real server over stdio.

    python -m benchmarks.startup [--repeats 5] [--model NAME]

It uses folders of its own; a first round, shown by itself, fills their caches. Per repeat: no
engine is running; a window opens; `initialize` is answered; a document is open at once and is asked
about until a suggestion comes. "engine running" is a second window on the same engine; then single
suggestions there with a new prefix (a jump) and a grown one (typing). Private memory is RssAnon +
VmSwap.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

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


async def one_round(
    home: Home, folder: Path, settings: dict[str, Any]
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Figures by their names, and what the engine says of itself."""
    rows: dict[str, list[float]] = {}
    await home.stop()
    async with EditorWindow(folder, settings) as cold:
        rows["initialize"] = [cold.initialize_ms]
        rows["first suggestion, engine not running"] = [
            await first_suggestion(cold, folder / "startup.py")
        ]
        if settings:  # the bundled model may have answered meanwhile
            await cold.wait_until_ready()
            rows["first suggestion of the model, engine not running"] = [
                await first_suggestion(cold, folder / "startup.py")
            ]
        async with EditorWindow(folder, settings) as warm:
            rows["first suggestion, engine running"] = [
                await first_suggestion(warm, folder / "startup.py")
            ]
            await home.until_upgraded()
            jumped, typed = await suggestions(warm, folder / "suggestions.py")
            rows |= {"suggestion after a jump": jumped, "suggestion after a typed key": typed}
        rows["memory of fimls lsp, MB"] = [(memory_bytes(cold.process_id) or 0) / 1e6]
        statuses = {status["model"]: status for status in await home.statuses()}
        status = statuses[settings.get("model", "bundled")]
        rows["private memory of fimls engine, MB"] = [status["memory_bytes"] / 1e6]
        rows["its peak, with mapped files, MB"] = [peak_bytes(status["pid"]) / 1e6]
        if settings and status["weights"].startswith(("int8", "the file's own blocks")):
            await home.until_prepared()
    return rows, status


def peak_bytes(process: int) -> int:
    """The most memory that a process has had at once, pages of mapped files included (VmHWM)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


async def main(repeats: int, model: str) -> None:
    found: dict[str, list[float]] = {}
    settings = {} if model == "bundled" else {"model": model}
    async with own_home() as home:
        with tempfile.TemporaryDirectory(prefix="fimls-") as name:
            for number in range(repeats + 1):
                rows, status = await one_round(home, Path(name), settings)
                if not number:
                    print_rows(rows, "first round, nothing compiled or prepared")
                    continue
                for row, values in rows.items():
                    found.setdefault(row, []).extend(values)
    packages = ", ".join(status["packages"])
    print_rows(found, f"then; loaded: {packages}; {status['weights']}; {status['prepared']=}")


def print_rows(rows: dict[str, list[float]], title: str) -> None:
    print(title)
    for row, values in rows.items():
        print(
            f"{row:50} median {statistics.median(values):8.1f}   min {min(values):8.1f}   max "
            f"{max(values):8.1f}   "
            f"of {len(values)}{'' if 'MB' in row else '   (ms)'}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default="bundled")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.repeats, arguments.model))
