"""Fill-in-the-middle edits in VS Code: asked, cancelled, shown, made, undone."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.editors.vscode import SIZE, Code, heard, wait_for

pytestmark = pytest.mark.editors
TEXT = "# é 🎉\ndef answer():\n    x = 1\n    return x\n\nprint(answer())\n"
FILLED = TEXT.replace("    x = 1\n    return x\n", "    return 42\n")
DEEP_THOUGHT = """def answer(question: str) -> int:
    thoughts = 0
    for letter in question:
        if letter.isalpha():
            thoughts += ord(letter)
    return thoughts % 100


if __name__ == "__main__":
    print(answer("life and everything"))
"""
_names = (f"edit{n}.py" for n in itertools.count())


def open_and_select(code: Code, text: str = TEXT) -> Path:
    """A file with the two lines of the body selected."""
    path = code.open(next(_names), text, at_end=False)
    code.press("Control+Home", "ArrowDown", "ArrowDown", "Shift+ArrowDown", "Shift+ArrowDown")
    return path


def wait_preview(code: Code) -> None:
    code.page.locator(".tab.active", has_text="Fill in").wait_for(timeout=10_000)
    code.page.locator(
        ".monaco-diff-editor .char-insert, .monaco-diff-editor .line-insert"
    ).first.wait_for()
    code.focus()


def test_an_edit_is_shown_made_and_undone_in_one_step(code: Code) -> None:
    path = open_and_select(code)
    code.command("Fimls: Fill in the Selection")
    wait_preview(code)
    assert code.page.locator(".monaco-diff-editor", has_text="return\u00a042").count() == 1
    assert path.read_text("utf-8") == TEXT, "nothing is made yet"
    code.page.locator(".editor-actions [aria-label^='Apply']").click()
    code.page.locator(".monaco-diff-editor").wait_for(state="detached")
    code.focus()
    code.save(path, FILLED)
    code.press("Control+z")
    code.save(path, TEXT)
    # That of the progress goes by itself, after a moment.
    wait_for(lambda: code.notifications() == [], "the notifications to go")


def test_a_discarded_edit_changes_nothing(code: Code) -> None:
    path = open_and_select(code)
    code.command("Fimls: Fill in the Selection")
    wait_preview(code)
    code.press("Escape")
    code.page.locator(".monaco-diff-editor").wait_for(state="detached")
    code.focus()
    code.press("Control+End")
    code.type("#")
    code.save(path, TEXT + "#")


def test_an_edit_of_a_text_that_changed_is_not_made(code: Code) -> None:
    path = open_and_select(code)
    code.command("Fimls: Fill in the Selection")
    wait_preview(code)
    code.page.locator(".monaco-diff-editor .editor.original .view-line").last.click()
    code.type("new = 1")
    code.page.locator(".monaco-diff-editor .editor.modified .view-line").last.click()
    code.press("Control+Enter")
    code.page.get_by_text("The text has changed in the meantime").first.wait_for()
    code.focus()
    code.save(path, TEXT + "new = 1")
    code.command("Notifications: Clear All Notifications")


def test_cancelling_leaves_everything_as_it_was(code: Code, log: Path) -> None:
    path = open_and_select(code, TEXT + "# SLOW\n")
    code.command("Fimls: Fill in the Selection")
    wait_for(lambda: heard(log, "fill"), "fimls/fill")
    code.page.locator(".notifications-toasts", has_text="Filling in the selection").wait_for()
    code.page.locator(".notifications-toasts .monaco-button", has_text="Cancel").click()
    wait_for(lambda: heard(log, "fill cancelled"), "$/cancelRequest", 5)
    code.page.locator(".notifications-toasts", has_text="Filling in").wait_for(state="hidden")
    code.page.wait_for_timeout(300)
    assert code.page.locator(".monaco-diff-editor").count() == 0
    assert code.notifications() == []
    code.press("Control+1", "Control+End")
    code.type("#")
    code.save(path, TEXT + "# SLOW\n#")


def test_typing_goes_on_while_an_edit_is_written_and_the_edit_is_dropped(
    code: Code, log: Path
) -> None:
    path, before = open_and_select(code, TEXT + "# SLOW\n"), len(heard(log, "fill"))
    code.command("Fimls: Fill in the Selection")
    wait_for(lambda: len(heard(log, "fill")) > before, "fimls/fill")
    code.press("Control+1", "Control+End")
    code.type("more = 2")
    code.save(path, TEXT + "# SLOW\nmore = 2")
    code.page.locator(".notifications-toasts .monaco-button", has_text="Cancel").click()
    code.page.locator(".notifications-toasts", has_text="Filling in").wait_for(state="hidden")


@pytest.mark.parametrize(
    ("title", "line"), [("Write the Body", "'a body'"), ("Write the Docstring", "docstring")]
)
def test_body_and_docstring(code: Code, log: Path, title: str, line: str) -> None:
    open_and_select(code)
    code.command(f"Fimls: {title}")
    wait_preview(code)
    assert heard(log, "fill")[-1]["kind"] in title.lower()
    assert line in code.page.locator(".monaco-diff-editor .editor.modified").inner_text().replace(
        "\u00a0", " "
    )
    code.press("Escape")
    code.page.locator(".monaco-diff-editor").wait_for(state="detached")


def test_the_gap_between_two_cursors(code: Code) -> None:
    path = code.open(next(_names), "def f():\n    return 1\n", at_end=False)
    code.press("Control+Home", "Control+Shift+ArrowDown")  # a cursor in each of two lines
    code.page.locator(".cursors-layer .cursor").nth(1).wait_for()
    code.command("Fimls: Fill in the Selection")
    wait_preview(code)
    code.press("Control+Enter")
    code.page.locator(".monaco-diff-editor").wait_for(state="detached")
    code.focus()
    code.save(path, "    return 42\n    return 1\n")


def test_code_actions_go_the_same_way(code: Code, log: Path) -> None:
    path = open_and_select(code)
    code.press("Control+.")
    code.page.locator(".action-widget", has_text="Fill in anew: selection").wait_for(timeout=10_000)
    code.press("Enter")
    wait_preview(code)
    code.press("Control+Enter")
    code.page.locator(".monaco-diff-editor").wait_for(state="detached")
    code.focus()
    code.save(path, FILLED)
    assert heard(log, "fill command") == [], "the client takes the command itself"


def test_what_cannot_be_filled_is_said_in_the_servers_words(code: Code) -> None:
    path = open_and_select(code, TEXT + "# NOTHING\n")
    code.command("Fimls: Write the Body")
    code.page.get_by_text("fimls: There is no function here to fill.").first.wait_for()
    wait_for(lambda: len(code.notifications()) == 1, "that message alone")
    code.command("Notifications: Clear All Notifications")
    code.on_disk(path, TEXT + "# NOTHING\n")


def test_a_picture_of_an_edit(code: Code) -> None:
    code.command("View: Close All Editors")
    code.page.set_viewport_size({"width": 1100, "height": 440})
    code.open("deep_thought.py", DEEP_THOUGHT, at_end=False)
    code.press("Control+Home", "ArrowDown", *["Shift+ArrowDown"] * 5)
    code.command("Fimls: Fill in the Selection")
    wait_preview(code)
    code.page.locator(".notifications-toasts", has_text="Filling in").wait_for(state="hidden")
    code.shot("edit")
    code.press("Escape")
    code.page.set_viewport_size(SIZE)
