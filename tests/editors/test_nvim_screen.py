"""Neovim in a terminal: ghost text seen, accepted and saved. The screens are kept, one as a
picture."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, TerminalTheme
from rich.text import Text

from tests.editors.canned_server import ANSWERS
from tests.editors.nvim import (
    SCREENS,
    VERSIONS,
    Log,
    Tmux,
    binary,
    environment,
    ghost_of,
    init_lua,
    plain,
    until,
)

pytestmark = pytest.mark.editors

# The colours behind Neovim's own scheme, or its text would stand on patches.
ANSI = [tuple(DEFAULT_TERMINAL_THEME.ansi_colors[i]) for i in range(16)]
THEME = TerminalTheme((20, 22, 27), (224, 226, 234), ANSI)
FIB = ANSWERS["def fib(n):"][0]
HEAD = '''"""Numbers with a history, and what they grow like."""

from itertools import islice

GOLDEN = (1 + 5**0.5) / 2  # φ, the limit of the ratios


'''
TAIL = '''

def ratios(count):
    """How fast they grow: the limit is GOLDEN."""
    for n in range(1, count):
        yield fib(n + 1) / fib(n)


print(list(islice(ratios(20), 5)), "→", GOLDEN)
'''


def picture(screen: str, path: Path) -> None:
    console = Console(record=True, width=80, file=io.StringIO())
    # An empty row at the end would be a row of the picture.
    console.print(Text.from_ansi(screen.rstrip("\n")), no_wrap=True, crop=True)
    drawn = console.export_svg(title="Neovim", theme=THEME)
    # As in `fimls demo`: no fonts from elsewhere, and spaces that every viewer keeps.
    drawn = re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL).replace("&#160;", " ")
    path.write_text(drawn.replace("<text ", '<text xml:space="preserve" '), encoding="utf-8")


@pytest.mark.parametrize("version", VERSIONS)
def test_seen_accepted_saved(version: str, tmp_path: Path) -> None:
    SCREENS.mkdir(parents=True, exist_ok=True)
    file = tmp_path / "growth.py"
    file.write_text(HEAD + TAIL, encoding="utf-8")
    line = (
        "vim.o.number, vim.o.statusline = true, ' %f %m%= "
        '%{v:lua.require("fimls").statusline()} \''
    )
    init = init_lua(tmp_path, "{ cmd = COMMAND }", before=line)
    command = [binary(version), "-u", str(init), "-n", "-i", "NONE", str(file)]
    terminal = Tmux(tmp_path, command, environment(tmp_path), rows=23)
    log = Log(tmp_path / "canned.jsonl")
    try:
        until(lambda: log("open"))
        until(lambda: "fimls ✓" in plain(terminal.screen()))
        terminal.text("7Go")
        terminal.text("def fib(n):")
        until(lambda: len(ghost_of(terminal.screen())) == 4)
        screen = terminal.screen()
        (SCREENS / f"nvim-{version}.txt").write_text(screen, encoding="utf-8")
        if version == VERSIONS[-1]:
            picture(screen, SCREENS / "nvim-ghost.svg")
        assert [ghost.rstrip() for _, ghost in ghost_of(screen)] == FIB[1:].split("\n")
        assert "def fib(n):" in plain(screen)
        terminal.keys("Tab")
        until(lambda: not ghost_of(terminal.screen()))
        (SCREENS / f"nvim-{version}-accepted.txt").write_text(terminal.screen(), encoding="utf-8")
        terminal.keys("Escape", ":w", "Enter")
        until(lambda: file.read_text(encoding="utf-8") == HEAD + "def fib(n):" + FIB + "\n" + TAIL)
    finally:
        terminal.close()
