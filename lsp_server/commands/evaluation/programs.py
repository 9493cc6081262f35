"""`fimls eval --execute FILE`: tasks with tests, in the form of HumanEval and of its infilling.

The file has a JSON object a line with prompt, test and entry_point; suffix is what stands after the
gap (HumanEval-Infilling, Bavarian et al. 2022, arXiv 2207.14255), and empty or absent in HumanEval
(Chen et al. 2021, arXiv 2107.03374). A task is passed when the program of prompt, answer, suffix
and test runs to its end in the sandbox. One greedy answer to each task gives pass@1.

- The bare model gets prompt and suffix as they are, and up to 512 tokens for its answer, unless
  --set maxTokens says otherwise. Without a suffix it continues the prompt, less the blanks at its
  end, from left to right, and its answer ends with the function; as in BigCode's evaluation
  harness, whose figures the model cards have.
- The whole product gets a document and a cursor. Where whole lines are missing, the cursor stands
  behind the first one's indentation in a line of its own, where an editor would have put it. An
  answer counts even if minConfidence would hide it; "shown" counts those that a user sees.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fim import CursorContext
from fim.evaluation.samples import Sample
from fim.evaluation.scoring import Share
from lsp_server.commands.engine import ready_engine
from lsp_server.commands.errors import CommandError
from lsp_server.commands.evaluation.contestants import (
    Contestant,
    Guess,
    ask_bare,
    ask_product,
    in_order,
)
from lsp_server.commands.evaluation.rows import percent, share_to_json, with_interval
from lsp_server.commands.evaluation.sandbox import OUT_OF_TIME, Verdict, execute
from lsp_server.commands.source_files import lines_of
from lsp_server.engines.interface import Engine

BARE_TOKENS = 512
# What follows a function at the end of a file, as in BigCode's evaluation harness.
ENDS = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```")


@dataclass(frozen=True, slots=True)
class Problem:
    """A program with a gap, and a test that raises where what fills the gap is wrong."""

    name: str
    prompt: str
    suffix: str
    test: str
    entry_point: str
    solution: str  # the author's; "" where the file has none

    def program(self, guess: Guess) -> str:
        """The whole program with a guess in the gap."""
        rest = self.suffix[guess.replaced :]
        return f"{self.prompt}{guess.text}{rest}\n{self.test}\ncheck({self.entry_point})\n"

    def in_editor(self) -> Problem:
        """The problem with the cursor where an editor would have it."""
        first = self.solution.partition("\n")[0]
        if not self.prompt.endswith("\n") or not self.solution.endswith("\n"):
            return self
        indentation = first[: len(first) - len(first.lstrip())]
        suffix = "\n" + self.suffix if self.suffix else ""
        return replace(self, prompt=self.prompt + indentation, suffix=suffix)

    def left_to_right(self) -> Problem:
        """The problem without a suffix, as a model continues it."""
        return replace(self, prompt=self.prompt.rstrip())


def read_problems(path: Path) -> list[Problem]:
    """The tasks of a .jsonl file, which may be compressed (.jsonl.gz). Raises CommandError,
    OSError."""
    problems = [_problem(line, where) for where, line in lines_of(path)]
    if not problems:
        raise CommandError(f"{path} is empty; name a file with tasks, such as HumanEval.jsonl")
    return problems


def _problem(line: str, where: str) -> Problem:
    """Raises CommandError."""
    row: Any = None
    with suppress(ValueError, RecursionError):
        row = json.loads(line)
    if not isinstance(row, dict):
        raise CommandError(f"{where} is no JSON object; mend or remove it")
    optional = {"task_id": where.partition(" of ")[0], "suffix": "", "canonical_solution": ""}
    values = {**optional, **row}
    for key in ("prompt", "test", "entry_point", *optional):
        if key not in values:
            raise CommandError(f"{where} lacks {key!r}; a task has prompt, test and entry_point")
        if not isinstance(values[key], str):
            raise CommandError(f"{where}: {key} is not a string; mend or remove the line")
    if not values["entry_point"].isidentifier():
        raise CommandError(
            f"{where}: entry_point is {values['entry_point']!r}, which names no function"
        )
    return Problem(
        name=values["task_id"],
        prompt=values["prompt"],
        suffix=values["suffix"],
        test=values["test"],
        entry_point=values["entry_point"],
        solution=values["canonical_solution"],
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """A guess at a problem, and what became of its program."""

    problem: Problem
    guess: Guess
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class ProgramRow:
    """The answers of one contestant."""

    contestant: Contestant
    name: str
    answers: Sequence[Answer]
    seconds: float

    @property
    def passed(self) -> Share:
        return Share(sum(answer.verdict.passed for answer in self.answers), len(self.answers))

    @property
    def shown(self) -> Share | None:
        """None where nothing is ever hidden."""
        if self.contestant.threshold is None:
            return None
        return Share(len(self._shown), len(self.answers))

    @property
    def passed_of_shown(self) -> Share | None:
        if self.contestant.threshold is None:
            return None
        return Share(sum(answer.verdict.passed for answer in self._shown), len(self._shown))

    @property
    def out_of_time(self) -> int:
        return sum(answer.verdict.reason == OUT_OF_TIME for answer in self.answers)

    @property
    def _shown(self) -> list[Answer]:
        threshold = self.contestant.threshold or 0.0
        shown = []
        for answer in self.answers:
            guess = answer.guess
            if guess.text and not guess.hidden and guess.confidence >= threshold:
                shown.append(answer)
        return shown

    def to_json(self) -> dict[str, Any]:
        answers = []
        for answer in self.answers:
            verdict = answer.verdict
            told = {"passed": verdict.passed, "reason": verdict.reason}
            answers.append({"task_id": answer.problem.name, "text": answer.guess.text, **told})
        return {
            "name": self.name,
            "model": self.contestant.model,
            "tasks": len(self.answers),
            "pass_at_1": share_to_json(self.passed),
            "shown": share_to_json(self.shown),
            "passed_of_shown": share_to_json(self.passed_of_shown),
            "out_of_time": self.out_of_time,
            "seconds": round(self.seconds, 2),
            "answers": answers,
        }

    def line(self, width: int) -> str:
        line = (
            f"{self.name:{width}}{with_interval(self.passed):>22}{self.out_of_time:>13}"
            f"{percent(self.shown):>9}{with_interval(self.passed_of_shown):>22}"
        )
        return line.rstrip()


def heading(width: int) -> str:
    return f"{'':{width}}{'pass@1':>22}{'out of time':>13}{'shown':>9}{'passed of shown':>22}"


async def run_problems(
    problems: Sequence[Problem],
    contestants: Sequence[Contestant],
    bare: bool,
    step: Callable[[str], None] = lambda description: None,
) -> AsyncGenerator[ProgramRow]:
    """Yields a row for each contestant; calls `step` after each answer. Raises EngineUnavailable,
    OSError."""
    for contestant in contestants:
        started = time.perf_counter()
        posed = [_posed(problem, bare=bare) for problem in problems]
        answers: list[Answer] = []
        async with ready_engine(contestant.settings) as engine:
            asks = []
            for number, problem in enumerate(posed):
                asks.append(partial(_ask, problem, f"task_{number}.py", contestant, engine, bare))
            async with aclosing(in_order(asks)) as guesses:
                async for guess in guesses:
                    problem = posed[len(answers)]
                    verdict = await asyncio.to_thread(execute, problem.program(guess))
                    answers.append(Answer(problem, guess, verdict))
                    step(contestant.name)
        name = contestant.name
        yield ProgramRow(contestant, name, answers, time.perf_counter() - started)


def _posed(problem: Problem, *, bare: bool) -> Problem:
    if not bare:
        return problem.in_editor()
    return problem if problem.suffix else problem.left_to_right()


async def _ask(
    problem: Problem, path: str, contestant: Contestant, engine: Engine, bare: bool
) -> Guess:
    """Raises EngineUnavailable."""
    if bare and not problem.suffix:
        return await _continue(problem, contestant, engine)
    ask = ask_bare if bare else ask_product
    sample = Sample("", path, problem.prompt, problem.solution, problem.suffix)
    return await ask(sample, "multi-line", contestant, engine)


async def _continue(problem: Problem, contestant: Contestant, engine: Engine) -> Guess:
    """The function that the model writes behind the prompt. Raises EngineUnavailable."""
    prompter = contestant.prompter
    request, _ = prompter.request(CursorContext("", ""), contestant.settings, "eval")
    prompt: tuple[int, ...] | str = problem.prompt
    if prompter.sentinels is not None:
        begin = prompter.sentinels.begin
        first = () if begin is None else (begin,)
        prompt = (*first, *prompter.encoder.encode(problem.prompt))
    request = replace(request, prompt=prompt)
    text = ""
    async with aclosing(engine.complete(request)) as pieces:
        async for piece in pieces:
            text += piece.text
            ends = [end for mark in ENDS if (end := text.find(mark)) >= 0]
            if ends:
                return Guess(text[: min(ends)])
    return Guess(text)
