"""Fill-in-the-middle edits in Neovim: preview, applied, rejected, cancelled; and the other
commands."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.editors.canned_server import FILLED
from tests.editors.nvim import Neovim, Shared, until

pytestmark = pytest.mark.editors

FILE = "def f():\n    return 1\n\n\nx = 'é🎉' + f()\n"


def floating(nvim: Neovim) -> list[str]:
    """The lines of the preview, empty if there is none."""
    return nvim.lua("""
        for _, win in ipairs(vim.api.nvim_list_wins()) do
          if vim.api.nvim_win_get_config(win).relative ~= '' then
            return vim.api.nvim_buf_get_lines(vim.api.nvim_win_get_buf(win), 0, -1, true)
          end
        end
        return {}""")


def agree(nvim: Neovim, key: str = "y") -> None:
    """Types the key when the preview has been on the screen for a moment: before, it counts as
    meant for the text."""
    until(lambda: floating(nvim))
    time.sleep(0.3)
    nvim.type(key)


@pytest.mark.parametrize("key", ["y", "<CR>"])
def test_selected_lines(shared_nvim: Shared, key: str) -> None:
    nvim = shared_nvim(FILE)
    nvim.type("2GV:Fimls fill<CR>")
    until(lambda: floating(nvim))
    changes = [line for line in floating(nvim) if line[0] in "+-"]
    assert changes == ["-    return 1", "+    return 42"]
    until(lambda: "Fill in: selection" in "\n".join(nvim.frame().lines()))
    agree(nvim, key)
    expected = FILE.replace("return 1", "return 42").splitlines()
    until(lambda: nvim.lines() == expected)
    assert not floating(nvim)
    nvim.type("u")
    until(lambda: nvim.lines() == FILE.splitlines())
    nvim.type("<C-r>")
    until(lambda: nvim.lines() == expected)
    until(
        lambda: [e["text"] for e in shared_nvim.log("change")][-1:] == ["\n".join(expected) + "\n"]
    )


@pytest.mark.parametrize("key", ["n", "q", "<Esc>"])
def test_rejected(shared_nvim: Shared, key: str) -> None:
    nvim = shared_nvim(FILE)
    nvim.type("2GV:Fimls fill<CR>")
    until(lambda: floating(nvim))
    nvim.type(key)
    until(lambda: not floating(nvim))
    assert nvim.lines() == FILE.splitlines()
    assert not nvim.lua("return vim.bo.modified")
    assert nvim.messages() == []


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("5Gf'lv:Fimls fill<CR>", "x = '    return 42\n🎉' + f()"),  # é
        ("5Gf'llvl:Fimls fill<CR>", "x = 'é    return 42\n + f()"),  # 🎉'
        ("5Gf+v$:Fimls fill<CR>", "x = 'é🎉'     return 42"),
        ("5Gf'lmalmb:Fimls fill a b<CR>", "x = '    return 42\n🎉' + f()"),
        ("5Gf'lmalmb:Fimls fill b a<CR>", "x = '    return 42\n🎉' + f()"),
        ("5G0:Fimls body<CR>", "    return 'a body'\nx = 'é🎉' + f()"),
        ("5G0:Fimls docstring<CR>", '    """A docstring."""\nx = \'é🎉\' + f()'),
        ("gg:5Fimls fill<CR>", "    return 42"),
    ],
)
def test_ranges(shared_nvim: Shared, keys: str, expected: str) -> None:
    nvim = shared_nvim(FILE)
    nvim.type(keys)
    agree(nvim)
    until(lambda: nvim.lines()[4:] == expected.split("\n"))
    nvim.type("u")
    until(lambda: nvim.lines() == FILE.splitlines())


@pytest.mark.parametrize("cancel", ["<C-c>", ":Fimls cancel<CR>"])
def test_cancelled(shared_nvim: Shared, cancel: str) -> None:
    text = "# SLOW\nx = 1\n"
    nvim = shared_nvim(text)
    nvim.command("nnoremap <buffer> <C-c> ix<Esc>")
    nvim.type("2GV:Fimls fill<CR>")
    until(lambda: shared_nvim.log("fill"))
    until(lambda: "fimls fills in …" in nvim.frame().lines()[1])
    assert nvim.lua("return require('fimls').statusline()") == "fimls fills in"
    nvim.type(cancel)
    until(lambda: shared_nvim.log("fill cancelled"))
    until(lambda: nvim.frame().lines()[1] == "x = 1")
    assert nvim.lines() == text.splitlines()
    assert nvim.messages() == ["fimls: cancelled"]
    assert nvim.lua("return require('fimls').statusline()") == "fimls ✓"
    nvim.type("<C-c>")  # the buffer's own mapping is back
    until(lambda: nvim.lines()[1] == "xx = 1")


def test_nothing_to_fill(shared_nvim: Shared) -> None:
    nvim = shared_nvim("# NOTHING\n")
    nvim.type(":Fimls body<CR>")
    until(nvim.messages)
    assert nvim.messages() == ["fimls: There is no function here to fill."]
    assert nvim.lines() == ["# NOTHING"]


@pytest.mark.parametrize("early", [True, False])
def test_text_that_changed_meanwhile(shared_nvim: Shared, early: bool) -> None:
    nvim = shared_nvim(FILE)
    nvim.type("2GV:Fimls fill<CR>")
    until(lambda: shared_nvim.log("fill") if early else floating(nvim))
    home = nvim.lua("return vim.fn.bufnr('a.py')")
    nvim.call("nvim_buf_set_lines", home, 0, 0, True, ["# new"])
    if not early:
        agree(nvim)
    until(nvim.messages)
    assert nvim.messages() == ["fimls: the text has changed meanwhile; nothing was filled in"]
    assert nvim.lines() == ["# new", *FILE.splitlines()]


def test_code_action(shared_nvim: Shared) -> None:
    nvim = shared_nvim(FILE)
    nvim.type("5G0")
    nvim.lua("""
        vim.lsp.buf.code_action({ apply = true, filter = function(action)
          return action.kind == 'refactor.rewrite.fimls.docstring'
        end })""")
    agree(nvim)
    until(lambda: nvim.lines()[4] == FILLED["docstring"].rstrip("\n"))
    until(lambda: [e["kind"] for e in shared_nvim.log("fill")] == ["docstring"])


def test_nobody_is_torn_from_typing(shared_nvim: Shared) -> None:
    """An edit that is ready while the user is elsewhere, or types, waits; and a hasty key is no
    consent."""
    nvim = shared_nvim(FILE)
    nvim.type("2GV:Fimls fill<CR>")
    nvim.command("new")
    nvim.type("iyyy")
    until(
        lambda: (
            nvim.messages() == ["fimls: an edit is ready; it is shown in its buffer in normal mode"]
        )
    )
    assert not floating(nvim) and nvim.lines() == ["yyy"]
    nvim.type("<Esc>")
    nvim.command("quit!")
    until(lambda: floating(nvim) or nvim.call("nvim_get_mode")["mode"] != "n")
    agree(nvim)
    until(lambda: nvim.lines() == FILE.replace("return 1", "return 42").splitlines())

    nvim = shared_nvim(FILE)
    nvim.lua("""
        local open = vim.api.nvim_open_win
        vim.api.nvim_open_win = function(...)
          vim.api.nvim_open_win = open
          vim.api.nvim_feedkeys('y', 't', false)
          return open(...)
        end""")
    nvim.type("2GV:Fimls fill<CR>")
    until(lambda: floating(nvim))
    time.sleep(0.1)
    assert floating(nvim)
    nvim.type("n")
    until(lambda: not floating(nvim))
    assert nvim.lines() == FILE.splitlines()


def test_writing_the_file_meanwhile_is_no_change(shared_nvim: Shared) -> None:
    nvim = shared_nvim(FILE)
    nvim.type("2GV:Fimls fill<CR>")
    until(lambda: shared_nvim.log("fill"))
    nvim.command("silent write")
    agree(nvim)
    until(lambda: nvim.lines() == FILE.replace("return 1", "return 42").splitlines())


def commands(nvim: Neovim, line: str) -> Any:
    return nvim.call("nvim_exec2", line, {"output": True})["output"]


def test_status_and_why(shared_nvim: Shared) -> None:
    nvim = shared_nvim("a\n")
    nvim.command("Fimls status")
    until(nvim.messages)
    assert nvim.messages()[0].startswith(
        "fimls: ready (model canned): canned answers\nserver 0.1; shown "
    )
    nvim.command("Fimls why")
    until(lambda: nvim.lines()[0] == "# Why this suggestion?")
    assert nvim.lua("return vim.bo.filetype .. vim.bo.buftype") == "markdownnofile"
    nvim.type("q")
    until(lambda: nvim.lines() == ["a"])
    nvim.command("Fimls nonsense")
    assert nvim.messages()[-1].startswith(
        "fimls: no such command: nonsense. There are: body, cancel, docstring, doctor, fill"
    )
    assert nvim.call("nvim_call_function", "getcompletion", ["Fimls s", "cmdline"]) == [
        "snooze",
        "status",
    ]
    nvim.command("Fimls log")
    until(lambda: nvim.lua("return vim.api.nvim_buf_get_name(0)").endswith("lsp.log"))


def test_snooze(shared_nvim: Shared) -> None:
    nvim = shared_nvim("a\n")
    nvim.command("Fimls snooze 5")
    until(lambda: nvim.lua("return require('fimls').statusline()") == "fimls off")
    nvim.type("ototal = ")
    until(lambda: shared_nvim.log("asked"))
    time.sleep(0.1)
    assert nvim.ghost() == ""
    nvim.command("Fimls snooze 0")
    until(lambda: nvim.lua("return require('fimls').statusline()") == "fimls ✓")
    assert nvim.messages() == [
        "fimls: no automatic suggestions for 5 minutes",
        "fimls: awake again",
    ]


def test_restart(shared_nvim: Shared) -> None:
    nvim = shared_nvim("a\n")
    nvim.command("Fimls restart")
    nvim.type("ototal = ")  # at once: typing waits for nothing
    until(lambda: len(shared_nvim.log("open")) == 2)
    until(nvim.ghost)
    assert len(shared_nvim.log("started")) == 1
    assert nvim.lua("return require('fimls').statusline()") == "fimls ✓"
    assert nvim.messages() == []
