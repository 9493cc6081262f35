"""A storm of keys in several windows, with the engine killed now and then: every request has one
answer, none is for another text, memory stays flat, and nothing is left running.

FIMLS_STORM_KEYS says how many keys (100,000). The same seed gives the same keys, not the same
times.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import web

from fim.lines import only_closes
from model.machine import memory_bytes
from tests.lsp_server.helpers import Endpoint, Home, Window, chunk, until
from tests.storm.typist import Asked, Typist

pytestmark = [pytest.mark.storm, pytest.mark.asyncio]

KEYS = int(os.environ.get("FIMLS_STORM_KEYS", "100000"))
WINDOWS = 3
KILLS = max(1, 7 * KEYS // 100_000)
ROUNDS = 10
# What a window keeps of what was typed (pieces as tokens, contexts, the tokenizer's words) is full
# after some 15,000 keys of texts without sense. Then memory stays; before, it grows by no more.
FULL = 15_000
GROWTH = 0.05
MOST_MB = 20
EVERYTHING = {"minConfidence": 0}  # is shown: nobody could be sure of such texts
PROMPT = re.compile(r"<fim_prefix>(.*)<fim_suffix>(.*)<fim_middle>(.*)", re.DOTALL)


@pytest.fixture
def home() -> Any:
    home = Home()
    yield home
    home.close()


@contextlib.asynccontextmanager
async def windows(home: Home, count: int, settings: dict[str, Any]) -> AsyncIterator[list[Window]]:
    async with contextlib.AsyncExitStack() as stack:
        opened = []
        for _ in range(count):
            window = await stack.enter_async_context(Window.spawn(home))
            await window.start(settings)
            opened.append(window)
        yield opened


def sizes(windows: list[Window]) -> list[float]:
    """MB of each server."""
    return [(memory_bytes(window.process.pid) or 0) / 1e6 for window in windows if window.process]


async def test_keys_come_faster_than_answers(home: Home) -> None:
    started = time.monotonic()
    async with windows(home, WINDOWS, EVERYTHING) as opened:
        for window in opened:
            window.open("def add(a, b):\n    ")
            await window.suggestion(1, 4)
        typists = [Typist(window, f"w{n}_", seed=n) for n, window in enumerate(opened)]
        killed = asyncio.ensure_future(kill_now_and_then(home))
        grown = []
        for _ in range(ROUNDS):
            each = KEYS // WINDOWS // ROUNDS
            await asyncio.gather(*(typist.type(each) for typist in typists))
            grown.append(sizes(opened))
        killed.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await killed
        counts = sum((Counter(typist.counts) for typist in typists), Counter())
        print(f"\n{dict(counts)}; {time.monotonic() - started:.0f} s")
        print(
            "MB of each server:",
            *(" ".join(f"{mb:.1f}" for mb in each) for each in grown),
            sep="\n",
        )
        assert counts["requests"] == counts["shown"] + counts["empty"] + counts["cancelled"]
        assert counts["shown"] > 0
        for first, half, last in zip(grown[0], grown[ROUNDS // 2 - 1], grown[-1], strict=True):
            assert last < first + MOST_MB
            if KEYS // WINDOWS // 2 >= FULL:
                assert last < half * (1 + GROWTH)
        processes = [window.process.pid for window in opened if window.process]
    assert not [pid for pid in processes if Path(f"/proc/{pid}/cmdline").exists()]


async def kill_now_and_then(home: Home) -> None:
    random = Random(0)
    for _ in range(KILLS):
        await asyncio.sleep(KEYS / 100000 * random.uniform(5, 20))
        for pid in home.engines():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


async def test_no_answer_is_for_another_text(home: Home) -> None:
    """The endpoint's answers carry the number of the prompt, so that each suggestion tells which
    text it was made for."""
    prompts: list[str] = []

    async def number(request: web.Request) -> web.StreamResponse:
        prompts.append((await request.json())["prompt"])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for text in (f"n{len(prompts) - 1}", "z\n"):
            await response.write(chunk(text))
            await asyncio.sleep(0.003)
        return response

    judged = 0

    def judge(asked: Asked, item: dict[str, Any]) -> None:
        nonlocal judged
        found = re.search(r"n(\d+)z", item["insertText"])
        if found is None:  # the rest of one that was typed along
            return
        judged += 1
        before, after, typed = PROMPT.fullmatch(prompts[int(found[1])]).groups()  # type: ignore[union-attr]
        # Prompts have one kind of line end, as models were trained.
        left, right = (
            text.replace("\r\n", "\n")
            for text in (asked.text[: asked.cursor], asked.text[asked.cursor :])
        )
        assert (before + typed).endswith(left[-20:])
        # Closers right of the cursor are left out of a prompt: the answer writes them.
        line, end, below = right.partition("\n")
        assert after.startswith(right[:20]) or (
            only_closes(line) and after.startswith((end + below)[:20])
        )

    async with Endpoint(number) as endpoint:
        remote = {"remote.url": endpoint.url, "remote.format": "starcoder2"} | EVERYTHING
        async with windows(home, 2, remote) as opened:
            typists = [Typist(window, f"r{n}_", 10 + n, judge) for n, window in enumerate(opened)]
            await asyncio.gather(*(typist.type(KEYS // 10) for typist in typists))
            await until(lambda: endpoint.streams == 0)
    print(f"\n{[typist.counts for typist in typists]}; {judged} judged; {len(prompts)} prompts")
    assert judged > KEYS / 1000
