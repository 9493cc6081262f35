"""Ghost text in VS Code: what is drawn, what is accepted, and what then stands in the file."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.editors.canned_server import ANSWERS
from tests.editors.vscode import Code, canned, heard, wait_for

pytestmark = pytest.mark.editors
FIB = ANSWERS["def fib(n):"][0]
MONEY = ANSWERS["money = "][0]
TOTAL = ANSWERS["total = "][0]
_names = (f"file{n}.py" for n in itertools.count())


@pytest.mark.parametrize(
    ("text", "typed", "suggestion"),
    [
        ("x = 1\n", "def fib(n):", FIB),
        ("# été 🎉 中文\ns = '🎉🎉'; ", "total = ", TOTAL),
        ("a = '🎉'\r\n\r\n", "def fib(n):", FIB.replace("\n", "\r\n")),
        ("\tif some:\n\tif tabs", ":", ANSWERS["\tif tabs:"][0]),
        ("cost = '🎉'\n", "money = ", MONEY),
        ("", "print(", ANSWERS["print("][0]),
    ],
    ids=["plain", "emoji", "crlf", "tabs", "dollar", "parenthesis"],
)
def test_accepting_gives_exactly_prefix_and_suggestion(
    code: Code, text: str, typed: str, suggestion: str
) -> None:
    path = code.open(next(_names), text)
    code.type(typed)
    code.wait_ghost(suggestion)
    assert path.read_bytes() == text.encode(), "an offer is not in the file"
    code.accept()
    code.save(path, text + typed + suggestion)
    # VS Code counts an emoji of a suggestion as one unit and leaves the cursor too far left, so not
    # after one.
    if max(suggestion) < "\U00010000":
        code.type("!")
        code.save(path, text + typed + suggestion + "!")


def test_what_stands_behind_the_cursor_stays_there(code: Code) -> None:
    path = code.open(next(_names), "x = call(on)")
    code.press("ArrowLeft")
    code.type("e")
    code.wait_ghost(", two")
    code.accept()
    code.save(path, "x = call(one, two)")


def test_accepting_tells_the_server_which(code: Code, log: Path) -> None:
    path, before = code.open(next(_names), ""), len(heard(log, "accepted"))
    code.type("total = ")
    code.wait_ghost(TOTAL)
    assert len(heard(log, "accepted")) == before
    code.accept()
    wait_for(lambda: len(heard(log, "accepted")) == before + 1, "fimls.didAccept")
    code.save(path, "total = " + TOTAL)


def test_word_by_word(code: Code) -> None:
    path = code.open(next(_names), "")
    code.type("total = ")
    code.wait_ghost(TOTAL)
    taken = ""
    for word in ("sum", "(", "price"):
        code.press("Control+ArrowRight")
        taken += word
        code.wait_ghost(TOTAL.removeprefix(taken))
    code.save(path, "total = " + taken)
    code.accept()
    code.save(path, "total = " + TOTAL)


def test_line_by_line(code: Code) -> None:
    path = code.open(next(_names), "")
    code.type("def fib(n):")
    code.wait_ghost(FIB)
    taken = ""
    for line in ("\n", "    a, b = 0, 1\n"):  # the rest of the cursor's line, and its end
        code.press("Alt+End")
        taken += line
        code.wait_ghost(FIB.removeprefix(taken))
        code.save(path, "def fib(n):" + taken)
    code.accept()  # where a line is to be indented, VS Code's Tab does that first
    code.wait_ghost(FIB.removeprefix(taken))
    code.accept()
    code.save(path, "def fib(n):" + FIB)


def test_escape_sends_it_away(code: Code) -> None:
    path = code.open(next(_names), "")
    code.type("total = ")
    code.wait_ghost(TOTAL)
    code.press("Escape")
    code.wait_ghost("")
    code.page.wait_for_timeout(400)
    assert code.ghost() == ""
    code.save(path, "total = ")


def test_alternatives(code: Code, log: Path) -> None:
    path = code.open(next(_names), "")
    code.type("def fib(n):")
    first, second, third = ANSWERS["def fib(n):"]
    code.wait_ghost(first)
    code.press("Alt+]")  # asks for the others
    code.wait_ghost(second)
    assert heard(log, "asked")[-1]["kind"] == 1, "by hand"
    code.press("Alt+]")
    code.wait_ghost(third)
    code.press("Alt+[")
    code.wait_ghost(second)
    code.accept()
    code.save(path, "def fib(n):" + second)


def test_asking_by_hand(code: Code, log: Path) -> None:
    code.open(next(_names), "total = ")
    code.page.wait_for_timeout(300)
    assert code.ghost() == "", "nobody typed"
    code.press("Alt+\\")
    code.wait_ghost(TOTAL)
    assert heard(log, "asked")[-1]["kind"] == 1
    code.press("Escape")
    code.command("Fimls: Suggest Here")
    code.wait_ghost(TOTAL)


def test_a_selected_entry_of_the_menu_is_told(code: Code, log: Path) -> None:
    """The languages' own completion menu is open: the server hears which entry is selected."""
    path = code.open("page.html", "")
    code.type("<ti")
    code.press("Control+ ")
    code.page.locator(".suggest-widget.visible .monaco-list-row.focused").first.wait_for(
        timeout=10_000
    )
    entry = wait_for(
        lambda: next((e for e in heard(log, "asked") if e["selected"]), None),
        "selectedCompletionInfo",
    )
    assert "ti" in entry["selected"]
    code.press("Escape", "Escape")
    code.save(path, "<ti")


def test_the_source_is_named_while_the_suggestion_is_on_offer(code: Code) -> None:
    path = code.open(next(_names), "")
    sentence = code.page.get_by_text("makes text of two 1.0 (BSD-3-Clause)")
    code.type("known = ")
    code.wait_ghost(ANSWERS["known = "][0])
    sentence.wait_for()
    code.accept()
    sentence.wait_for(state="hidden")
    code.save(path, "known = " + ANSWERS["known = "][0])


