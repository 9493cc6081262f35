"""`fimls eval`: how often a model writes what the author wrote, where a span was taken out of real
files.

Each sample goes the way of a request, through the engine process. Two ways to ask:
- the product: `request.complete` with the user's settings, so whatever a user gets is measured,
  post-processing and all. What minConfidence would hide counts for "exact match" and not for
  "shown". Of the settings only `multiline` is set for the tasks *line* and *column*, to "never":
  they are about the rest of one line.
- the bare model: prefix and suffix in the model's format and nothing else, without token healing or
  copying; the answer is cut at the line's end for *line* and *column*, else it is what the model
  wrote before its end token or maxTokens.

With the layout "anchored" the anchor is set as for someone who has typed the last 0 to 64 tokens of
the prefix since: with it at every cursor the prompts would nearly be those of psm.

The samples depend on the files and the seed alone, so all rows of a table and of later ones are
about the same places. The engine keeps no prompts, unless --set says so: what is computed behind a
kept part may differ by a rounding, and what is kept depends on the pace.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path, PurePosixPath
from random import Random
from typing import Any, TypeVar, get_args

from rich.console import Console
from rich.progress import Progress

from fim import CursorContext, Layout
from fim.evaluation.samples import TASKS, Sample, Task, draw
from fim.evaluation.scoring import Share, copy_baseline, is_same, parses, similarity
from lsp_server.commands.engine import ready_engine
from lsp_server.commands.errors import CommandError
from lsp_server.commands.source_files import Packages, language_of, read_packages
from lsp_server.completion.request import complete, query_at
from lsp_server.documents import Snapshot
from lsp_server.engines.interface import Engine
from lsp_server.session.prompter import CHARACTERS_PER_TOKEN, Prompter
from lsp_server.settings import Settings, from_environment, parse, variable

IN_FLIGHT = 4  # requests: while the engine answers one, the next are made ready
THRESHOLDS = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
MOST_TYPED = 64  # tokens between the anchor and the cursor
BASELINE = "copy baseline"
ONE_LINE: tuple[Task, ...] = ("line", "column")

Name = TypeVar("Name", bound=str)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked. layouts None: all that the model saw in training."""

    tasks: Sequence[Task] = TASKS
    samples: int = 300
    layouts: Sequence[Layout] | None = None
    bare: bool = False
    baseline: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to ask, in all tasks."""

    name: str
    settings: Settings
    prompter: Prompter  # hides nothing
    layout: Layout
    threshold: (
        float | None
    )  # confidence below which the product hides; None: nothing is ever hidden


@dataclass(frozen=True, slots=True)
class Guess:
    text: str
    replaced: int = 0  # characters right of the cursor
    confidence: float = 1.0
    hidden: bool = False  # whatever its confidence


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one contestant, or of the baseline, in one task."""

    task: Task
    name: str
    exact: Share
    similarity: float  # the mean
    parses: Share  # of the Python files that parse as the author wrote them
    seconds: float
    model: str | None = None  # None: the baseline
    layout: Layout | None = None
    min_confidence: float | None = None  # None: nothing is ever hidden
    by_confidence: tuple[tuple[float, Share, Share], ...] = ()  # threshold, shown, exact of those
    shown: Share | None = None
    exact_of_shown: Share | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "name": self.name,
            "model": self.model,
            "layout": self.layout,
            "samples": self.exact.count,
            "exact_match": _json(self.exact),
            "edit_similarity": self.similarity,
            "parses": _json(self.parses),
            "min_confidence": self.min_confidence,
            "shown": _json(self.shown),
            "exact_match_of_shown": _json(self.exact_of_shown),
            "by_confidence": [
                {"min_confidence": at, "shown": _json(shown), "exact_match_of_shown": _json(exact)}
                for at, shown, exact in self.by_confidence
            ],
            "seconds": round(self.seconds, 2),
        }


def with_setting(base: Settings, pair: str) -> Settings:
    """The settings with KEY=VALUE, named as in the README. Raises CommandError."""
    key, equals, text = pair.partition("=")
    if not equals:
        raise CommandError(f"{pair!r} is not KEY=VALUE, such as maxTokens=32")
    settings, problems = parse(from_environment({variable(key): text}) or {key: text}, base=base)
    if problems:
        raise CommandError(re.sub(r"; [^;]* is used instead$", "", problems[0]))
    return settings


def choose(given: str, known: tuple[Name, ...], what: str) -> list[Name]:
    """The names in a list with commas, in its order and each once. Raises CommandError."""
    names = list(dict.fromkeys(name.strip() for name in given.split(",")))
    for name in names:
        if name not in known:
            raise CommandError(f"there is no {what} {name!r}; choose from {','.join(known)}")
    return [one for name in names for one in known if one == name]


