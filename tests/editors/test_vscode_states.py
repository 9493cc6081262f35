"""What VS Code says of the server's state, and that trouble with it never gets in the way of
typing."""

from __future__ import annotations

import itertools
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from playwright.sync_api import Error

from tests.editors.canned_server import ANSWERS
from tests.editors.vscode import Code, canned, heard, tidy, wait_for

pytestmark = pytest.mark.editors
TOTAL = ANSWERS["total = "][0]
_names = (f"state{n}.py" for n in itertools.count())


@pytest.fixture
def code(code: Code) -> Code:
    code.press("Escape")
    code.command("Notifications: Clear All Notifications")
    return code


def test_ready_and_its_menu(code: Code) -> None:
    assert code.wait_state("ready") == "fimls, ready. canned answers"
    code.open(next(_names), "")
    code.status_item().click()
    rows = code.page.locator(".quick-input-list .monaco-list-row")
    rows.first.wait_for()
    texts = [tidy(text) for text in rows.all_inner_texts()]
    for expected in (
        "Why this suggestion?",
        "Suggestions off",
        "Suggestions off for python",
        "Snooze for 5 minutes",
        "Choose the model…",
        "Doctor: how fast it is here, and what is wrong",
    ):
        assert expected in texts
    assert "Install the server…" not in texts
    code.press("Escape")


def test_snooze(code: Code) -> None:
    code.open(next(_names), "")
    code.status_item().click()
    code.page.locator(".quick-input-list .monaco-list-row", has_text="Snooze for 5 minutes").click()
    assert "snoozed" in code.wait_state("off")
    code.type("total = ")
    code.page.wait_for_timeout(500)
    assert code.ghost() == ""
    code.status_item().click()
    code.page.locator(".quick-input-list .monaco-list-row", has_text="End the snooze").click()
    code.wait_state("ready")


def test_why_is_shown_as_a_page(code: Code) -> None:
    code.open(next(_names), "")
    code.type("total = ")
    code.wait_ghost(TOTAL)
    code.command("Fimls: Why This Suggestion?")
    code.page.locator(".tab", has_text="Why this suggestion").first.wait_for()

    def page() -> bool:
        for frame in code.page.frames[1:]:
            with suppress(Error):  # frames come and go while it is made
                if "It is canned" in (frame.locator("body").text_content(timeout=500) or ""):
                    return True
        return False

    wait_for(page, "the page's text", 20)
    code.command("View: Close All Editors")


@pytest.mark.parametrize("kind", ["read-only", "two cursors", "untitled", "unknown language"])
def test_typing_is_undisturbed(code: Code, log: Path, kind: str) -> None:
    if kind == "untitled":
        path = code.folder / "untitled.txt"
        code.command("File: New Untitled Text File")
        code.page.locator(".tab.active", has_text="Untitled").first.wait_for()
        code.focus()
        code.type("total = ")
        code.wait_ghost(TOTAL)
        code.accept()
        assert not path.exists()
        wait_for(
            lambda: heard(log, "change")[-1]["text"] == "total = " + TOTAL, "the untitled text"
        )
        code.command("File: Revert File")
        code.press("Control+F4")
    elif kind == "unknown language":
        path = code.open("what.ever", "")
        code.type("total = ")
        code.wait_ghost(TOTAL)
        code.accept()
        code.save(path, "total = " + TOTAL)
    elif kind == "two cursors":
        path = code.open(next(_names), "a\nb\n", at_end=False)
        code.press("Control+Home", "End", "Control+Shift+ArrowDown")
        code.page.locator(".cursors-layer .cursor").nth(1).wait_for()
        code.type("; total = 1")
        code.press("Escape", "Escape")
        code.save(path, "a; total = 1\nb; total = 1\n")
    else:
        path = code.open(next(_names), "total = ")
        code.command("File: Set Active Editor Read-only in Session")
        code.type("xyz")
        code.press("Alt+\\", "Tab")
        code.page.wait_for_timeout(500)
        assert code.ghost() == ""
        code.on_disk(path, "total = ")
        code.press("Escape")
    assert code.notifications() == []


