"""`fimls eval --execute`: known answers to tasks with tests, the two ways to ask, bad files."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fim.evaluation.scoring import Share
from lsp_server.commands.cli import app
from lsp_server.commands.errors import CommandError
from lsp_server.commands.evaluation import sandbox
from lsp_server.commands.evaluation.contestants import Guess, Plan, line_up
from lsp_server.commands.evaluation.evaluate import with_setting
from lsp_server.commands.evaluation.programs import (
    Problem,
    ProgramRow,
    read_problems,
    run_problems,
)
from lsp_server.commands.evaluation.sandbox import execute
from lsp_server.engines.interface import CompletionRequest, Piece
from lsp_server.settings import Settings
from tests.lsp_server.commands.test_evaluate import FakeEngine
from tests.lsp_server.helpers import Home, front_folder

TEST = "def check(candidate):\n    assert candidate(2) == 5\n"
SOLUTION = "    y = 2 * x\n    return y + 1\n"
# HumanEval's form, and that of its infilling by single lines.
WHOLE: dict[str, Any] = {
    "task_id": "HumanEval/0",
    "prompt": 'def f(x):\n    """Twice x, and one more."""\n',
    "entry_point": "f",
    "canonical_solution": SOLUTION,
    "test": TEST,
}
LINE: dict[str, Any] = WHOLE | {
    "task_id": "SingleLineInfilling/HumanEval/0/L0",
    "canonical_solution": "    y = 2 * x\n",
    "suffix": "    return y + 1\n",
}


def written(folder: Path, *rows: Any, name: str = "tasks.jsonl") -> Path:
    path = folder / name
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.fixture
def model(tmp_path: Path) -> Settings:
    return Settings(model=str(front_folder(tmp_path / "model")))


async def row_of(
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
    problems: list[Problem],
    *,
    bare: bool,
) -> ProgramRow:
    monkeypatch.setattr("lsp_server.commands.engine.make_engine", lambda settings: engine)
    contestants = line_up({"": settings}, Plan(layouts=("psm",), bare=bare))
    (row,) = [row async for row in run_problems(problems, contestants, bare)]
    return row


def asked(engine: FakeEngine, settings: Settings) -> str:
    """The prompt of the last question, as text."""
    encoder = line_up({"": settings}, Plan(layouts=("psm",)))[0].prompter.encoder
    prompt = engine.asked[-1].prompt
    assert not isinstance(prompt, str)
    return encoder.decode(prompt)


@pytest.mark.parametrize("name", ["tasks.jsonl", "tasks.jsonl.gz"])
def test_both_forms_are_read(name: str, tmp_path: Path) -> None:
    whole, line = read_problems(written(tmp_path, WHOLE, "", LINE, name=name))
    assert (whole.name, whole.suffix) == ("HumanEval/0", "")
    assert (line.suffix, line.solution) == ("    return y + 1\n", "    y = 2 * x\n")
    for problem in (whole, line):
        assert execute(problem.program(Guess(problem.solution))).passed
        wrong = execute(problem.program(Guess("    y = 0\n    return y\n")))
        assert wrong.reason == "AssertionError"
        in_editor = problem.in_editor()
        assert in_editor.prompt == problem.prompt + "    "
        assert execute(in_editor.program(Guess(problem.solution.strip()))).passed
    assert whole.in_editor().suffix == "" and line.in_editor().suffix == "\n" + line.suffix


@pytest.mark.asyncio
async def test_the_bare_model_gets_what_the_file_says(
    model: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, line = read_problems(written(tmp_path, WHOLE, LINE))
    engine = FakeEngine("    y = 2 * x\n")
    row = await row_of(engine, monkeypatch, model, [line], bare=True)
    assert row.passed == Share(1, 1) and row.shown is None
    assert asked(engine, model) == (
        f"<fim_prefix>{line.prompt}<fim_suffix>{line.suffix}<fim_middle>"
    )
    # Without a suffix it goes from left to right, and what follows the function is cut off.
    engine = FakeEngine("\n    return 2 * x", " + 1\n\n", "\ndef g():\n", "    return (\n")
    row = await row_of(engine, monkeypatch, model, [whole], bare=True)
    assert row.passed == Share(1, 1)
    assert row.answers[0].guess.text == "\n    return 2 * x + 1\n\n"
    assert asked(engine, model) == whole.prompt.rstrip()
    assert engine.asked[-1].stop_ids


@pytest.mark.asyncio
async def test_the_whole_product_is_asked_where_an_editor_has_its_cursor(
    model: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (line,) = read_problems(written(tmp_path, LINE))
    engine = FakeEngine("y = 2 * x\n", logprob=-1.0)  # confidence 0.37
    row = await row_of(engine, monkeypatch, model, [line], bare=False)
    assert (row.passed, row.shown, row.passed_of_shown) == (Share(1, 1),) * 3
    prompt = asked(engine, model)
    assert f"<fim_suffix>\n{line.suffix}<fim_middle>" in prompt and "task_0" not in prompt
    unsure = with_setting(model, "minConfidence=0.5")
    row = await row_of(engine, monkeypatch, unsure, [line], bare=False)
    assert (row.passed, row.shown, row.passed_of_shown) == (Share(1, 1), Share(0, 1), Share(0, 0))


@pytest.mark.asyncio
async def test_every_kind_of_answer_is_told_apart(
    model: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts = {
        "good": "\n    return 2 * x + 1\n",
        "wrong": "\n    return x\n",
        "exits": "\n    import os; os._exit(0)\n",
        "none": "",
    }

    class Knowing(FakeEngine):
        async def complete(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
            self.asked.append(request)
            prompt = asked(self, model)
            yield Piece(next(text for name, text in texts.items() if f"def {name}" in prompt))

    rows = [
        WHOLE | {"task_id": name, "prompt": f"def {name}(x):\n", "entry_point": name}
        for name in texts
    ]
    problems = read_problems(written(tmp_path, *rows))
    row = await row_of(Knowing(), monkeypatch, model, problems, bare=True)
    assert {answer.problem.name: answer.verdict.passed for answer in row.answers} == {
        "good": True,
        "wrong": False,
        "exits": False,
        "none": False,
    }
    told = row.to_json()
    assert told["pass_at_1"]["hits"] == 1 and told["pass_at_1"]["of"] == 4
    reasons = {each["task_id"]: each["reason"] for each in told["answers"]}
    assert reasons["wrong"] == "AssertionError" and "status 0" in reasons["exits"]
    assert "25.0%" in row.line(20)


BAD = [
    ([LINE, "[1]"], "line 2 of {path} is no JSON object; mend or remove it"),
    ([LINE, "", "{"], "line 3 of {path} is no JSON object"),
    ([{k: v for k, v in LINE.items() if k != "test"}], "line 1 of {path} lacks 'test'"),
    ([LINE | {"prompt": 3}], "line 1 of {path}: prompt is not a string"),
    ([LINE | {"suffix": None}], "line 1 of {path}: suffix is not a string"),
    ([LINE | {"entry_point": "f()"}], "line 1 of {path}: entry_point is 'f()', which names no"),
    ([], "{path} is empty; name a file with tasks, such as HumanEval.jsonl"),
]


@pytest.mark.parametrize(("rows", "message"), BAD)
def test_a_bad_file_is_one_clear_line(
    rows: list[Any], message: str, tmp_path: Path, home: Home
) -> None:
    path = written(tmp_path, *rows)
    done = CliRunner().invoke(app, ["eval", "--execute", str(path)], env=home.environment)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message.format(path=path) in done.stderr and done.stderr.count("\n") == 1
    assert home.engines() == []


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, LINE, name="tasks.jsonl.gz")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CommandError, match=r"tasks\.jsonl\.gz is no whole gzip file"):
        read_problems(path)
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b"\xe9\n")
    with pytest.raises(CommandError, match="not UTF-8"):
        read_problems(path)
    with pytest.raises(OSError, match="none"):
        read_problems(tmp_path / "none.jsonl")


def test_a_sandbox_that_runs_nothing_is_an_error(
    tmp_path: Path, home: Home, model: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a score of 0."""
    monkeypatch.setattr(sandbox, "CHILD", tmp_path / "none.py")
    command = ["eval", "--execute", str(written(tmp_path, LINE)), "--model", model.model]
    done = CliRunner().invoke(app, command, env=home.environment)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no program can be run here in a sandbox (ended the process" in done.stderr


def test_through_the_command_and_the_engine(
    tmp_path: Path, shared_home: Home, talkative_folder: Path
) -> None:
    """The toy writes letters, which pass as a comment only."""
    comment = WHOLE | {"prompt": "def f(x):\n    return 5\n#", "canonical_solution": ""}
    path = written(tmp_path, WHOLE, LINE, comment | {"suffix": "\n"})

    def run(*more: str) -> Any:
        command = ["eval", "--execute", str(path), "--model", str(talkative_folder), *more]
        return CliRunner().invoke(app, command, env=shared_home.environment)

    bare = run("--bare", "--json", "--set", "maxTokens=8", "--layout", "psm")
    assert (bare.exit_code, bare.stderr) == (0, "")
    found = json.loads(bare.stdout)
    assert (found["way"], found["file"]) == ("the bare model", str(path))
    (row,) = found["rows"]
    assert row["name"] == "psm" and row["tasks"] == 3 and row["shown"] is None
    assert [len(answer["text"]) for answer in row["answers"]] == [8, 8, 8]
    assert [answer["passed"] for answer in row["answers"]] == [False, False, True]
    printed = run("--set", "maxTokens=8", "--layout", "psm")
    assert (printed.exit_code, printed.stderr) == (0, "")
    head, blank, heading, line = printed.stdout.splitlines()
    assert head.startswith(f"{talkative_folder}: the whole product; 3 tasks of tasks.jsonl; ")
    assert "in a sandbox" in head and blank == ""
    assert heading.split()[0] == "pass@1" and line.startswith("psm ")
    assert run("x.jsonl").exit_code == 2
