"""From process start to the first suggestion, through the real server over stdio.

    python -m benchmarks.startup [--repeats 5]

Per repeat: no engine is running; a window opens; `initialize` is answered; a document is open at once and is asked
about until a suggestion comes. "cold" counts the engine's start; "warm" is a second window on the same engine, and
then single suggestions there with a new prefix (a jump) and a grown one (typing). Memory is RssAnon + VmSwap.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path

from lsp_server.client import EditorWindow
from lsp_server.once import engine_statuses, stop_engines
from model.machine import memory_bytes

TEXT = (Path(__file__).parent.parent / "model" / "kv_cache.py").read_text()
LINES = TEXT.splitlines()
# Lines of code with something to the left of the cursor and something to guess on the right.
PLACES = [(n, len(line) - 12) for n, line in enumerate(LINES) if len(line) > 40 and "=" in line[: len(line) - 12]]


async def until_stopped() -> None:
    await stop_engines()
    while await engine_statuses():
        await asyncio.sleep(0.05)
        await stop_engines()


async def first_suggestion(window: EditorWindow) -> float:
    """Milliseconds from the process's start to the first suggestion, asking every 10 ms as an editor might."""
    path = Path("/tmp/startup.py")
    while True:
        for line, column in PLACES:
            window.put(path, "python", "\n".join([*LINES[:line], LINES[line][:column], *LINES[line + 1 :]]))
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


async def main(repeats: int) -> None:
    rows: dict[str, list[float]] = {}
    for _ in range(repeats):
        await until_stopped()
        async with EditorWindow(Path("/tmp")) as cold:
            rows.setdefault("initialize", []).append(cold.initialize_ms)
            rows.setdefault("first suggestion, engine not running", []).append(await first_suggestion(cold))
            async with EditorWindow(Path("/tmp")) as warm:
                rows.setdefault("first suggestion, engine running", []).append(await first_suggestion(warm))
                jumped, typed = await suggestions(warm, Path("/tmp/suggestions.py"))
                rows.setdefault("suggestion after a jump", []).extend(jumped)
                rows.setdefault("suggestion after a typed key", []).extend(typed)
            rows.setdefault("memory of fimls lsp, MB", []).append((memory_bytes(cold.process_id) or 0) / 1e6)
            (status,) = await engine_statuses()
            rows.setdefault("memory of fimls engine, MB", []).append(status["memory_bytes"] / 1e6)
    await until_stopped()
    print(f"engine loaded: {', '.join(status['packages'])}")
    for name, values in rows.items():
        print(f"{name:40} median {statistics.median(values):7.1f}   min {min(values):7.1f}   max {max(values):7.1f}   "
              f"of {len(values)}{'' if 'MB' in name else '   (ms)'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    asyncio.run(main(parser.parse_args().repeats))