def test_a_server_that_failed_or_loads(code: Code, log: Path) -> None:
    code.settings(serverCommand=canned(log, "fails"))
    assert "Set fimls.model" in code.wait_state("failed")
    path = code.open(next(_names), "")
    code.type("total = 1")
    code.save(path, "total = 1")
    code.settings(serverCommand=canned(log, "loads"))
    assert "40%" in code.wait_state("loading 40%")
    assert code.status().endswith("fimls 40%")
    code.type("2")
    code.save(path, "total = 12")
    assert code.notifications() == []


def test_a_server_that_does_not_start(code: Code, log: Path) -> None:
    """What it last wrote says why."""
    code.settings(serverCommand=[sys.executable, "-c", "import no_such_module"])
    assert "No module named 'no_such_module'" in code.wait_state("failed")
    wait_for(lambda: len(code.notifications()) == 1, "one message")
    code.page.locator(".notifications-toasts .monaco-button", has_text="Show Log").wait_for()
    code.command("Notifications: Clear All Notifications")
    code.settings(serverCommand=["/no/such/program"])
    wait_for(lambda: "/no/such/program" in code.wait_state("failed"), "ENOENT")
    assert len(code.notifications()) <= 1


def test_a_command_that_never_answers_gives_way_to_the_next(code: Code, log: Path) -> None:
    """A change of the setting is enough, long before the start is given up. A child of the command
    holds its pipes."""
    silent = f"sleep 60 & exec {sys.executable} -c 'import time; time.sleep(300)'"
    code.settings(serverCommand=["bash", "-c", silent])
    code.wait_state("loading. The server starts.")
    code.page.wait_for_timeout(1500)
    code.wait_state("loading. The server starts.")
    code.settings(serverCommand=canned(log))
    code.wait_state("ready", 10)
    assert code.notifications() == []


def test_a_server_that_is_deaf_is_started_again(code: Code, log: Path) -> None:
    """It reads no more, but lives and keeps its output open."""
    code.settings(serverCommand=canned(log, "deaf"))
    before = len(heard(log, "started"))
    wait_for(lambda: len(heard(log, "started")) > before, "a start")
    code.wait_state("ready")
    path = code.open(next(_names), "")
    code.type("abcdefghijklmnopqrstuvwxyz", delay=60)
    wait_for(lambda: len(heard(log, "started")) > before + 1, "another start")
    first = heard(log, "started")[before]["pid"]
    wait_for(lambda: not Path(f"/proc/{first}").exists(), "the end of the first", 5)
    code.save(path, "abcdefghijklmnopqrstuvwxyz")
    code.settings(serverCommand=canned(log))
    code.wait_state("ready")


def test_a_server_that_dies_at_each_request(code: Code, log: Path) -> None:
    before = len(heard(log, "started"))
    code.settings(serverCommand=canned(log, "dies"))
    wait_for(lambda: len(heard(log, "started")) > before, "a start")
    code.wait_state("ready")
    path, typed = code.open(next(_names), ""), ""
    for n in range(60):
        piece = f"x{n} = {n}; "
        code.type(piece)
        typed += piece
        assert len(code.notifications()) <= 1
        if code.page.locator("a[aria-label^='fimls, failed']").count():
            break
        code.page.wait_for_timeout(150)
    assert "ended 5 times" in code.wait_state("failed", 5)
    assert len(heard(log, "started")) - before == 5
    code.type("end")
    code.save(path, typed + "end")
    assert len(code.notifications()) == 1
    code.settings(serverCommand=canned(log))  # a change of the command is a fresh start
    code.wait_state("ready")
    code.type("\ntotal = ")
    code.wait_ghost(TOTAL)


def test_restart_and_switches(code: Code, log: Path) -> None:
    code.open(next(_names), "")
    before = len(heard(log, "started"))
    code.command("Fimls: Restart the Server")
    wait_for(lambda: len(heard(log, "started")) == before + 1, "a new server")
    code.wait_state("ready")
    changes = len(heard(log, "settings"))
    code.command("Fimls: Suggestions On or Off for This Language")
    wait_for(lambda: len(heard(log, "settings")) > changes, "didChangeConfiguration")
    code.status_item().click()
    code.page.locator(
        ".quick-input-list .monaco-list-row", has_text="Suggestions on for python"
    ).click()
    wait_for(lambda: len(heard(log, "settings")) > changes + 1, "didChangeConfiguration")
    assert code.notifications() == []
