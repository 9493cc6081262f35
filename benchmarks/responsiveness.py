"""How long a trivial request waits at the server while the engine computes a prefill of 4,000
tokens.

    python -m benchmarks.responsiveness [--seconds 10]

The bundled model's shape with random weights and 16,384 positions. One document after another, each
with another text, asks for a suggestion; meanwhile every 5 ms a request that needs no model is sent
and its answer awaited.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.editor import own_home
from benchmarks.peers import write_random
from lsp_server.protocol.client import EditorWindow
from model.tokenizer import Tokenizer

POSITIONS, PROMPT_TOKENS = 16_384, 4_000
WORDS = (
    "self return value for in range if not None def class import from print list dict open "
    "path name"
).split()


def code_of(tokens: int, tokenizer: Tokenizer, rng: random.Random) -> str:
    text = ""
    while len(tokenizer.encode(text)) < tokens:
        text += "".join("    " + " ".join(rng.choices(WORDS, k=8)) + "\n" for _ in range(50))
    return text


async def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = write_random(
            Path(name) / "long", {"max_position_embeddings": POSITIONS}, "float32"
        )
        tokenizer, rng = Tokenizer.from_file(folder / "tokenizer.json"), random.Random(0)
        settings = {"model": str(folder), "contextTokens": PROMPT_TOKENS + 80, "maxTokens": 1}
        async with own_home() as home, EditorWindow(folder, settings) as window:
            assert await window.wait_until_ready(), window.messages
            waits: list[float] = []
            prefills: list[float] = []
            end = time.perf_counter() + seconds

            async def prefill() -> None:
                path = folder / "long.py"
                while time.perf_counter() < end:
                    text = code_of(PROMPT_TOKENS + 500, tokenizer, rng)
                    window.put(path, "python", text)
                    started = time.perf_counter()
                    await window.ask(path, text.count("\n"), 0)
                    prefills.append((time.perf_counter() - started) * 1000)

            async def ping() -> None:
                nothing = folder / "not-open.py"
                while time.perf_counter() < end:
                    started = time.perf_counter()
                    await window.ask(nothing, 0, 0)
                    waits.append((time.perf_counter() - started) * 1000)
                    await asyncio.sleep(0.005)

            await asyncio.gather(prefill(), ping())
            (status,) = await home.statuses()
    waits.sort()
    print(
        f"{len(prefills)} prefills of {PROMPT_TOKENS} tokens, median "
        f"{statistics.median(prefills):.0f} ms each "
        f"(engine: {status['served']} requests, {status['device']} {status['dtype']})"
    )
    print(
        f"{len(waits)} trivial requests: p50 {waits[len(waits) // 2]:.1f} ms, p95 "
        f"{waits[len(waits) * 95 // 100]:.1f}"
        f" ms, worst {waits[-1]:.1f} ms"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10.0)
    asyncio.run(main(parser.parse_args().seconds))