def line_up(variants: dict[str, Settings], plan: Plan) -> list[Contestant]:
    """Each variant in each layout; a variant's name stands behind the layout's.

    Raises ModelError, or FormatError for a layout that the model never saw.
    """
    found = []
    for name, settings in variants.items():
        base = Prompter.for_settings(settings)
        threshold = None if plan.bare else base.min_confidence
        prompter = replace(base, min_confidence=0.0)
        if plan.bare:
            prompter = replace(prompter, heal_tokens=False, copying=None)
        for layout in plan.layouts or base.format.layouts:
            asks = replace(prompter, layout=layout)
            asks.request(
                CursorContext("", ""), settings, "eval"
            )  # raises where the format has no such layout
            found.append(Contestant(f"{layout} {name}".rstrip(), settings, asks, layout, threshold))
    return found


async def evaluate(
    packages: Packages,
    contestants: Sequence[Contestant],
    plan: Plan,
    step: Callable[[str], None] = lambda what: None,
) -> AsyncGenerator[Row]:
    """A row for each task and contestant, each as soon as it is known; `step` is called after each
    answer.

    Raises CommandError, EngineUnavailable, OSError.
    """
    try:
        samples = {task: draw(packages, task, plan.samples, plan.seed) for task in plan.tasks}
    except ValueError as error:
        raise CommandError(f"{error} in these files; name a folder with more code") from None
    async with AsyncExitStack() as stack:
        engines = [  # a process for each model only
            await stack.enter_async_context(ready_engine(one.settings)) for one in contestants
        ]
        for task in plan.tasks:
            if plan.baseline:
                started = time.perf_counter()
                copies = [Guess(copy_baseline(s, one_line=task in ONE_LINE)) for s in samples[task]]
                yield score(task, BASELINE, samples[task], copies, time.perf_counter() - started)
            for one, engine in zip(contestants, engines, strict=True):
                ask, started, guesses = (
                    ask_bare if plan.bare else ask_product,
                    time.perf_counter(),
                    [],
                )
                answers = _in_order(partial(ask, s, task, one, engine) for s in samples[task])
                async with aclosing(answers):
                    async for guess in answers:
                        guesses.append(guess)
                        step(f"{task} {one.name}")
                yield score(
                    task, one.name, samples[task], guesses, time.perf_counter() - started, one
                )


async def _in_order(
    asks: Iterable[Callable[[], Coroutine[Any, Any, Guess]]],
) -> AsyncGenerator[Guess]:
    """The answers in the order of the questions, of which IN_FLIGHT are under way at once."""
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


def _snapshot(sample: Sample) -> Snapshot:
    language = language_of(PurePosixPath(sample.path))
    return Snapshot(
        "file:///" + sample.path, 1, language, sample.prefix + sample.suffix, len(sample.prefix)
    )


def context_of(
    sample: Sample, prompter: Prompter, settings: Settings, path: str | None
) -> CursorContext:
    """The context at the cursor, as of someone who has typed there since the anchor was set: the
    end of the prefix, as many characters as 0 to 64 tokens have, drawn by the place alone. Only the
    layout "anchored" has it in the prompt.
    """
    now = _snapshot(sample)
    typed = Random(f"{sample.path} {now.offset}").randint(0, MOST_TYPED * CHARACTERS_PER_TOKEN)
    start = max(0, now.offset - typed)
    earlier = replace(now, text=now.text[:start] + sample.suffix, offset=start)
    previous = prompter.context(earlier, settings, path) if prompter.layout == "anchored" else None
    return prompter.context(now, settings, path, previous)


async def ask_product(sample: Sample, task: Task, one: Contestant, engine: Engine) -> Guess:
    """What a user would be shown, or would be if the model were sure enough. Raises
    EngineUnavailable."""
    settings = replace(one.settings, multiline="never") if task in ONE_LINE else one.settings
    context = context_of(sample, one.prompter, settings, sample.path)
    query = query_at(
        _snapshot(sample), sample.path, one.prompter, settings, "eval", context=context
    )
    done = await complete(engine, query)
    found = done.suggestion
    return Guess(found.text, found.replace[1], found.confidence, found.hidden)


async def ask_bare(sample: Sample, task: Task, one: Contestant, engine: Engine) -> Guess:
    """What the model writes between prefix and suffix. Raises EngineUnavailable."""
    settings, one_line = one.settings, task in ONE_LINE
    request, _ = one.prompter.request(
        context_of(sample, one.prompter, settings, None), settings, "eval"
    )
    text = ""
    async with aclosing(engine.complete(request)) as pieces:
        async for piece in pieces:
            text += piece.text
            if one_line and "\n" in text:
                break
    return Guess(text.partition("\n")[0] if one_line else text)