def test_the_sources_of_the_alternatives_are_named_too(code: Code) -> None:
    path = code.open(next(_names), "borrowed = ")
    sentence = code.page.get_by_text(
        "makes text of two 1.0 (BSD-3-Clause); makes text of three 1.0 (BSD-3-Clause)"
    )
    code.press("Alt+\\")
    code.wait_ghost("mine(here)")
    sentence.wait_for()
    code.press("Escape")
    code.save(path, "borrowed = ")


# What is typed, in pieces between which the typist does not pause. It goes along with suggestions
# and leaves them.
TYPED = [
    "total = sum(price * co",
    "st)\n",
    "def fib(n): return n\n",
    'money = f"${cost} or so"\n',
    "xs = []; total = 5\n",
    'print("héllo")\n',
    "known = text_of_two(here)\n",
    "for x in range(10): print(x, total)\n",
    "'é🎉' + 'done'\n",
    "print(a, b, c, d)\n",
]
# Each frame: the text of the cursor's line, with the ghost text in it, and the ghost text alone.
SAMPLE = """() => {
  const clean = e => e.textContent.replace(/\\u00a0/g, ' ').replace(/\\u200b/g, '');
  window.frames_ = [];
  window.sampler_ = setInterval(() => {
    const editor = document.querySelector('.editor-group-container.active .monaco-editor');
    const lines = [...editor.querySelectorAll('.view-lines:not(.suggest-preview-text .view-lines) > .view-line')]
      .filter(e => !e.closest('.suggest-preview-text'))
      .sort((a, b) => parseInt(a.style.top) - parseInt(b.style.top));
    const ghosts = lines.map(l => [...l.querySelectorAll('[class*=ghost-text-decoration]')].map(clean).join(''));
    const below = [...editor.querySelectorAll('.suggest-preview-text .view-line')].map(clean);
    window.frames_.push([lines.map(clean), ghosts, below]);
  }, 30);
}"""


def test_typing_fast_loses_no_key_and_sees_no_stale_text(code: Code, log: Path) -> None:
    path, before = code.open(next(_names), ""), len(heard(log))
    code.page.evaluate(SAMPLE)
    text = "".join(TYPED)
    assert len(text) >= 200
    code.type(text, delay=1000 / 15)
    code.page.wait_for_timeout(300)
    frames: list[Any] = code.page.evaluate(
        "() => { clearInterval(window.sampler_); return window.frames_; }"
    )
    code.save(path, text)
    new = heard(log)[before:]
    numbers = {
        event: sorted(entry["number"] for entry in new if entry["event"] == event)
        for event in ("asked", "answered", "cancelled")
    }
    asked = len(numbers["asked"])
    assert numbers["asked"] == sorted(numbers["answered"] + numbers["cancelled"]), (
        "one answer each, or cancelled"
    )
    shown = [frame for frame in frames if any(frame[1]) or any(frame[2])]
    print(f"{len(text)} keys, {len(frames)} frames, {len(shown)} with ghost text, {asked} requests")
    assert [entry["text"] for entry in new if entry["event"] == "change"][-1] == text, (
        "the server's mirror"
    )
    assert asked > 5 and len(frames) > 200 and len(shown) > 20
    for lines, ghosts, below in shown:
        for line, ghost in zip(lines, ghosts, strict=True):
            if ghost:
                assert _fits(line, ghost), (line, ghost)
        assert not any(below) or _belongs(lines, below), (lines, below)


def _fits(line: str, ghost: str) -> bool:
    """Whether the line, ghost text and all, is how the answer to something in it goes on."""
    at = line.index(ghost) if line.count(ghost) == 1 else line.rindex(ghost)
    typed = line[:at]
    for end, answers in ANSWERS.items():
        start = typed.rfind(end)
        if start >= 0 and typed[start + len(end) :] + ghost in [
            answer.split("\n")[0] for answer in answers
        ]:
            return True
    return False


def _belongs(lines: list[str], below: list[str]) -> bool:
    """Whether the lines of ghost text stand below the one line that they answer to."""
    wanted = [line.strip() for line in FIB.strip("\n").split("\n")]
    return [line.strip() for line in below if line.strip()] == wanted and any(
        line.rstrip() == "def fib(n):" for line in lines
    )


def test_composing_characters(code: Code) -> None:
    """An input method's text arrives exactly, with ghost text on the screen."""
    path = code.open(next(_names), "")
    code.type("total = ")
    code.wait_ghost(TOTAL)
    session = code.page.context.new_cdp_session(code.page)
    for part in ("に", "にほ", "にほん"):
        session.send(
            "Input.imeSetComposition",
            {"text": part, "selectionStart": len(part), "selectionEnd": len(part)},
        )
        code.page.wait_for_timeout(120)
    session.send("Input.insertText", {"text": "日本"})
    code.type(" + total = ")
    code.wait_ghost(TOTAL)
    code.accept()
    code.save(path, "total = 日本 + total = " + TOTAL)
    session.detach()


def test_settings_reach_the_running_server(code: Code, log: Path) -> None:
    before = len(heard(log, "settings")), len(heard(log, "started"))
    code.settings(serverCommand=canned(log), maxTokens=32)
    wait_for(lambda: len(heard(log, "settings")) > before[0], "didChangeConfiguration")
    assert len(heard(log, "started")) == before[1], "no new server for that"
    code.settings(serverCommand=canned(log), engine__device="cpu")
    wait_for(
        lambda: len(heard(log, "started")) > before[1],
        "a new server: the device is taken at its start",
    )
    code.wait_state("ready")
