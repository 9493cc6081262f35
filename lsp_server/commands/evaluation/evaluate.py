"""`fimls eval`: how often a model writes the text that was taken out of a source file.

Each sample is a request to the engine process, made in one of two ways:
- The whole product: `query.ask_engine` with the user's settings, so that everything that a user
  gets is measured, post-processing too. A suggestion that minConfidence would hide counts for
  "exact match" but not for "shown". One setting is fixed: for the tasks *line* and *column*, which
  are about the rest of one line, `multiline` is "never".
- The bare model: prefix and suffix in the model's format, without token healing or copying. For
  *line* and *column* the answer ends with its line, for other tasks at the model's end token or
  after maxTokens.

With the layout "anchored" the anchor is 0 to 64 tokens before the cursor, as if the user had
typed these since. With the anchor at the cursor the prompts would be nearly those of psm.

The samples depend on the files and the seed alone, so rows can be compared, also across runs. The
engine caches no prompts, unless --set says so: results after a cached prefix may differ by a
rounding, and what is cached depends on timing.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

from fim import FILTERS, LAYOUTS
from fim.characters import escaped
from fim.evaluation.samples import TASKS, Sample, Task, draw
from fim.evaluation.scoring import copy_baseline
from lsp_server.commands.engine import ready_engine
from lsp_server.commands.errors import CommandError
from lsp_server.commands.evaluation.answers import AnswerFile, KnownAnswers
from lsp_server.commands.evaluation.contestants import (
    ONE_LINE,
    Contestant,
    Guess,
    Plan,
    ask_bare,
    ask_product,
    in_order,
    line_up,
)
from lsp_server.commands.evaluation.programs import (
    BARE_TOKENS,
    heading,
    read_problems,
    run_problems,
)
from lsp_server.commands.evaluation.rows import Row, Table, score
from lsp_server.commands.evaluation.sandbox import execute
from lsp_server.commands.source_files import Packages, read_packages
from lsp_server.engines.interface import Answering
from lsp_server.settings import Settings, from_environment, parse, variable

Name = TypeVar("Name", bound=str)
Result = TypeVar("Result")
Step = Callable[[str], None]  # is told what has been answered


async def print_evaluation(
    where: Path | None,
    settings: Settings,
    plan: Plan,
    *,
    tasks: str,
    layouts: str | None,
    without: str | None,
    split: str,
    set_pairs: Sequence[str],
    versus: Sequence[str],
    verbose: bool,
    as_json: bool,
) -> None:
    """The command. Prints each row as soon as it is known, or JSON at the end.

    `tasks`, `layouts` and `without` are names with commas between them, and replace those of
    `plan`; `without` may be "each". Raises
    CommandError, ModelError, FormatError, EngineUnavailable, OSError.
    """
    if layouts:
        plan = replace(plan, layouts=choose(layouts, LAYOUTS, "layout"))
    if without:
        if plan.bare:
            raise CommandError("the bare model has no filters; leave out --bare or --without")
        chosen = list(FILTERS) if without == "each" else choose(without, list(FILTERS), "filter")
        plan = replace(plan, without=chosen)
    if plan.file is not None:
        if where is not None:
            raise CommandError(f"--execute has its own file; leave {where} out")
        if plan.answers is not None:
            raise CommandError("--answers is for places in source files; leave out --execute")
        if plan.bare:
            settings = replace(settings, max_tokens=BARE_TOKENS)
        variants = variants_of(settings, set_pairs, versus)
        await print_programs(plan.file, variants, plan, set_pairs, as_json=as_json)
        return
    plan = replace(plan, tasks=choose(tasks, TASKS, "task"))
    contestants = line_up(variants_of(settings, set_pairs, versus), plan)
    packages = read_packages(where, split)
    await print_samples(packages, contestants, plan, set_pairs, verbose=verbose, as_json=as_json)


async def print_samples(
    packages: Packages,
    contestants: Sequence[Contestant],
    plan: Plan,
    set_pairs: Sequence[str],
    *,
    verbose: bool,
    as_json: bool,
) -> None:
    """Spans taken out of files. Raises CommandError, EngineUnavailable, OSError."""
    way = "the bare model" if plan.bare else "the whole product"
    count = sum(map(len, packages.values()))
    table = Table(contestants)

    def say(text: str) -> None:
        if not as_json:
            print(escaped(text), flush=True)

    say(
        f"{contestants[0].model}: {way}; {plan.samples} samples a task from {count} files of "
        f"{len(packages)} packages, seed {plan.seed}\n\n{table.heading()}"
    )
    rows = []
    total = len(plan.tasks) * len(contestants) * plan.samples
    make = partial(evaluate, packages, contestants, plan)
    async with aclosing(with_progress(make, total)) as results:
        async for row in results:
            rows.append(row)
            say(table.line(row))
    if verbose and not plan.bare:
        say("")
        for row in rows:
            for line in table.confidence_lines(row):
                say(line)
    if as_json:
        answer = {
            "way": way,
            "set": list(set_pairs),
            "seed": plan.seed,
            "files": count,
            "packages": sorted(packages),
            "rows": [row.to_json() for row in rows],
        }
        print(json.dumps(answer))


async def print_programs(
    file: Path,
    variants: Mapping[str, Settings],
    plan: Plan,
    set_pairs: Sequence[str],
    *,
    as_json: bool,
) -> None:
    """The tasks of a file, judged by their tests. Raises CommandError, ModelError, FormatError,
    EngineUnavailable, OSError."""
    problems = read_problems(file)
    contestants = line_up(variants, plan)
    if plan.bare and not any(problem.suffix for problem in problems):
        contestants = in_one_layout(contestants)
    way = "the bare model" if plan.bare else "the whole product"
    nothing = await asyncio.to_thread(execute, "")
    if not nothing.passed:
        raise CommandError(f"no program can be run here in a sandbox ({nothing.reason})")
    lacks = nothing.lacks
    width = max(len(contestant.name) for contestant in contestants)
    if not as_json:
        without = f", without {'; '.join(lacks)}" if lacks else ""
        print(
            f"{escaped(contestants[0].model)}: {way}; {len(problems)} tasks of "
            f"{escaped(file.name)}; the programs "
            f"run in a sandbox{without}\n\n{heading(width)}",
            flush=True,
        )
    rows = []
    make = partial(run_problems, problems, contestants, plan.bare)
    async with aclosing(with_progress(make, len(problems) * len(contestants))) as results:
        async for row in results:
            rows.append(row.to_json())
            if not as_json:
                print(row.line(width), flush=True)
    if as_json:
        answer = {"way": way, "set": list(set_pairs), "file": str(file), "sandbox_lacks": lacks}
        print(json.dumps({**answer, "rows": rows}))


def in_one_layout(contestants: Sequence[Contestant]) -> list[Contestant]:
    """The first contestant of each variant, for tasks in which no layout plays a part; named by
    the variant alone."""
    first: dict[str, Contestant] = {}
    for contestant in contestants:
        variant = contestant.name.removeprefix(contestant.layout).strip()
        first.setdefault(variant, replace(contestant, name=variant or "left to right"))
    return list(first.values())


def variants_of(
    settings: Settings, set_pairs: Sequence[str], versus: Sequence[str]
) -> dict[str, Settings]:
    """The settings to compare, by the pair in which they differ. Raises CommandError."""
    settings = replace(settings, engine=replace(settings.engine, cache_memory=0, cache_disk=0))
    for pair in set_pairs:
        settings = with_setting(settings, pair)
    variants = {"": settings}
    for pair in versus:
        variants[pair] = with_setting(settings, pair)
    return variants


def choose(given: str, known: Sequence[Name], what: str) -> list[Name]:
    """The names in a list with commas, in its order and each once. Raises CommandError."""
    chosen: list[Name] = []
    for name in map(str.strip, given.split(",")):
        if name not in known:
            raise CommandError(f"there is no {what} {name!r}; choose from {','.join(known)}")
        choice = known[known.index(name)]  # `name`, typed as one of the known
        if choice not in chosen:
            chosen.append(choice)
    return chosen


def with_setting(base: Settings, pair: str) -> Settings:
    """The settings with KEY=VALUE, named as in the README. Raises CommandError."""
    key, equals, text = pair.partition("=")
    if not equals:
        raise CommandError(f"{pair!r} is not KEY=VALUE, such as maxTokens=32")
    # A key that is no setting has no variable either; `parse` then says which name is like it.
    raw = from_environment({variable(key): text}) or {key: text}
    settings, problems = parse(raw, base=base)
    if problems:
        raise CommandError(re.sub(r"; [^;]* is used instead$", "", problems[0]))
    return settings


async def with_progress(
    make: Callable[[Step], AsyncGenerator[Result]], total: int
) -> AsyncGenerator[Result]:
    """The rows that are made, in `total` steps; shows a progress bar between them if stderr is a
    terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("starting", total=total)

        def step(description: str) -> None:
            progress.update(bar, advance=1, description=description)

        async with aclosing(make(step)) as rows:
            async for row in rows:
                progress.stop()  # else the bar would be drawn over the table
                yield row
                progress.start()


