"""`fimls demo`: a suggestion in a real file, through the real server, from the model that ships."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lsp_server.commands.demo import LEAST_TEXT, places, print_demo
from lsp_server.commands.errors import CommandError
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


@pytest.mark.slow
def test_the_demo_draws_suggestions(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(print_demo(None))
    printed = capsys.readouterr().out
    assert "settings.py:" in printed and "▏" in printed
    assert "suggestions" in printed and "model ready after" in printed


@pytest.mark.slow
def test_a_file_without_code_is_refused_in_a_line(home: Home, tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(CommandError, match="try another file"):
        asyncio.run(print_demo(tmp_path / "empty.py"))
