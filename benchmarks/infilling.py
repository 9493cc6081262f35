"""HumanEval-Infilling's single lines through the whole product: a line of a function is taken out,
the real server is asked at its indentation, and the function's test says whether the text is right.

    python -m benchmarks.infilling [--model bundled] [--tasks 100] [--from HumanEval.jsonl] [--json]

Bavarian et al. 2022 (arXiv 2207.14255) give the task. Without --from the functions are those of
benchmarks/infilling_tasks.py, which everybody has; --from names a .jsonl file whose rows have
prompt, canonical_solution, test and entry_point, as HumanEval's do. The gaps are drawn from all
lines that are not blank, by the seed alone.

The settings are the defaults, but the server waits for the whole answer, so that a figure is one of
quality and not of the machine's speed; --timed leaves the time budget as it is. "passed": the
program passes its test after the suggestion, or its first line alone, was accepted (editors can
accept either). "passed, whole": after all of the suggestion. "exact": the first line is the
author's. Nothing shown is not passed. Each program runs in the sandbox of `fimls eval --execute`.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.editor import Editor, EditorError, Home, position, window
from benchmarks.figures import machine
from benchmarks.targets import parse_trace
from fim.evaluation.scoring import Share
from lsp_server.commands.errors import CommandError
from lsp_server.commands.evaluation.programs import read_problems
from lsp_server.commands.evaluation.sandbox import execute

OWN = Path(__file__).with_name("infilling_tasks.py")
CHECK = "check_"  # a function of that name tests another one in OWN
ANSWER_S = 120.0
UNHURRIED = {"timeBudget": 1000 * ANSWER_S, "patience": ANSWER_S}


@dataclass(frozen=True, slots=True)
class Task:
    """A function: its head, its body, and a test that raises where the body is wrong."""

    name: str
    prompt: str
    solution: str
    test: str


@dataclass(frozen=True, slots=True)
class Gap:
    """A line that was taken out of a task's solution. prefix ends with the line's indentation."""

    task: Task
    prefix: str
    line: str
    suffix: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server suggested in a gap, and whether that was right."""

    task: str
    wanted: str
    text: str  # "" where nothing was shown
    exact: bool
    first: bool  # the program passes with the first line of the text alone
    whole: bool
    confidence: float
    ms: float

    @property
    def passed(self) -> bool:
        return self.first or self.whole


def read_tasks(path: Path) -> list[Task]:
    """The rows of a file in HumanEval's form. Raises OSError, CommandError."""
    tasks = []
    for problem in read_problems(path):
        name = problem.entry_point
        test = f"{problem.test}\ncheck({name})\n"
        tasks.append(Task(name, problem.prompt, problem.solution, test))
    return tasks


def own_tasks(path: Path = OWN) -> list[Task]:
    """The functions of a Python file that has a function check_NAME for each function NAME."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    functions = {}
    imports = ""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            functions[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports += "".join(lines[node.lineno - 1 : node.end_lineno])
    tasks = []
    for name, function in functions.items():
        if name.startswith(CHECK):
            continue
        head_end = function.body[0].end_lineno or 0  # of the docstring
        head = "".join(lines[function.lineno - 1 : head_end])
        body = "".join(lines[head_end : function.end_lineno])
        check = functions[CHECK + name]
        test = "".join(lines[check.lineno - 1 : check.end_lineno])
        tasks.append(Task(name, f"{imports}\n\n{head}", body, f"{test}\n{CHECK}{name}()\n"))
    return tasks


def gaps(tasks: Sequence[Task]) -> list[Gap]:
    """Every line of every solution that is not blank."""
    found = []
    for task in tasks:
        lines = task.solution.splitlines(keepends=True)
        for number, whole in enumerate(lines):
            line = whole.strip()
            if not line:
                continue
            indentation = whole[: len(whole) - len(whole.lstrip())]
            before = task.prompt + "".join(lines[:number]) + indentation
            after = "".join(lines[number + 1 :])
            ending = "\n" if whole.endswith("\n") else ""
            found.append(Gap(task, before, line, ending + after))
    return found


def draw(found: Sequence[Gap], count: int, seed: int) -> list[Gap]:
    """`count` of the gaps, the same for the same gaps and seed; all of them if there are fewer."""
    return random.Random(seed).sample(found, min(count, len(found)))


def accepted(gap: Gap, text: str, start: int, end: int) -> str:
    """The program with a text in place of what stands between two offsets of prefix + suffix."""
    document = gap.prefix + gap.suffix
    return f"{document[:start]}{text}{document[end:]}\n{gap.task.test}"


async def ask(editor: Editor, home: Home, gap: Gap, path: Path) -> Answer:
    """The server's suggestion in a gap, and whether it is right. Raises EditorError."""
    document = gap.prefix + gap.suffix
    editor.put(path, "python", document)
    home.new_lines()
    started = time.perf_counter()
    _, coming = editor.ask(path, len(gap.prefix))
    result = await asyncio.wait_for(coming, ANSWER_S)
    ms = (time.perf_counter() - started) * 1000
    editor.forget(path)
    confidence = 0.0
    for trace in filter(None, map(parse_trace, home.new_lines())):
        confidence = trace["confidence"] or 0.0
    if not result["items"]:
        return Answer(gap.task.name, gap.line, "", False, False, False, confidence, ms)
    item = result["items"][0]
    start, end = (offset_at(document, item["range"][edge]) for edge in ("start", "end"))
    text = item["insertText"]
    first = text.partition("\n")[0]
    run = asyncio.to_thread
    whole_passes = (await run(execute, accepted(gap, text, start, end))).passed
    first_passes = whole_passes
    if first != text:
        first_passes = (await run(execute, accepted(gap, first, start, end))).passed
    exact = accepted(gap, first.rstrip(), start, end) == accepted(
        gap, gap.line, len(gap.prefix), len(gap.prefix)
    )
    return Answer(gap.task.name, gap.line, text, exact, first_passes, whole_passes, confidence, ms)