async def evaluate(
    packages: Packages,
    contestants: Sequence[Contestant],
    plan: Plan,
    step: Step = lambda description: None,
) -> AsyncGenerator[Row]:
    """Yields a row for each task and contestant; calls `step` after each answer. Raises
    CommandError, EngineUnavailable, OSError."""
    samples: dict[Task, list[Sample]] = {}
    for task in plan.tasks:
        try:
            samples[task] = draw(packages, task, plan.samples, plan.seed)
        except ValueError as error:
            raise CommandError(f"{error} in these files; name a folder with more code") from None
    async with AsyncExitStack() as stack:
        file = None if plan.answers is None else AnswerFile(plan.answers)
        engines: list[Answering] = []  # contestants with the same model share a process
        for contestant in contestants:
            if file is not None:
                known = KnownAnswers(file, contestant.settings)
                engines.append(await stack.enter_async_context(known))
            else:
                engines.append(await stack.enter_async_context(ready_engine(contestant.settings)))
        for task in plan.tasks:
            if plan.baseline:
                started = time.perf_counter()
                one_line = task in ONE_LINE
                copies = []
                for sample in samples[task]:
                    copies.append(Guess(copy_baseline(sample, one_line=one_line)))
                yield score(task, samples[task], copies, time.perf_counter() - started, None)
            for contestant, engine in zip(contestants, engines, strict=True):
                started = time.perf_counter()
                ask = ask_bare if plan.bare else ask_product
                asks = []
                for sample in samples[task]:
                    asks.append(partial(ask, sample, task, contestant, engine))
                guesses = []
                async with aclosing(in_order(asks)) as answers:
                    async for guess in answers:
                        guesses.append(guess)
                        step(f"{task} {contestant.name}")
                seconds = time.perf_counter() - started
                yield score(task, samples[task], guesses, seconds, contestant)
