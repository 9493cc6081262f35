"""What is shown at places in held-out files, by fimls and by llama.vim's recipe on the same
weights: characters that the author wrote less those that he did not, of a request.

    python -m benchmarks.suggestions --model FILE.gguf --answers FILE.jsonl [--samples 200]
    [--without NAME,... | --without each] [--set KEY=VALUE]

The model's answers are kept in the file; a second run asks for nothing. Both sides run on our
engine, without limits of time but for the recipe's own, counted as --per-token of each token. The
product is asked as in an editor: one line or a block, as it decides.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from benchmarks.figures import machine, table
from benchmarks.llama_vim import answer_to, question_at, request_of, shown
from benchmarks.plots import calibration
from fim import FILTERS
from fim.evaluation.samples import Sample, Task, draw
from fim.evaluation.scoring import Share, calibration_error, is_right, reliability
from lsp_server.commands.errors import CommandError
from lsp_server.commands.evaluation.answers import AnswerFile, KnownAnswers
from lsp_server.commands.evaluation.contestants import (
    Contestant,
    Guess,
    Plan,
    ask_product,
    in_order,
    line_up,
)
from lsp_server.commands.evaluation.evaluate import variants_of
from lsp_server.commands.evaluation.rows import Harm, harm, percent
from lsp_server.commands.source_files import read_packages
from lsp_server.engines.interface import Answering
from lsp_server.session.prompter import Prompter
from lsp_server.settings import Settings

TASKS: tuple[Task, ...] = ("column", "multi-line", "line")
HEADINGS = ["", "shown", "right of shown", "right", "wrong", "net", "broken", "lines", "brackets"]

MOST_TOKENS = 96  # of the recipe's answers: more than it waits for

Ask = Callable[[Sample, Task], Coroutine[Any, Any, Guess]]


Pairs = list[tuple[float, bool]]
"""How sure the model was of each guess, and whether that was right."""


def product(contestant: Contestant, engine: Answering, whole: Pairs, shown: Pairs) -> Ask:
    """whole, shown: get the sureness of each answer, and of what is shown of it."""

    async def ask(sample: Sample, task: Task) -> Guess:
        guess = await ask_product(sample, "multi-line", contestant, engine)
        seen = guess.at(contestant.threshold)
        for each, pairs in ((guess, whole), (seen, shown)):
            if each is not None and each.text:
                pairs.append((each.confidence, is_right(sample, each.text, each.replaced)))
        return seen or Guess("", hidden=True)

    return ask


def recipe(prompter: Prompter, engine: Answering, per_token_s: float) -> Ask:
    async def ask(sample: Sample, task: Task) -> Guess:
        text = sample.prefix + sample.suffix
        cursor = len(sample.prefix)
        question = question_at(text, cursor)
        if question is None:
            return Guess("", hidden=True)
        request = replace(request_of(question, prompter), max_tokens=MOST_TOKENS)
        content = await answer_to(engine, question, request, per_token_s)
        found = shown(content, text, cursor)
        return Guess(found, hidden=not found)

    return ask


def row(name: str, samples: Sequence[Sample], guesses: Sequence[Guess]) -> list[str]:
    found: Harm = harm(samples, guesses, None)
    pairs = zip(samples, guesses, strict=True)
    right = [is_right(s, g.text, g.replaced) for s, g in pairs if g.text and not g.hidden]
    return [
        name,
        percent(Share(len(right), len(samples))),
        percent(Share(sum(right), len(right))),
        f"{found.right / len(samples):.1f}",
        f"{found.wrong / len(samples):.1f}",
        f"{found.net:.1f}",
        percent(found.broken),
        percent(found.doubled_lines),
        percent(found.doubled_brackets),
    ]


async def compare(options: argparse.Namespace) -> tuple[list[list[str]], dict[str, Pairs]]:
    """The rows of the table; the sureness of whole answers and of what is shown."""
    packages = read_packages(options.where)
    settings = variants_of(Settings(model=options.model), options.set or [], [])[""]
    without = options.without.split(",") if options.without else []
    if without == ["each"]:
        without = list(FILTERS)
    layouts = (options.layout,)
    plan = Plan(layouts=layouts, without=without)
    contestants = [replace(each, thresholds=()) for each in line_up({"": settings}, plan)]
    file = AnswerFile(options.answers)
    rows = []
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(KnownAnswers(file, settings))
        sides: dict[str, Ask] = {}
        sure: dict[str, Pairs] = {}
        for contestant in contestants:
            whole = sure.setdefault(f"{contestant.name}, whole answers", [])
            seen = sure.setdefault(f"{contestant.name}, what is shown", [])
            sides[f"ours, {contestant.name}"] = product(contestant, engine, whole, seen)
        if not options.ours_only:
            prompter = contestants[0].prompter
            sides["llama.vim's recipe"] = recipe(prompter, engine, options.per_token)
        together: dict[str, list[Guess]] = {name: [] for name in sides}
        everything: list[Sample] = []
        for task in options.task.split(","):
            samples = draw(packages, task, options.samples, options.seed)
            everything += samples
            for name, ask in sides.items():
                asks = [partial(ask, sample, task) for sample in samples]
                guesses = [guess async for guess in in_order(asks)]
                together[name] += guesses
                rows.append(row(f"{task}: {name}", samples, guesses))
        for name, guesses in together.items():
            rows.append(row(f"all: {name}", everything, guesses))
    return rows, sure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--where", type=Path, help="without: the held-out packages")
    parser.add_argument("--model", required=True, help="its tokens must be Qwen2.5-Coder's")
    parser.add_argument("--answers", type=Path, required=True, help="where they are kept")
    parser.add_argument("--task", default=",".join(TASKS), help=", ".join(get_args(Task)))
    parser.add_argument("--samples", type=int, default=200, help="of each task")
    parser.add_argument("--layout", default="anchored")
    parser.add_argument("--without", help="filters: a row without each; or 'each'")
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--per-token", type=float, default=1 / 45, help="seconds, of the recipe")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="a setting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--svg", type=Path, help="where a plot of the calibration goes")
    options = parser.parse_args()
    try:
        rows, sure = asyncio.run(compare(options))
    except (CommandError, ValueError) as error:
        raise SystemExit(f"suggestions: {error}") from None
    print(f"\n{machine()}; {time.strftime('%Y-%m-%d')}; {options.model}; seed {options.seed}")
    print(table(HEADINGS, rows))
    bins = {name: reliability(pairs) for name, pairs in sure.items() if pairs}
    for name, its in bins.items():
        print(f"expected calibration error, {name}: {calibration_error(its):.3f}")
    if options.svg:
        options.svg.write_text(calibration(bins))


if __name__ == "__main__":
    main()