def offset_at(text: str, place: dict[str, int]) -> int:
    """The inverse of `position`."""
    start = 0
    for _ in range(place["line"]):
        start = text.index("\n", start) + 1
    offset = start + place["character"]
    assert position(text, offset) == place
    return offset


async def run(chosen: Sequence[Gap], settings: dict[str, Any], *, say: bool) -> list[Answer]:
    answers = []
    with tempfile.TemporaryDirectory(prefix="fimls-") as name:
        folder = Path(name)
        async with window(folder, settings) as (editor, home):
            for number, gap in enumerate(chosen):
                answer = await ask(editor, home, gap, folder / f"task_{number}.py")
                answers.append(answer)
                if say:
                    print(described(answer), file=sys.stderr, flush=True)
    return answers


def described(answer: Answer) -> str:
    mark = (
        "exact" if answer.exact else "passed" if answer.passed else "wrong" if answer.text else "-"
    )
    return f"{mark:7}{answer.confidence:5.2f} {answer.task}: {answer.wanted!r} <- {answer.text!r}"


def summary(answers: Sequence[Answer]) -> dict[str, Share]:
    count = len(answers)
    shown = sum(bool(answer.text) for answer in answers)
    passed = sum(answer.passed for answer in answers)
    return {
        "passed": Share(passed, count),
        "passed, whole": Share(sum(answer.whole for answer in answers), count),
        "passed, first line": Share(sum(answer.first for answer in answers), count),
        "exact": Share(sum(answer.exact for answer in answers), count),
        "shown": Share(shown, count),
        "passed of shown": Share(passed, shown),
    }


def percent(share: Share) -> str:
    if share.value is None or share.interval is None:
        return "-"
    low, high = share.interval
    return f"{share.value:.1%} of {share.count} [{100 * low:.0f}, {100 * high:.0f}]"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="bundled", help="as the setting model")
    parser.add_argument("--tasks", type=int, default=100, help="gaps, at most")
    parser.add_argument("--from", dest="file", type=Path, help="a .jsonl file in HumanEval's form")
    parser.add_argument("--set", action="append", default=[], help="SETTING=JSON, repeatable")
    parser.add_argument("--timed", action="store_true", help="keep the time budget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print every answer")
    parser.add_argument("--json", action="store_true", help="print JSON, with every answer")
    return parser


def main() -> None:
    options = arguments().parse_args()
    settings: dict[str, Any] = {"model": options.model}
    if not options.timed:
        settings |= UNHURRIED
    try:
        for pair in options.set:
            key, _, value = pair.partition("=")
            settings[key] = json.loads(value)
        tasks = read_tasks(options.file) if options.file else own_tasks()
        chosen = draw(gaps(tasks), options.tasks, options.seed)
        answers = asyncio.run(run(chosen, settings, say=options.verbose))
    except (EditorError, CommandError, OSError, ValueError) as error:
        raise SystemExit(f"infilling: {type(error).__name__}: {error}") from None
    found = summary(answers)
    if options.json:
        shares = {name: asdict(share) for name, share in found.items()}
        report = {"settings": settings, "seed": options.seed, "machine": machine()}
        print(json.dumps(report | shares | {"answers": [asdict(each) for each in answers]}))
        return
    source = options.file.name if options.file else OWN.name
    print(f"{machine()}; {time.strftime('%Y-%m-%d')}; {options.model}; {source}\n")
    for name, share in found.items():
        print(f"{name:20}{percent(share)}")


if __name__ == "__main__":
    main()
