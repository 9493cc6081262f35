"""Asks a contestant about samples: the whole product as a user would, or the bare model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from random import Random
from typing import Any

from fim import CursorContext
from fim.evaluation.samples import Sample, Task
from lsp_server.commands.evaluation.contestants import Contestant
from lsp_server.commands.source_files import language_of
from lsp_server.completion.request import complete, query_at
from lsp_server.documents import Snapshot
from lsp_server.engines.interface import Engine
from lsp_server.session.prompter import CHARACTERS_PER_TOKEN

IN_FLIGHT = 4  # requests at once: while the engine answers one, the next are prepared
MOST_TYPED_TOKENS = 64  # between the anchor and the cursor
ONE_LINE: tuple[Task, ...] = ("line", "column")


@dataclass(frozen=True, slots=True)
class Guess:
    """An answer to a sample."""

    text: str
    replaced: int = 0  # characters right of the cursor
    confidence: float = 1.0
    hidden: bool = False  # by another filter than minConfidence


async def ask_product(sample: Sample, task: Task, contestant: Contestant, engine: Engine) -> Guess:
    """The suggestion of the whole product, even an unsure one. Raises EngineUnavailable."""
    settings = contestant.settings
    if task in ONE_LINE:
        settings = replace(settings, multiline="never")
    prompter = contestant.prompter
    snapshot = snapshot_of(sample)
    context = context_of(sample, replace(contestant, settings=settings), sample.path)
    query = query_at(snapshot, sample.path, prompter, settings, "eval", context=context)
    suggestion = (await complete(engine, query)).suggestion
    _, replaced = suggestion.replace
    return Guess(suggestion.text, replaced, suggestion.confidence, suggestion.hidden)


async def ask_bare(sample: Sample, task: Task, contestant: Contestant, engine: Engine) -> Guess:
    """The text that the model writes between prefix and suffix. Raises EngineUnavailable."""
    context = context_of(sample, contestant, None)
    request, _ = contestant.prompter.request(context, contestant.settings, "eval")
    text = ""
    async with aclosing(engine.complete(request)) as pieces:
        async for piece in pieces:
            text += piece.text
            if task in ONE_LINE and "\n" in text:
                return Guess(text.partition("\n")[0])
    return Guess(text)


def snapshot_of(sample: Sample) -> Snapshot:
    """The sample's file without its middle, the cursor where that was."""
    language = language_of(PurePosixPath(sample.path))
    text = sample.prefix + sample.suffix
    return Snapshot("file:///" + sample.path, 1, language, text, len(sample.prefix))


def context_of(sample: Sample, contestant: Contestant, path: str | None) -> CursorContext:
    """The context at the sample's cursor.

    For the layout "anchored" it is that of a user who typed the end of the prefix after the anchor
    was set: as many characters as 0 to MOST_TYPED_TOKENS tokens have. The number depends on the
    sample alone.
    """
    prompter = contestant.prompter
    snapshot = snapshot_of(sample)
    if contestant.layout != "anchored":
        return prompter.context(snapshot, contestant.settings, path)
    chance = Random(f"{sample.path} {snapshot.offset}")
    typed = chance.randint(0, MOST_TYPED_TOKENS * CHARACTERS_PER_TOKEN)
    start = max(0, snapshot.offset - typed)
    earlier = replace(snapshot, text=snapshot.text[:start] + sample.suffix, offset=start)
    previous = prompter.context(earlier, contestant.settings, path)
    return prompter.context(snapshot, contestant.settings, path, previous)


async def in_order(
    asks: Iterable[Callable[[], Coroutine[Any, Any, Guess]]],
) -> AsyncGenerator[Guess]:
    """Yields the answers in the order of the questions; asks IN_FLIGHT at once."""
    running: deque[asyncio.Task[Guess]] = deque()
    try:
        for ask in asks:
            running.append(asyncio.create_task(ask()))
            if len(running) == IN_FLIGHT:
                yield await running.popleft()
        while running:
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