def score(
    task: Task,
    name: str,
    samples: Sequence[Sample],
    guesses: Sequence[Guess],
    seconds: float,
    one: Contestant | None = None,
) -> Row:
    """The row of one contestant's guesses, one for each sample; None: the baseline's."""
    pairs = list(zip(samples, guesses, strict=True))
    right = [is_same(s, g.text, g.replaced) for s, g in pairs]
    parsed = [
        hit or parses(s.prefix + g.text + s.suffix[g.replaced :])
        for (s, g), hit in zip(pairs, right, strict=True)
        if s.path.endswith((".py", ".pyi")) and _original_parses(s.prefix + s.middle + s.suffix)
    ]
    row = Row(
        task=task,
        name=name,
        exact=Share(sum(right), len(right)),
        similarity=sum(similarity(s, g.text, g.replaced) for s, g in pairs) / len(pairs),
        parses=Share(sum(parsed), len(parsed)),
        seconds=seconds,
        model=_model(one.settings) if one else None,
        layout=one.layout if one else None,
    )
    if one is None or one.threshold is None:
        return row

    def shown_at(threshold: float) -> tuple[float, Share, Share]:
        hits = [
            hit
            for g, hit in zip(guesses, right, strict=True)
            if not g.hidden and g.confidence >= threshold
        ]
        return threshold, Share(len(hits), len(right)), Share(sum(hits), len(hits))

    _, shown, exact = shown_at(one.threshold)
    return replace(
        row,
        min_confidence=one.threshold,
        shown=shown,
        exact_of_shown=exact,
        by_confidence=tuple(map(shown_at, THRESHOLDS)),
    )


_original_parses = cache(parses)


def _model(settings: Settings) -> str:
    return (settings.remote.model or settings.remote.url) if settings.remote.url else settings.model


async def show(
    where: Path | None,
    settings: Settings,
    *,
    split: str,
    tasks: str,
    layouts: str | None,
    samples: int,
    seed: int,
    bare: bool,
    baseline: bool,
    pairs: Sequence[str],
    versus: Sequence[str],
    as_json: bool,
    verbose: bool,
) -> None:
    """The command, its arguments as they were typed. Prints rows as they come, or JSON at the end;
    on a terminal's stderr a progress bar.

    Raises CommandError, ModelError, FormatError, EngineUnavailable, OSError.
    """
    chosen_layouts = choose(layouts, get_args(Layout), "layout") if layouts else None
    plan = Plan(choose(tasks, TASKS, "task"), samples, chosen_layouts, bare, baseline, seed)
    settings = replace(settings, engine=replace(settings.engine, cache_memory=0, cache_disk=0))
    for pair in pairs:
        settings = with_setting(settings, pair)
    contestants = line_up(
        {"": settings} | {pair: with_setting(settings, pair) for pair in versus}, plan
    )
    packages = read_packages(where, split)
    count = sum(map(len, packages.values()))
    way = "the bare model" if bare else "the whole product"

    def say(text: str) -> None:
        if not as_json:
            print(text, flush=True)

    say(
        f"{_model(settings)}: {way}; {samples} samples a task from {count} files of "
        f"{len(packages)} packages, "
        f"seed {seed}\n\n{_heading(contestants)}"
    )
    rows: list[Row] = []
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("starting", total=len(plan.tasks) * len(contestants) * samples)

        def step(what: str) -> None:
            progress.update(bar, advance=1, description=what)

        async with aclosing(evaluate(packages, contestants, plan, step)) as found:
            async for row in found:
                rows.append(row)
                progress.stop()  # or the bar would be drawn over the table
                say(_line(row, contestants))
                progress.start()
    if verbose and not bare:
        say("\n" + "\n".join(_gate(row, contestants) for row in rows if row.by_confidence))
    if as_json:
        head = {
            "way": way,
            "set": list(pairs),
            "seed": seed,
            "files": count,
            "packages": sorted(packages),
        }
        print(json.dumps(head | {"rows": [row.to_json() for row in rows]}, ensure_ascii=False))


def _start(contestants: Sequence[Contestant], task: str, name: str) -> str:
    """The first two columns."""
    return f"{task:13}{name:{max(len(n) for n in (BASELINE, *(one.name for one in contestants)))}}"


def _heading(contestants: Sequence[Contestant]) -> str:
    return (
        f"{_start(contestants, 'task', '')}{'exact match':>20}{'similarity':>12}{'parses':>8}"
        + ("" if contestants[0].threshold is None else f"{'shown':>8}{'exact of shown':>20}")
    )


def _line(row: Row, contestants: Sequence[Contestant]) -> str:
    start = _start(contestants, row.task, row.name)
    return (
        f"{start}{_with_interval(row.exact):>20}{row.similarity:12.3f}{_percent(row.parses):>8}"
        f"{_percent(row.shown):>8}{_with_interval(row.exact_of_shown):>20}".rstrip()
    )


def _gate(row: Row, contestants: Sequence[Contestant]) -> str:
    """What minConfidence would show, and how much of that is right."""
    start = _start(contestants, row.task, row.name)
    return "\n".join(
        f"{start}  minConfidence {at:.1f}: {_percent(shown):>6} shown, {_percent(exact):>6} of "
        "them exact"
        for at, shown, exact in row.by_confidence
    )


def _percent(share: Share | None) -> str:
    return "" if share is None else "-" if share.value is None else f"{100 * share.value:.1f}%"


def _with_interval(share: Share | None) -> str:
    if share is None or share.interval is None:
        return _percent(share)
    low, high = share.interval
    return f"{_percent(share)} [{100 * low:4.1f}, {100 * high:4.1f}]"


def _json(share: Share | None) -> dict[str, Any] | None:
    if share is None:
        return None
    return {"share": share.value, "interval": share.interval, "hits": share.hits, "of": share.count}
