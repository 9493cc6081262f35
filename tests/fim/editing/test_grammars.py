import subprocess
import sys
import time
from dataclasses import replace

import pytest

from fim.editing.grammars import definitions, load
from fim.editing.languages import LANGUAGES


@pytest.mark.parametrize("language", [name for name in LANGUAGES if LANGUAGES[name].grammar])
def test_every_grammar_loads_and_its_words_are_its_own(language: str) -> None:
    facts = LANGUAGES[language]
    loaded = load(facts.grammar, facts.loader)
    assert loaded
    known = {loaded.node_kind_for_id(id) for id in range(loaded.node_kind_count)}
    assert facts.functions | facts.closures | facts.types <= known


def test_nothing_is_loaded_before_it_is_asked_for() -> None:
    code = (
        "import sys, fim, fim.editing.targets; print(*(name for name in sys.modules if "
        "name.startswith('tree_sitter')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


TEXT = "class A {\n  f(x) {\n    return x;\n  }\n}\n"


def test_without_its_wheel_a_language_is_read_by_indentation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = replace(LANGUAGES["javascript"], grammar="tree_sitter_missing")
    monkeypatch.setitem(LANGUAGES, "javascript", missing)
    found = list(definitions(TEXT, "javascript", TEXT.index("return")))
    assert [(each.name, each.inner) for each in found] == [("f", (18, TEXT.index("}")))]


def test_a_grammar_that_is_too_new_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pointer: object) -> None:
        raise ValueError("Incompatible Language version 99")

    monkeypatch.setattr("tree_sitter.Language", refuse)
    assert load.__wrapped__("tree_sitter_python", "language") is None


def test_a_text_that_takes_too_long_is_read_by_indentation() -> None:
    text = (
        "if x:\n " * 8_000 + "\nlocal function f()\n  return 1\nend\n"
    )  # takes Lua's grammar half a minute
    started = time.monotonic()
    found = list(definitions(text, "lua", text.index("return")))
    assert time.monotonic() - started < 5
    assert [each.name for each in found] == ["f"]


def test_a_long_text_is_read_by_indentation() -> None:
    text = "x = 1\n" * 200_000 + "def f():\n    return 1\n"
    found = list(definitions(text, "python", len(text) - 2))
    assert [(each.name, each.inner) for each in found] == [("f", (len(text) - 14, len(text) - 1))]


def test_offsets_are_code_points() -> None:
    text = "# 😀é\ufeff\ud800\ndef naïve():\n    return '😀'\n"
    (found,) = definitions(text, "python", len(text) - 1)
    assert found.inner
    assert (found.name, text[slice(*found.inner)]) == ("naïve", "\n    return '😀'")
