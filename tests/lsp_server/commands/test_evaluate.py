"""`fimls eval`: the figures of known answers, and one clear line for each mistake."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fim import FormatError
from fim.evaluation.samples import TASKS, draw
from fim.evaluation.scoring import Share
from lsp_server.commands.cli import app
from lsp_server.commands.errors import CommandError
from lsp_server.commands.evaluation.contestants import IN_FLIGHT, Guess, Plan, in_order, line_up
from lsp_server.commands.evaluation.evaluate import evaluate, with_setting
from lsp_server.commands.evaluation.rows import THRESHOLDS, Row
from lsp_server.commands.source_files import Packages
from lsp_server.engines.interface import CompletionRequest, EngineState, EngineUnavailable, Piece
from lsp_server.settings import Settings
from tests.conftest import STARCODER2, write_tokenizer
from tests.fim.evaluation.test_samples import TOY
from tests.lsp_server.commands.test_source_files import write
from tests.lsp_server.helpers import Home, front_folder


def test_settings_by_name() -> None:
    assert with_setting(Settings(), "maxTokens=7").max_tokens == 7
    assert with_setting(Settings(), "engine.dtype=bfloat16").engine.dtype == "bfloat16"
    assert with_setting(Settings(), "minConfidence=0").min_confidence == 0.0
    for pair, message in [
        ("maxTokens", "is not KEY=VALUE"),
        ("maxTokens=many", 'is "many", expected a whole number from 1 to 1024$'),
        ("maxTokns=3", "is not a setting; did you mean fimls.maxTokens"),
    ]:
        with pytest.raises(CommandError, match=message):
            with_setting(Settings(), pair)


class FakeEngine:
    """Says the same to everybody, sooner or later, and remembers what it was asked."""

    state = EngineState("ready")

    def __init__(self, *pieces: str, logprob: float = -0.1) -> None:
        self.pieces, self.logprob, self.asked = pieces, logprob, list[CompletionRequest]()
        self.at_once = self.most_at_once = 0
        self.closed = False

    def start(self) -> None: ...

    async def wait_until_settled(self) -> EngineState:
        return self.state

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        self.asked.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            for piece in self.pieces:
                await asyncio.sleep(random.random() / 1000)
                yield Piece(piece, (self.logprob,))
        finally:
            self.at_once -= 1

    async def close(self) -> None:
        self.closed = True


ONE = {
    "p": [("p/a.py", "value = 1\n# note\n"), ("p/b.txt", "\tvalue = 1")]
}  # one line of code in each
TWO = {"p": [("p/a.py", "value = 1\nother = 2\n")]}


@pytest.fixture
def model(tmp_path: Path) -> Settings:
    return Settings(model=str(front_folder(tmp_path / "model")))


async def rows_of(
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
    plan: Plan,
    packages: Packages = ONE,
) -> list[Row]:
    monkeypatch.setattr("lsp_server.commands.engine.make_engine", lambda settings: engine)
    return [row async for row in evaluate(packages, line_up({"": settings}, plan), plan)]


@pytest.mark.asyncio
async def test_the_figures_of_a_known_answer(
    model: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine("value", " = ", "1", "\nmore")
    plan = Plan(("line",), 20, ("spm",), baseline=True)
    baseline, row = await rows_of(engine, monkeypatch, model, plan)
    assert (baseline.name, baseline.shown, baseline.exact) == ("copy baseline", None, Share(0, 20))
    assert (row.name, row.exact, row.similarity) == ("spm", Share(20, 20), 1.0)
    assert (row.shown, row.right_of_shown) == (Share(20, 20), Share(20, 20))
    python = sum(s.path == "p/a.py" for s in draw(ONE, "line", 20, 0))
    assert row.parses == Share(python, python) and 0 < python < 20  # the other file is none
    assert 1 < engine.most_at_once <= IN_FLIGHT and engine.closed
    assert all(request.temperature == 0 and request.client == "eval" for request in engine.asked)


@pytest.mark.asyncio
async def test_what_the_suggestions_would_bring_and_break(
    model: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine("value = ) x\n")
    plan = Plan(("line",), 20, ("spm",), baseline=False, bare=True)  # nothing mends it
    (row,) = await rows_of(engine, monkeypatch, model, plan)
    assert row.harm is not None and row.parses.count == row.harm.broken.count > 0
    assert (row.harm.right, row.harm.wrong, row.harm.net) == (20 * 8, 20 * 3, 5.0)
    assert row.harm.broken.value == 1.0
    assert row.harm.doubled_lines == Share(0, 20) and row.harm.doubled_brackets == Share(20, 20)


@pytest.mark.asyncio
async def test_a_row_without_a_filter(model: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine("value = 1", "\nmore")
    plan = Plan(("line",), 9, ("spm",), baseline=False, without=("end-of-line", "too-long"))
    whole, lacking, other = await rows_of(engine, monkeypatch, model, plan)
    assert [row.name for row in (whole, lacking, other)] == [
        "spm",
        "spm -end-of-line",
        "spm -too-long",
    ]
    assert whole.exact == other.exact == Share(9, 9) and lacking.exact == Share(0, 9)


@pytest.mark.asyncio
async def test_kept_answers_are_not_asked_for_again(
    model: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "answers.jsonl"
    plan = Plan(("line",), 5, ("spm",), baseline=False, answers=file)
    engine = FakeEngine("value", " = ", "1", "\nmore", "\nstill more")
    (row,) = await rows_of(engine, monkeypatch, model, plan)
    assert engine.closed and row.exact == Share(5, 5)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert 0 < len(rows) <= len(engine.asked) <= 5
    assert rows[0]["pieces"][-1] == ["\nstill more", [-0.1]]  # also what the product cuts off

    silent = FakeEngine("never asked")
    monkeypatch.setattr("lsp_server.commands.engine.make_engine", lambda settings: silent)
    other = replace(model, min_confidence=0.95)  # another filter, the same questions
    for settings, shown in [(model, 5), (other, 0)]:
        found = [row async for row in evaluate(ONE, line_up({"": settings}, plan), plan)]
        assert found[0].exact == Share(5, 5) and found[0].shown == Share(shown, 5)
    assert not silent.asked
    asked = [row async for row in evaluate(ONE, line_up({"": replace(model, seed=3)}, plan), plan)]
    assert silent.asked and asked[0].exact == Share(0, 5)

    file.write_text('{"key": "a", "pieces": [["x"]]}\n')
    with pytest.raises(CommandError, match=r"line 1 of .*no kept answer; delete the line"):
        await anext(evaluate(ONE, line_up({"": model}, plan), plan))


@pytest.mark.asyncio
async def test_what_is_hidden_is_counted_apart(
    model: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine("value = 1\n", logprob=-1.0)  # confidence 0.37
    settings = with_setting(model, "minConfidence=0.5")
    (row,) = await rows_of(
        engine, monkeypatch, settings, Plan(("line",), 4, ("psm",), baseline=False)
    )
    assert (row.exact, row.shown, row.right_of_shown) == (Share(4, 4), Share(0, 4), Share(0, 0))
    assert [(at, shown.hits) for at, shown, _ in row.by_confidence][:3] == [
        (0.0, 4),
        (0.3, 4),
        (0.4, 0),
    ]
    assert row.to_json()["right_of_shown"] == {
        "share": None,
        "interval": None,
        "hits": 0,
        "of": 0,
    }


@pytest.mark.asyncio
async def test_the_bare_model_is_cut_at_the_tasks_end_only(
    model: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine("value = 1", "\nother = 2\n\n\n", "more", logprob=-9.0)
    bare = Plan(("line", "multi-line"), 9, ("spm",), bare=True, baseline=False)
    line, lines = await rows_of(
        engine, monkeypatch, with_setting(model, "minConfidence=1"), bare, TWO
    )
    first = sum(s.middle == "value = 1" for s in draw(TWO, "line", 9, 0))
    assert line.exact == Share(first, 9) and line.parses == Share(9, 9) and 0 < first < 9
    assert line.shown is None and line.by_confidence == ()
    assert lines.exact == Share(0, 9) and lines.similarity == pytest.approx(1 - 7 / 26)
    # Through the product it ends at the blank lines.
    (row,) = await rows_of(
        engine, monkeypatch, model, Plan(("multi-line",), 9, ("spm",), baseline=False), TWO
    )
    assert row.exact == Share(9, 9)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.asyncio
async def test_the_anchor_is_as_for_someone_who_has_typed(
    model: Settings, monkeypatch: pytest.MonkeyPatch, bare: bool
) -> None:
    text = "".join(f"value_{i} = {i} + other_{i}\n" for i in range(60))
    engine, packages = FakeEngine("x"), {"p": [("p/a.py", text)]}
    plan = Plan(("column",), 40, ("anchored",), bare=bare, baseline=False)
    await rows_of(engine, monkeypatch, model, plan, packages)
    prompter = line_up({"": model}, plan)[0].prompter
    assert prompter.sentinels is not None
    places, typed = {sample.prefix: sample for sample in draw(packages, "column", 40, 0)}, []
    for request in engine.asked:
        before, _, rest = prompter.encoder.decode(request.prompt).partition("<fim_suffix>")  # type: ignore[arg-type]
        suffix, _, since = rest.partition("<fim_middle>")
        before = before.removeprefix("<fim_prefix>")
        assert places[before + since + request.begin_with].suffix == suffix
        assert before == "" or before.endswith("\n")
        typed.append(since.count("\n"))
    assert typed.count(0) > 1 and max(typed) > 3 and len(engine.asked) == 40
    again = FakeEngine("x")
    await rows_of(again, monkeypatch, model, plan, packages)
    assert sorted(map(repr, again.asked)) == sorted(map(repr, engine.asked))


@pytest.mark.asyncio
async def test_answers_stay_with_their_questions() -> None:
    """Some answers are there before those that were asked for earlier."""

    async def ask(number: int) -> Guess:
        await asyncio.sleep(0.002 if number % 3 else 0)
        return Guess(str(number))

    found = [guess.text async for guess in in_order(partial(ask, number) for number in range(50))]
    assert found == [str(number) for number in range(50)]


@pytest.mark.asyncio
async def test_an_engine_that_goes_ends_it(
    model: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(FakeEngine):
        async def complete(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
            self.asked.append(request)
            if len(self.asked) > 5:
                raise EngineUnavailable("no answer")
            yield Piece("value = 1\n")

    engine = Gone()
    with pytest.raises(EngineUnavailable, match="no answer"):
        await rows_of(engine, monkeypatch, model, Plan(("line",), 50, baseline=False))
    assert engine.closed and len(engine.asked) < 12


def test_the_bare_model_has_no_help(model: Settings) -> None:
    preferences = {"heal_tokens": True, "min_confidence": 0.4}
    (Path(model.model) / "fimls.json").write_text(json.dumps(preferences))
    product, bare = (
        line_up({"": model}, Plan(layouts=("spm",), bare=bare))[0] for bare in (False, True)
    )
    assert (product.prompter.heal_tokens, product.threshold) == (True, 0.4)
    assert (bare.prompter.heal_tokens, bare.prompter.copying, bare.threshold) == (False, None, None)


def test_a_tokenizer_without_sentinels_is_refused(tmp_path: Path) -> None:
    folder = front_folder(tmp_path / "model")
    write_tokenizer(folder, ["<|endoftext|>"])
    with pytest.raises(FormatError, match="has the sentinels of no FIM format"):
        line_up({"": Settings(model=str(folder))}, Plan())


def test_a_layout_that_the_model_never_saw_is_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(STARCODER2 | {"model_type": "stablelm"}))
    write_tokenizer(
        folder, ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", "<｜end▁of▁sentence｜>"]
    )
    settings = Settings(model=str(folder), format="deepseek-coder")
    assert [one.layout for one in line_up({"": settings}, Plan())] == ["psm"]
    with pytest.raises(FormatError, match="never saw layout 'spm'"):
        line_up({"": settings}, Plan(layouts=("spm",)))


@pytest.fixture(scope="module")
def place(shared_home: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield write(
        tmp_path_factory.mktemp("place"),
        **{path: text for files in TOY.values() for path, text in files},
    )


def fimls_eval(home: Home, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)], env=home.environment)


def test_a_run_twice_gives_the_same_as_json(
    place: Path, shared_home: Home, talkative_folder: Path
) -> None:
    def run(*more: str) -> dict[str, Any]:
        done = fimls_eval(
            shared_home, place, "--model", talkative_folder, "--samples", 5, "--json", *more
        )
        assert (done.exit_code, done.stderr) == (0, "")
        found: dict[str, Any] = json.loads(done.stdout)
        for row in found["rows"]:
            assert row.pop("seconds") >= 0
        return found

    found = run()
    assert (found["way"], found["packages"], found["files"]) == (
        "the whole product",
        ["big", "small"],
        10,
    )
    names = ["copy baseline", "spm", "psm"]
    assert [(row["task"], row["name"]) for row in found["rows"]] == [
        (task, name) for task in TASKS for name in names
    ]
    assert found == run()
    assert found["rows"] != run("--seed", "1")["rows"]
    baseline, psm, _ = found["rows"][:3]
    assert set(psm) == {
        "task",
        "name",
        "model",
        "layout",
        "samples",
        "exact_match",
        "edit_similarity",
        "parses",
        "min_confidence",
        "shown",
        "right_of_shown",
        "by_confidence",
        "harm",
    }
    assert (
        psm["exact_match"].keys() == {"share", "interval", "hits", "of"}
        and psm["exact_match"]["of"] == 5
    )
    assert psm["min_confidence"] == 0 and psm["shown"] == psm["by_confidence"][0]["shown"]
    assert (baseline["model"], psm["model"]) == (None, str(talkative_folder))


def test_a_table_with_a_setting_beside_it(
    place: Path, shared_home: Home, talkative_folder: Path
) -> None:
    done = fimls_eval(
        shared_home,
        place,
        "--model",
        talkative_folder,
        "--samples",
        3,
        "--task",
        "line",
        "--layout",
        "spm",
        "--set",
        "maxTokens=8",
        "--versus",
        "minConfidence=1",
        "--verbose",
    )
    assert (done.exit_code, done.stderr) == (0, "")
    head, blank, heading, baseline, base, versus, *gate = done.stdout.splitlines()
    assert head.startswith(
        f"{talkative_folder}: the whole product; 3 samples a task from 10 files of 2 packages"
    )
    assert (
        blank == ""
        and heading.split()[0] == "task"
        and baseline.startswith("line         copy baseline")
    )
    assert base.split()[:2] == ["line", "spm"] and "100.0%" in base
    assert versus.startswith("line         spm minConfidence=1")
    assert versus.split()[-5:] == ["0.0%", "-", "0.0", "-", "0"]
    assert (
        len({line.index(".0%") for line in (baseline, base, versus)}) == 1
    )  # the columns are aligned
    assert len(gate) == 1 + 2 * len(THRESHOLDS)


def test_the_bare_model_through_the_engine(
    place: Path, shared_home: Home, talkative_folder: Path
) -> None:
    arguments = (
        "--model",
        talkative_folder,
        "--samples",
        3,
        "--json",
        "--no-baseline",
        "--task",
        "line,random-span",
    )
    bare = json.loads(fimls_eval(shared_home, place, "--bare", *arguments).stdout)
    product = json.loads(fimls_eval(shared_home, place, *arguments).stdout)
    assert bare["way"] == "the bare model" and len(bare["rows"]) == len(product["rows"]) == 4
    assert all(row["shown"] is None and row["by_confidence"] == [] for row in bare["rows"])


BAD = [
    (["{place}/none"], "there is nothing at", "name a folder"),
    (["{place}/big/0.py"], "is neither a folder nor a .jsonl file", "name the folder"),
    (["{place}/empty"], "there are no source files", "name a folder that has some"),
    (["{place}/comments"], "no place for the task 'line'", "more code"),
    (["{place}/bad.jsonl"], "line 2 of", "mend or remove it"),
    (["{place}/empty.jsonl"], "is empty", "name a file with rows"),
    (
        ["{place}", "--task", "line,lines"],
        "there is no task 'lines'",
        "choose from line,column,multi-line,random-span",
    ),
    (["{place}", "--layout", "pms"], "there is no layout 'pms'", "choose from psm,spm,anchored"),
    (["--split", "train"], "there is no split 'train'", "choose test or validation"),
    (
        ["{place}", "--set", "maxTokens=0"],
        "fimls.maxTokens is 0",
        "expected a whole number from 1 to 1024",
    ),
    (["{place}", "--model", "{place}/empty"], "is empty", "Download"),
]


@pytest.mark.parametrize(("arguments", "problem", "remedy"), BAD)
def test_whatever_is_wrong_is_one_clear_line(
    arguments: list[str],
    problem: str,
    remedy: str,
    place: Path,
    tmp_path: Path,
    home: Home,
    model: Settings,
) -> None:
    folder = Path(shutil.copytree(place, tmp_path / "place"))
    (folder / "empty").mkdir()
    write(
        folder,
        **{
            "comments/a.py": "# only\n",
            "bad.jsonl": '{"package": "a", "path": "b", "text": "c"}\n[1]\n',
            "empty.jsonl": "",
        },
    )
    given = [argument.format(place=folder) for argument in arguments]
    done = fimls_eval(home, *given, *([] if "--model" in given else ["--model", model.model]))
    assert done.exit_code == 2
    assert problem in done.stderr and remedy in done.stderr
    assert done.stderr.startswith("fimls: ") and done.stderr.count("\n") == 1
    assert home.engines() == []


def test_a_model_that_the_engine_cannot_load_is_its_own_error(
    place: Path, shared_home: Home, model: Settings
) -> None:
    done = fimls_eval(shared_home, place, "--model", model.model, "--samples", 1)
    assert (
        done.exit_code == 2 and done.stderr.startswith("fimls: ") and done.stderr.count("\n") == 1
    )
    assert "safetensors" in done.stderr
