"""`fimls demo`: a suggestion in a real file, through the real server, from the model that ships."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lsp_server.commands.demo import LEAST_TEXT, best_model, places, print_demo
from lsp_server.commands.errors import CommandError
from model.catalogue.records import PulledFile, Record, write_record
from tests.lsp_server.helpers import Home


def test_places_leave_something_to_guess() -> None:
    lines = [
        "import os",
        "",
        "    return some_function(argument, another)",
        "# " + "a comment " * 5,
        "x = 1",
    ]
    found = places(lines, seed=0)
    assert {line for line, _ in found} == {2}
    assert all(8 <= column <= len(lines[line]) - LEAST_TEXT for line, column in found)


def test_the_best_model_is_the_largest_that_runs_and_is_not_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starcoder2_folder: Path
) -> None:
    monkeypatch.setenv("FIMLS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    assert best_model() == "bundled"
    weights = starcoder2_folder / "model.safetensors"
    file = PulledFile(str(weights), weights.stat().st_size, "0" * 64)
    broken = tmp_path / "broken"
    broken.mkdir()
    for name, path in (
        ("starcoder2-7b", starcoder2_folder),  # too large to wait for
        ("qwen2.5-coder-1.5b", broken),
        ("qwen2.5-coder-0.5b", starcoder2_folder),
    ):
        write_record(Record(name, str(path), "hub", "o/r", "0" * 40, "MIT", (file,)))
        assert best_model() == ("qwen2.5-coder-0.5b" if "0.5b" in name else "bundled")


@pytest.mark.slow
def test_the_demo_draws_suggestions(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(print_demo(None, "bundled"))
    printed = capsys.readouterr().out
    assert "make demo MODEL=qwen2.5-coder-0.5b" in printed
    assert "settings.py:" in printed and "▏" in printed
    assert "suggestions" in printed and "model ready after" in printed


@pytest.mark.slow
def test_a_file_without_code_is_refused_in_a_line(home: Home, tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(CommandError, match="try another file"):
        asyncio.run(print_demo(tmp_path / "empty.py"))
