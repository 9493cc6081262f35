"""Helix, whose menu is what it has: a real one in a terminal, with the server and a canned
endpoint."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.lsp_server.helpers import Endpoint, Home, says

pytestmark = pytest.mark.editors

HELIX = ROOT / ".editors/helix/hx"
PATIENCE_S = 15.0
SERVER = """
[language-server.fimls]
command = {python}
args = ["-P", "-m", "lsp_server", "lsp"]
config = {{ "remote.url" = {url}, "remote.format" = "starcoder2", "remote.timeout" = 60 }}

[[language]]
name = "python"
language-servers = ["fimls"]
"""


class Terminal:
    """A program in a terminal of its own: keys go in, the screen comes out."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-S", str(self._home.path / "tmux"), "-f", "/dev/null", *arguments]
        environment = (
            os.environ
            | self._home.environment
            | {
                "HOME": str(self._home.path),
                "LC_ALL": "C.UTF-8",
                "PYTHONPATH": str(ROOT),
                "XDG_CONFIG_HOME": "",
            }
        )
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        ).stdout

    def start(self, folder: Path, *command: str) -> None:
        self._tmux("new-session", "-d", "-x", "100", "-y", "30", "-c", str(folder), *command)

    def keys(self, *keys: str) -> None:
        self._tmux("send-keys", *keys)

    @property
    def screen(self) -> str:
        return self._tmux("capture-pane", "-p")

    async def shows(self, text: str, *keys: str) -> str:
        """Waits until the screen shows this, and returns it. keys: pressed again and again until it
        does."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in (screen := self.screen):
            assert time.monotonic() < deadline, f"no {text!r} in\n{screen}"
            if keys:
                self.keys(*keys)
            await asyncio.sleep(0.5)
        return screen

    def close(self) -> None:
        self._tmux("kill-server")


@pytest.fixture
def home() -> Iterator[Home]:
    home = Home()
    yield home
    home.close()


def helix(home: Home, text: str, url: str) -> Terminal:
    """Helix with code.py open. url: of an endpoint; without one the model is on this machine."""
    work, config = home.path / "work", home.path / ".config/helix"
    work.mkdir()
    config.mkdir(parents=True)
    (config / "config.toml").write_text("[editor]\nauto-completion = false\nauto-pairs = false\n")
    (work / "code.py").write_text(text, encoding="utf-8")
    values = {"python": json.dumps(sys.executable), "url": json.dumps(url)}
    (config / "languages.toml").write_text(SERVER.format(**values))
    terminal = Terminal(home)
    terminal.start(work, str(HELIX), "code.py")
    return terminal


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("before", "typed", "said", "after"),
    [
        ('who = "🎉👩‍🚀 wörld"; total =', " ", "sum(prices)", "  # 🎈\n"),
        ("def fib(n):  # 🎉", "\n", "    a, b = 0, 1\n    return a", "\n\nprint(fib(3))\n"),
        ('who = "🎉"; total =', " pri", "ces[0] + 1", "\n"),
    ],
    ids=["line", "lines", "word"],
)
async def test_helix_inserts_the_suggestion(
    home: Home, before: str, typed: str, said: str, after: str
) -> None:
    async with Endpoint(says(said)) as endpoint:
        terminal = helix(home, f"{before}⌷{after}", endpoint.url)
        try:
            await terminal.shows("⌷")
            terminal.keys(
                "%", "s", "⌷", "Enter", "c"
            )  # the mark goes, and its place is where text is inserted
            terminal.keys(*(["Enter"] if typed == "\n" else ["-l", typed]))
            await terminal.shows(" text\n", "C-x")  # the kind of the menu's entry
            terminal.keys("C-n")
            await terminal.shows("fimls (")
            terminal.keys("Enter", "Escape")
            await terminal.shows(
                "NOR"
            )  # an Escape with a key close behind it would be Alt and that key
            terminal.keys(":w", "Enter")
            await terminal.shows("written")
        finally:
            terminal.close()
        prompt = endpoint.bodies[-1]["prompt"]
    assert (home.path / "work/code.py").read_text(encoding="utf-8") == before + typed + said + after
    assert f"<fim_suffix>{after}<fim_middle>{before}{typed}" in prompt


@pytest.mark.asyncio
async def test_helix_chooses_a_model(home: Home, talkative_folder: Path) -> None:
    terminal = helix(home, "x = 1\n", "")
    try:
        await terminal.shows("x = 1")
        name = json.dumps({"name": str(talkative_folder)})
        kept = home.path / "config/settings.json"
        deadline = time.monotonic() + PATIENCE_S
        while not kept.exists():  # the server may not be up yet
            assert time.monotonic() < deadline, terminal.screen
            terminal.keys("-l", f":lsp-workspace-command fimls.chooseModel {name}")
            terminal.keys("Enter")
            await asyncio.sleep(1)
    finally:
        terminal.close()
    assert json.loads(kept.read_text()) == {"model": str(talkative_folder)}
