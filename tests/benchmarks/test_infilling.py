"""The infilling benchmark: its own tasks, the gaps, the limits, and two gaps through the server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from benchmarks.infilling import (
    Answer,
    Gap,
    Task,
    accepted,
    draw,
    gaps,
    offset_at,
    own_tasks,
    read_tasks,
    run,
    summary,
)
from lsp_server.commands.evaluation.sandbox import execute

TASK = Task(
    "double", "def double(x):\n", "    y = x\n\n    return y + x\n", "assert double(2) == 4\n"
)


def test_our_own_functions_pass_their_tests() -> None:
    tasks = own_tasks()
    assert len(tasks) >= 20 and len(gaps(tasks)) >= 150
    everything = "\n".join(f"{task.prompt}{task.solution}\n{task.test}" for task in tasks)
    assert execute(everything).passed


def test_a_gap_is_a_line_after_its_indentation() -> None:
    first, second = gaps([TASK])
    assert first == Gap(TASK, TASK.prompt + "    ", "y = x", "\n\n    return y + x\n")
    assert second.line == "return y + x" and second.suffix == "\n"
    assert all(
        each.prefix + each.line + each.suffix == TASK.prompt + TASK.solution
        for each in (first, second)
    )
    assert draw([first, second], 5, seed=0) in ([first, second], [second, first])


@pytest.mark.parametrize(("text", "good"), [("return 2 * x", True), ("return y", False)])
def test_a_text_is_right_if_the_test_passes(text: str, good: bool) -> None:
    gap = gaps([TASK])[1]
    cursor = len(gap.prefix)
    assert execute(accepted(gap, text, cursor, cursor)).passed is good


def test_rows_in_humanevals_form_are_read(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    row = {
        "entry_point": "double",
        "prompt": TASK.prompt,
        "canonical_solution": TASK.solution,
        "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    }
    path.write_text(json.dumps(row) + "\n")
    (task,) = read_tasks(path)
    assert (task.prompt, task.solution) == (TASK.prompt, TASK.solution)
    assert execute(task.prompt + task.solution + task.test).passed
    assert not execute(task.prompt + "    return 0\n" + task.test).passed


def test_offsets_and_positions_agree() -> None:
    assert offset_at("a\n😀b\n", {"line": 1, "character": 1}) == 3


def test_shares_count_what_was_shown() -> None:
    right = Answer("t", "a", "a\nb", True, True, False, 0.9, 1.0)
    wrong = Answer("t", "a", "c", False, False, False, 0.9, 1.0)
    nothing = Answer("t", "a", "", False, False, False, 0.1, 1.0)
    found = summary([right, wrong, nothing])
    hits = {name: (share.hits, share.count) for name, share in found.items()}
    assert hits["passed"] == (1, 3) and hits["passed, whole"] == (0, 3)
    assert hits["shown"] == (2, 3) and hits["passed of shown"] == (1, 2)


@pytest.mark.slow  # its engine compiles first, in a home of its own
def test_gaps_are_asked_through_the_real_server() -> None:
    """What is shown is judged; here the context says the line."""
    loop = "    for value in values:\n        total += compute(value)\n"
    body = f"    total = 0\n{loop}    return total\n"
    header = "def f(values, compute):\n"
    task = Task("f", f"{header.replace('f(', 'g(')}{body}\n\n{header}", body, "f([1], abs)\n")
    chosen = [each for each in gaps([task]) if "compute" in each.line]
    answers = asyncio.run(run(chosen, {"model": "bundled", "minConfidence": 0.0}, say=False))
    (answer,) = answers
    assert answer.text.startswith("total += ") and answer.passed
    assert 0 < answer.confidence <= 1
