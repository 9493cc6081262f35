"""What the engine writes for one request, read by a task of its own, so that it may outlive whoever
waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from lsp_server.engines.interface import CompletionRequest, Engine, Piece

SETTLED = 4  # tokens, from which on doubt can only grow


class Bell:
    """Wakes all who wait, each time that there is something new."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ring(self) -> None:
        rung, self._next = self._next, asyncio.get_running_loop().create_future()
        rung.set_result(None)

    async def wait(self, timeout: float | None = None) -> None:
        await asyncio.wait({self._next}, timeout=timeout)


class Generation:
    """The answer as far as it has come. `end` it when nobody wants it any more: that cancels it at
    the engine.

    It is whole when the engine has no more to say, or when `done` says that more would be
    pointless: whoever reads it, and when, its text is the same.
    """

    def __init__(
        self, engine: Engine, request: CompletionRequest, done: Callable[[str, float], bool]
    ) -> None:
        self.text = ""
        self.logprobs: list[float] = []
        self._total, self._sure = 0.0, list[float]()  # behind each token
        self.reused: int | None = None
        self.passes: int | None = None
        self.first_at: float | None = None  # by time.perf_counter
        self.whole = False
        self.error: Exception | None = None
        self._marks: list[
            tuple[int, int]
        ] = []  # behind each piece: characters and log-probabilities so far
        self._bell = Bell()
        self._task = asyncio.ensure_future(self._read(engine.complete(request), done))
        self._task.add_done_callback(lambda _: self._bell.ring())

    @property
    def running(self) -> bool:
        return not self._task.done()

    @property
    def lines(self) -> str:
        """Its whole lines, without the last one's end."""
        return self.text[: max(0, self.text.rfind("\n"))]

    def logprob(self, length: int | None = None) -> float:
        """How sure the model was of the tokens that its first characters are made of, or of all; 0
        is certain.

        It is the mean log-probability of that beginning of them of which it is least, among those
        of SETTLED tokens or more: an answer is as sure as its least sure beginning, and what was in
        doubt stays so. (Against the mean over all, more of what is shown is right:
        benchmarks/RESULTS.md.)
        """
        count = len(self._sure)
        if length is not None:
            count = next(
                (tokens for characters, tokens in self._marks if characters >= length), count
            )
        return self._sure[count - 1] if count else 0.0

    async def more(self, timeout: float | None = None) -> None:
        """Waits until there is more of it or an end. Raises what went wrong, EngineUnavailable
        above all."""
        if self.running:
            await self._bell.wait(timeout)
        if self.error is not None:
            raise self.error

    async def finished(self) -> None:
        """Waits until it is whole, or has been ended; as `more`."""
        while self.running:
            await self.more()
        await self.more()

    def end(self) -> None:
        self._task.cancel()

    async def closed(self) -> None:
        """Waits until the engine has been told."""
        await asyncio.wait({self._task})

    async def _read(
        self, pieces: AsyncGenerator[Piece], done: Callable[[str, float], bool]
    ) -> None:
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    self._take(piece)
                    if done(self.text, self.logprob() if len(self._sure) >= SETTLED else 0.0):
                        break
            self.whole = True
        except Exception as error:
            self.error = error

    def _take(self, piece: Piece) -> None:
        if self.first_at is None and (
            piece.text or piece.logprobs
        ):  # the first piece may only tell of the cache
            self.first_at = time.perf_counter()
        self.text += piece.text
        for logprob in piece.logprobs:
            self.logprobs.append(logprob)
            self._total += logprob
            mean = self._total / len(self.logprobs)
            settled = len(self.logprobs) > SETTLED and mean >= self._sure[-1]
            self._sure.append(self._sure[-1] if settled else mean)
        self._marks.append((len(self.text), len(self.logprobs)))
        self.reused = piece.reused_tokens if piece.reused_tokens is not None else self.reused
        self.passes = piece.passes if piece.passes is not None else self.passes
        self._bell.ring()
