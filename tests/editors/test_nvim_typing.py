"""Fast typing in Neovim: no key lost, and never a ghost that does not belong behind what was
typed."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import pytest

from tests.editors.canned_server import ANSWERS
from tests.editors.nvim import (
    VERSIONS,
    Frame,
    Log,
    Tmux,
    binary,
    environment,
    ghost_of,
    init_lua,
    opener,
    until,
)

pytestmark = pytest.mark.editors

PACE_S = 1 / 15
TEXT = (
    "total = sum(price * count for price, count in items)\n"
    "total = x; print(1)\n"
    'money = f"${cost} {rest} ${1:name}"\n'
    'print("héllo wörld 🎉")\n'
    "call(one, two) # known = text_of_three\n"
    "total = sum(p) # money = none\n"
    "end"
)
PLAIN = "vim.cmd('filetype indent off') vim.o.autoindent = false"


def right(before: str, ghost: str) -> bool:
    """Whether the ghost is what the server suggests behind that line."""
    for end, texts in ANSWERS.items():
        at = before.rfind(end)
        if at >= 0 and before[at + len(end) :] + ghost == texts[0].lstrip("\n"):
            return True
    return False


def test_the_text_is_200_characters() -> None:
    assert 200 <= len(TEXT) <= 210


def test_embedded(tmp_path: Path) -> None:
    """All versions side by side: it takes as long as typing takes."""
    with contextlib.ExitStack() as stack:
        openers = {}
        for version in VERSIONS:
            folder = tmp_path / version
            folder.mkdir()
            openers[version] = stack.enter_context(opener(version, folder))
        nvims = {v: made("", name="a.txt", after=PLAIN) for v, made in openers.items()}
        clock = time.monotonic()
        for i, key in enumerate("i" + TEXT):
            for nvim in nvims.values():
                nvim.type({"\n": "<CR>", "<": "<lt>", " ": "<Space>"}.get(key, key))
            time.sleep(max(0.0, clock + (i + 1) * PACE_S - time.monotonic()))
        for version, nvim in nvims.items():
            until(lambda nvim=nvim: "\n".join(nvim.lines()) == TEXT)
            check(nvim.frames(), openers[version].log)


def check(frames: list[Frame], log: Log) -> None:
    shown = [(before, text) for frame in frames for _, before, text in frame.ghost()]
    assert len(set(shown)) > 60, "most of what was typed was typed through"
    assert not [(b, t) for b, t in shown if not right(b, t)]
    asked = log("asked")
    typed_through = sum(len(ANSWERS[end][0]) for end in ("total = ", "money = ", "print("))
    assert len(asked) <= len(TEXT) - typed_through + 10, "none while typing through"
    wanted = {ANSWERS[end][0] for end in ("total = ", "money = ", "print(", "call(one", "known = ")}
    assert {e["text"] for e in log("shown")} >= wanted, "answers came in time, and were drawn"


def test_terminal(tmp_path: Path) -> None:
    with opener("0.12", tmp_path) as made:
        (tmp_path / "a.txt").write_text("")
        init = init_lua(tmp_path, "{ cmd = COMMAND }", after=PLAIN)
        command = [binary("0.12"), "-u", str(init), "-n", "-i", "NONE", str(tmp_path / "a.txt")]
        terminal = Tmux(tmp_path, command, environment(tmp_path))
        try:
            until(lambda: made.log("open"))
            seen: list[str] = []
            stop = threading.Event()

            def watch() -> None:
                while not stop.wait(0.03):
                    seen.append(terminal.screen())

            watcher = threading.Thread(target=watch)
            watcher.start()
            terminal.keys("i")
            clock = time.monotonic()
            for i, key in enumerate(TEXT):
                if key == "\n":
                    terminal.keys("Enter")
                else:
                    terminal.text(key if key != ";" else "\\;")
                time.sleep(max(0.0, clock + (i + 1) * PACE_S - time.monotonic()))
            time.sleep(0.3)
            stop.set()
            watcher.join()
            terminal.keys("Escape", ":w", "Enter")
            until(lambda: (tmp_path / "a.txt").read_text() == TEXT + "\n")
        finally:
            terminal.close()
    assert len(seen) > 100
    shown = [row for screen in dict.fromkeys(seen) for row in ghost_of(screen)]
    assert len(shown) > 30
    assert not [(b, t) for b, t in shown if not right(b, t)]
