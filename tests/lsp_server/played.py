"""An engine that a test plays, and whoever types into a window at it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from typing import Any

from lsp_server.engines.interface import CompletionRequest, EngineState, Piece
from tests.lsp_server.helpers import URI, Window, until, window_in_process

BODY = "def f():\n    "  # the cursor at its end asks for a block
HOURS = 1e7  # milliseconds
PATIENT = {"remote.url": "http://engine", "remote.format": "starcoder2", "alternatives": 1}


class Stream:
    """One answer, said piece by piece by the test."""

    def __init__(self, request: CompletionRequest) -> None:
        self.request, self.closed = request, False
        self.pieces: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()

    def say(self, *texts: str) -> None:
        for text in texts:
            self.pieces.put_nowait(Piece(text, (-0.1,)))

    def finish(self, *texts: str) -> None:
        self.say(*texts)
        self.pieces.put_nowait(None)


class Played:
    """An engine here. asked: the answers, the oldest first; prefilled: prompts that were to be
    read."""

    has_idle_time = True
    address = "played"
    prefill_per_s: float | None = None
    state = EngineState("ready")

    def __init__(self) -> None:
        self.starts = 0
        self.asked: list[Stream] = []
        self.prefilled: list[CompletionRequest] = []

    def start(self) -> None:
        self.starts += 1

    async def wait_until_settled(self) -> EngineState:
        return self.state

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        stream = Stream(request)
        self.asked.append(stream)
        try:
            while (piece := await stream.pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            stream.closed = True

    async def prefill(self, request: CompletionRequest) -> None:
        self.prefilled.append(request)

    async def release(self, client: str) -> None: ...

    async def close(self) -> None: ...

    async def stream(self, number: int) -> Stream:
        return await until(lambda: len(self.asked) > number and self.asked[number])

    async def answers(self, number: int, text: str, items: Awaitable[list[str]]) -> list[str]:
        """Says all of the newest answer, which has to be of this number; what
        the items are then."""
        await until(lambda: len(self.asked) == number + 1)
        self.asked[number].finish(text)
        return await items


class Typist:
    """Opens the window's one document, edits it, and asks at its end."""

    def __init__(self, window: Window, text: str = BODY) -> None:
        self.window, self.text, self.version, self.number = window, text, 1, 0
        window.open(text)

    def to(self, text: str) -> None:
        """Another text, as one edit of what differs."""
        same = 0
        while same < min(len(text), len(self.text)) and text[same] == self.text[same]:
            same += 1
        self.version += 1
        where = {"start": self.place(self.text[:same]), "end": self.place(self.text)}
        self.window.change(self.version, text[same:], where)
        self.text = text

    @staticmethod
    def place(before: str) -> dict[str, int]:
        return {"line": before.count("\n"), "character": len(before.rpartition("\n")[2])}

    def ask(self, **how: Any) -> asyncio.Future[list[str]]:
        """What is suggested; number is the request's from then on."""
        self.number, items = self.window.ask(**self.place(self.text), **how)

        async def texts() -> list[str]:
            return [item["insertText"] for item in await items]

        return asyncio.ensure_future(texts())

    def ask_at(self, text: str) -> asyncio.Future[list[str]]:
        self.to(text)
        return self.ask()

    async def types(self, keys: str) -> list[str]:
        return await self.ask_at(self.text + keys)

    def looks(self, **place: Any) -> None:
        """Tells where the cursor is; without a place, at the text's end."""
        place = {"position": self.place(self.text)} | place
        self.window.notify("textDocument/didFocus", {"textDocument": {"uri": URI}} | place)

    async def why(self) -> str:
        return str((await self.window.request("fimls/why", {}))["markdown"])

    async def is_ready(self) -> bool:
        return (await self.window.request("fimls/status", {}))["state"] in ("ready", "busy")

    async def rests(self) -> None:
        """Until the server has taken all that it was told, and has done what it can."""
        await self.is_ready()
        await settle()


@contextlib.asynccontextmanager
async def typist_at(text: str = BODY, **settings: Any) -> AsyncIterator[Typist]:
    async with window_in_process(PATIENT | settings) as window:
        typist = Typist(window, text)
        await until(typist.is_ready)
        yield typist


@contextlib.asynccontextmanager
async def cut(engine: Played) -> AsyncIterator[tuple[Typist, Stream]]:
    """An answer of which the first line was shown; the second is being written."""
    async with typist_at(timeBudget=0) as typist:
        items = typist.ask()
        stream = await engine.stream(0)
        stream.say("a = 1\n", "    b")
        assert await items == ["a = 1"]
        yield typist, stream


async def settle() -> None:
    """Lets everything happen that can."""
    for _ in range(50):
        await asyncio.sleep(0.001)
