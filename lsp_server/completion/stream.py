"""The engine's answer as it comes. Its task may outlive the request that started it."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

from fim import Shaper, Suggestion, Sureness
from lsp_server.engines.interface import Answering, CompletionRequest, Piece


class Bell:
    """Wakes everybody who waits, each time that there is something new."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ring(self) -> None:
        rung = self._next
        self._next = asyncio.get_running_loop().create_future()
        rung.set_result(None)

    async def wait(self, timeout_s: float | None = None) -> None:
        await asyncio.wait({self._next}, timeout=timeout_s)


class AnswerStream:
    """An answer as far as it has come. Whoever starts it has to `close` it.

    It is whole when the engine ends it, or when the shaper says that more tokens would be
    pointless. So its text does not depend on who reads it, or when.
    """

    def __init__(self, engine: Answering, request: CompletionRequest, shaper: Shaper) -> None:
        self.shaper = shaper
        self.text = ""
        self.tokens = 0
        self.first_at: float | None = None  # the first token, by time.perf_counter
        self.reused: int | None = None  # tokens of the prompt that were cached
        self.prompt_tokens: int | None = None  # of the prompt that the engine took
        self.passes: int | None = None  # runs of the model
        self.whole = False
        self.error: Exception | None = None
        self.changed = Bell()
        self._ends: list[int] = []  # characters after each piece
        self._logprobs: list[float] = []  # their sum after each piece
        self._task = asyncio.ensure_future(self._read(engine, request))
        self._task.add_done_callback(lambda _: self.changed.ring())

    @property
    def running(self) -> bool:
        return not self._task.done()

    @property
    def lines(self) -> str:
        """Its whole lines, without the line end of the last one."""
        return self.text[: max(0, self.text.rfind("\n"))]

    @property
    def sureness(self) -> Sureness:
        """How sure the model was of the answer so far; without a piece that told nothing of it."""
        return Sureness(tuple(self._ends), tuple(self._logprobs))

    def shape(self) -> Suggestion:
        """The suggestion made of the whole answer."""
        return self.shaper.shape(self.text, self.sureness)

    def shape_lines(self) -> Suggestion:
        """The suggestion made of the whole lines alone."""
        return self.shaper.shape(self.lines, self.sureness)

    async def more(self, timeout_s: float | None = None) -> None:
        """Waits for more of the answer or its end. Raises what broke it off."""
        if self.running:
            await self.changed.wait(timeout_s)
        if self.error is not None:
            raise self.error

    async def finished(self) -> None:
        """Waits until the answer is whole or closed. Raises as `more`."""
        while self.running:
            await self.more()
        await self.more()

    def close(self) -> None:
        """Ends the answer, also at the engine."""
        self._task.cancel()

    async def _read(self, engine: Answering, request: CompletionRequest) -> None:
        try:
            async with aclosing(engine.complete(request)) as pieces:
                async for piece in pieces:
                    self._add(piece)
                    if self.shaper.done(self.text, self.sureness):
                        break
            self.whole = True
        except Exception as error:
            self.error = error

    def _add(self, piece: Piece) -> None:
        # The first piece may hold nothing but the count of cached tokens.
        if self.first_at is None and (piece.text or piece.logprobs):
            self.first_at = time.perf_counter()
        self.text += piece.text
        self.tokens += len(piece.logprobs)
        if piece.text or piece.logprobs:
            before = self._logprobs[-1] if self._logprobs else 0.0
            self._ends.append(len(self.text))
            self._logprobs.append(before + sum(piece.logprobs))
        if piece.reused_tokens is not None:
            self.reused = piece.reused_tokens
            self.prompt_tokens = piece.prompt_tokens
        if piece.passes is not None:
            self.passes = piece.passes
        self.changed.ring()
