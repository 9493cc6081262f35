"""The ways to ask that `fimls eval` compares: settings, a layout, the whole product or the bare
model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from random import Random
from typing import Any

from fim import CursorContext, Layout, Suggestion
from fim.evaluation.samples import TASKS, Sample, Task
from lsp_server.commands.source_files import language_of
from lsp_server.completion.query import query_at, shape, without_asking
from lsp_server.completion.stream import AnswerStream
from lsp_server.documents import Snapshot
from lsp_server.engines.interface import Answering
from lsp_server.session.prompt_sizes import UNLIMITED
from lsp_server.session.prompter import CHARACTERS_PER_TOKEN, Prompter
from lsp_server.settings import Settings

IN_FLIGHT = 4  # requests at once
MOST_TYPED_TOKENS = 64  # between the anchor and the cursor
THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of minConfidence
ONE_LINE: tuple[Task, ...] = ("line", "column")


@dataclass(frozen=True, slots=True)
class Plan:
    """The tasks, the samples and the ways to ask."""

    tasks: Sequence[Task] = TASKS
    samples: int = 300  # of each task
    layouts: Sequence[Layout] | None = None  # None: all that the model saw in training
    bare: bool = False  # the model alone, without the rest of the product
    baseline: bool = True
    seed: int = 0
    file: Path | None = None  # of tasks with tests (programs.py), in place of samples
    without: Sequence[str] = ()  # filters; a contestant more that lacks each
    answers: Path | None = None  # where answers are kept (answers.py); None: nowhere


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to ask, in all tasks."""

    name: str
    settings: Settings
    prompter: Prompter  # its min_confidence is 0: every answer is seen
    layout: Layout
    threshold: float | None  # less sure answers are hidden; None: nothing is
    off: frozenset[str] = frozenset()  # filters of the product that are left out
    thresholds: Sequence[float] = THRESHOLDS  # for which it is also told what they show

    @property
    def model(self) -> str:
        remote = self.settings.remote
        if remote.url:
            return remote.model or remote.url
        return self.settings.model


def line_up(variants: Mapping[str, Settings], plan: Plan) -> list[Contestant]:
    """A contestant for each variant in each layout, named "LAYOUT VARIANT".

    Raises ModelError, or FormatError for a layout that the model never saw.
    """
    contestants = []
    for variant, settings in variants.items():
        prompter = Prompter.for_settings(settings)
        threshold: float | None = prompter.min_confidence
        prompter = replace(prompter, min_confidence=0.0)
        if plan.bare:
            threshold = None
            prompter = replace(prompter, heal_tokens=False, copying=None)
        for layout in plan.layouts or prompter.format.layouts:
            in_layout = replace(prompter, layout=layout)
            in_layout.request(CursorContext("", ""), settings, "eval")  # raises FormatError
            name = f"{layout} {variant}".rstrip()
            whole = Contestant(name, settings, in_layout, layout, threshold)
            contestants.append(whole)
            for filter in plan.without:
                lacking = replace(whole, name=f"{name} -{filter}", off=frozenset({filter}))
                contestants.append(lacking)
    return contestants


@dataclass(frozen=True, slots=True)
class Guess:
    """An answer to a sample."""

    text: str
    replaced: int = 0  # characters right of the cursor
    confidence: float = 1.0
    hidden: bool = False  # by another filter than minConfidence
    shown: Mapping[float, Guess | None] = field(default_factory=dict)  # by minConfidence

    def at(self, threshold: float | None) -> Guess | None:
        """What is shown; None: nothing is."""
        if threshold is not None:
            return self.shown[threshold]
        return None if self.hidden or not self.text else self


async def ask_product(
    sample: Sample, task: Task, contestant: Contestant, engine: Answering
) -> Guess:
    """The suggestion of the whole product, even an unsure one, and what is shown of it. Raises
    EngineUnavailable."""
    settings = contestant.settings
    if task in ONE_LINE:
        settings = replace(settings, multiline="never")
    contexts = {UNLIMITED: context_of(sample, contestant, sample.path)}
    query = query_at(
        snapshot_of(sample),
        sample.path,
        contestant.prompter,
        settings,
        "eval",
        contexts=contexts,
        off=contestant.off,
    )
    if query.withheld is not None:
        return _guess(without_asking(query, query.withheld).suggestion, {})
    stream = AnswerStream(engine, query.request, query.shaper)
    try:
        await stream.finished()
    finally:
        stream.close()
    shown: dict[float, Guess | None] = {}
    for threshold in {*contestant.thresholds, contestant.threshold}:
        if threshold is not None:
            stream.shaper = replace(query.shaper, min_confidence=threshold)
            seen = _guess(shape(stream, "whole", query.request.max_tokens), {})
            shown[threshold] = None if seen.hidden else seen
    stream.shaper = query.shaper
    return _guess(shape(stream, "whole", query.request.max_tokens), shown)


def _guess(suggestion: Suggestion, shown: Mapping[float, Guess | None]) -> Guess:
    _, replaced = suggestion.replace
    return Guess(suggestion.text, replaced, suggestion.confidence, suggestion.hidden, shown)


async def ask_bare(sample: Sample, task: Task, contestant: Contestant, engine: Answering) -> Guess:
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
