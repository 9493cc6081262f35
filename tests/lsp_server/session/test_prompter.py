"""The prompts of the product, beyond what fim makes of a context, and the time that an answer
has."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fim import FORMATS, CursorContext, Snippet
from lsp_server.context.project import Surroundings
from lsp_server.documents import Snapshot
from lsp_server.session.prompter import Prompter
from lsp_server.settings import RemoteSettings, Settings
from model.errors import ModelError
from model.weights.folder import ModelFolder


def ids(before: str, behind: str, layout: str = "spm") -> tuple[int, ...]:
    settings = Settings(layout=layout)  # type: ignore[arg-type]
    context = CursorContext("def f(a):\n    return " + before, behind + "\n\nx = 1\n")
    asked, _ = Prompter.for_settings(settings).request(context, settings, "")
    assert not isinstance(asked.prompt, str)
    return asked.prompt


@pytest.mark.parametrize(
    ("before", "behind"), [("g(", ")"), ("g([", "])"), ('g(["', '"])'), ("g(a", "):")]
)
def test_brackets_that_an_editor_closes_leave_the_prompt_alone(before: str, behind: str) -> None:
    assert ids(before, behind) == ids(before, "")


def test_anything_else_behind_the_cursor_is_in_the_prompt() -> None:
    assert ids("g", "") != ids("g", ".x")
    assert ids("g(", ", b)") != ids("g(", "")


def test_the_budget_suits_the_model(talkative_folder: Path) -> None:
    elsewhere = RemoteSettings("http://engine")
    for settings, budget in [
        (Settings(), 100),
        (Settings(time_budget=0.0), 0),
        (Settings(model=str(talkative_folder)), 300),
        (Settings(remote=elsewhere), 300),
        (Settings(remote=replace(elsewhere, format="starcoder2")), 300),
        (Settings(remote=replace(elsewhere, format="starcoder2"), time_budget=7.0), 7),
    ]:
        assert Prompter.for_settings(settings).time_budget == budget


@pytest.mark.parametrize("layout", ["fim", "", 5, ["psm"]])
def test_a_layout_that_is_none_is_refused(
    talkative_folder: Path, tmp_path: Path, layout: object
) -> None:
    folder = shutil.copytree(talkative_folder, tmp_path / "model")
    (folder / "fimls.json").write_text(json.dumps({"layout": layout}))
    with pytest.raises(ModelError) as refused:
        Prompter.for_settings(Settings(model=str(folder)))
    assert str(refused.value) == (
        f"{folder}/fimls.json: layout is {layout!r}. It must be 'psm', 'spm' or 'anchored'; "
        "correct or delete the file."
    )


@pytest.mark.parametrize("budget", [-1, "100", True, float("nan")])
def test_a_budget_that_is_none_is_refused(tmp_path: Path, budget: object) -> None:
    (tmp_path / "fimls.json").write_text(json.dumps({"time_budget": budget}))
    with pytest.raises(ModelError, match="time_budget is"):
        _ = ModelFolder(tmp_path, {}).preferences


@pytest.mark.parametrize(
    ("preferences", "layout", "heals"),
    [
        ({}, "anchored", True),
        ({"layout": "psm", "heal_tokens": False}, "psm", False),
        ({"layout": "anchored"}, "anchored", True),
    ],
)
def test_a_model_without_preferences_gets_what_suits_most(
    talkative_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    preferences: dict[str, object],
    layout: str,
    heals: bool,
) -> None:
    """A layout that only grows, and healing where tokens are byte-level."""
    psm_alone = replace(FORMATS["starcoder2"], layouts=("psm",))
    known = FORMATS | {"starcoder2": psm_alone}
    monkeypatch.setattr("fim.formats.FORMATS", known)
    folder = shutil.copytree(talkative_folder, tmp_path / "model")
    (folder / "fimls.json").write_text(json.dumps(preferences))
    found = Prompter.for_settings(Settings(model=str(folder)))
    assert (found.layout, found.heal_tokens) == (layout, heals)
    monkeypatch.undo()
    found = Prompter.for_settings(Settings(model=str(folder)))
    assert found.layout == preferences.get("layout", "spm")


def test_only_the_largest_prompt_has_other_files_and_it_keeps_its_size() -> None:
    prompter = Prompter.for_settings(Settings())
    text = "def f(a):\n    return a + 1\n\n\n" * 400
    shown = tuple(
        Snippet(f"b{number}.py", f"def g{number}(a, b): ...\n", "open", 1.0) for number in range(99)
    )
    for sizes in ([1024, 256], [1024]):
        contexts = prompter.contexts(
            Snapshot("file:///a.py", 1, "python", text, 5000),
            Settings(),
            "a.py",
            {},
            sizes,
            Surroundings("work", shown),
        )
        largest, *smaller = contexts.values()
        assert 0 < len(largest.snippets) < len(shown)
        assert largest.snippets == shown[-len(largest.snippets) :]  # the best are last
        assert largest.repository == "work"
        asked, _ = prompter.request(largest, Settings(), "")
        assert 700 < len(asked.prompt) < 1024 + 32
        assert [each.snippets for each in smaller] == [()] * len(smaller)
