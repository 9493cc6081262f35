"""VS Code in the hands of someone new: nothing installed, one line of settings, the real server;
and the pictures."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from playwright.sync_api import Error

from tests.editors.canned_server import ANSWERS
from tests.editors.vscode import QUIET, Code, canned, start, stop_engines, tidy, wait_for

pytestmark = pytest.mark.editors
TOTAL = ANSWERS["total = "][0]
SUM = "def add(a, b):\n    return "
CONFIG = '''import json
from pathlib import Path


def load_config(path: Path) -> dict:
    """Read the settings."""
    with path.open(encoding="utf-8") as file:
        return json.load(file)


def save_config(path: Path, config: dict) -> None:
    """Write the settings."""
'''


def choose(code: Code, text: str) -> None:
    code.page.locator(".quick-input-list .monaco-list-row", has_text=text).first.click()


def test_without_a_server_it_offers_one_and_installs_it(tmp_path: Path) -> None:
    with start({}, QUIET) as code:
        assert code.wait_state("failed", 40) == "fimls, failed. fimls is not installed."
        toast = code.page.locator(".notifications-toasts")
        toast.get_by_text("does not find it").wait_for()
        assert len(code.notifications()) == 1
        code.command("Notifications: Clear All Notifications")  # sent away unanswered: a no as well
        toast.get_by_text("does not find it").wait_for(state="detached")
        path = code.open("a.py", "")
        code.type("total = 1")
        code.save(path, "total = 1")
        code.reload()  # it is remembered
        code.wait_state("failed", 40)
        code.page.wait_for_timeout(500)
        assert code.notifications() == []

        # A uv that writes down what it is asked for and puts the canned server where the real one
        # puts fimls.
        bin_folder, said = code.folder.parent / ".local" / "bin", tmp_path / "uv.txt"
        bin_folder.mkdir(parents=True)
        server = f"#!/bin/sh\nexec {' '.join(canned(tmp_path / 'heard.jsonl'))}\n"
        (bin_folder / "uv").write_text(
            f"#!/bin/sh\necho \"$@\" > {said}\ncat > {bin_folder}/fimls <<'END'\n{server}END\n"
            f"chmod +x {bin_folder}/fimls\n"
        )
        (bin_folder / "uv").chmod(0o755)
        code.status_item().click()
        choose(code, "Install the server")
        choose(code, "For the CPU")
        dialog = code.page.locator(".monaco-dialog-box")
        dialog.wait_for()
        assert "about 200 MB" in tidy(dialog.inner_text())
        assert not said.exists(), "nothing before the answer"
        dialog.locator(".monaco-button", has_text="Install").click()
        code.wait_state("ready", 30)
        shipped = r"tool install --force --torch-backend=cpu /.*/server/fimls-[0-9.]+-\S*\.whl\n"
        assert re.fullmatch(shipped, said.read_text())
        code.page.locator(".part.panel .codicon-check").first.wait_for()
        code.command("View: Toggle Panel Visibility")
        path = code.open("b.py", "")
        code.type("total = ")
        code.wait_ghost(TOTAL)


def picture_is_drawn(code: Code) -> bool:
    """In a page of "Get started"."""
    for frame in code.page.frames[1:]:
        with suppress(Error):  # frames come and go while it is made
            if frame.evaluate(
                "() => [...document.images].some(i => i.alt.startsWith('A sugg') && i.naturalWidth)"
            ):
                return True
    return False


def test_one_line_of_settings_is_enough(tmp_path: Path) -> None:
    """With VS Code's own defaults for all else."""
    with start({"fimls.serverCommand": canned(tmp_path / "heard.jsonl")}) as code:
        code.wait_state("ready", 40)
        path = code.open("a.py", "# é\n")
        code.type("def fib(n):")
        code.wait_ghost(ANSWERS["def fib(n):"][0])
        code.accept()
        code.save(path, "# é\ndef fib(n):" + ANSWERS["def fib(n):"][0])
        code.status_item().click()
        choose(code, "Get started")
        code.page.get_by_text("What leaves your machine").first.wait_for()
        code.page.get_by_text("What it is", exact=True).first.click()
        wait_for(lambda: picture_is_drawn(code), "the page's picture", 20)
        assert code.notifications() == []


def test_the_real_server() -> None:
    fimls = str(Path(sys.executable).parent / "fimls")
    with start({"fimls.serverCommand": [fimls, "lsp"]}, QUIET) as code:
        try:
            code.wait_state("ready", 90)
            code.press("Control+b")
            code.page.set_viewport_size({"width": 900, "height": 430})
            path = code.open("first.py", SUM)
            code.press("Alt+\\")  # by hand: waits for the model
            ghost = wait_for(code.ghost, "any ghost text", 60)
            code.accept()
            code.save(path, SUM + ghost)
            code.command("View: Close All Editors")
            path = code.open("config.py", CONFIG)
            code.type("    with path", delay=60)
            ghost = wait_for(code.ghost, "any ghost text", 30)
            assert path.read_text("utf-8") == CONFIG
            code.shot("ghost")
            code.accept()
            code.save(path, CONFIG + "    with path" + ghost)
            code.status_item().click()
            code.page.locator(".quick-input-list .monaco-list-row").first.wait_for()
            code.page.set_viewport_size({"width": 900, "height": 640})
            code.shot("menu")
            code.press("Escape")
            assert code.notifications() == []
        finally:
            stop_engines(code)
