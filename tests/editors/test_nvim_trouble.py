"""Starting in Neovim, and what can go wrong: servers that die or are not there, bad options, a bare
init.lua."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.editors.canned_server import ANSWERS
from tests.editors.nvim import (
    CANNED,
    GHOST,
    PLUGIN,
    Neovim,
    Opener,
    binary,
    environment,
    quoted,
    until,
)

pytestmark = pytest.mark.editors

TOTAL = ANSWERS["total = "][0]


def statusline(nvim: Neovim) -> str:
    return nvim.lua("return require('fimls').statusline()")


def test_states(open_nvim: Opener) -> None:
    events = (
        "vim.api.nvim_create_autocmd('User', {pattern='FimlsStatus', callback=function() "
        "_G.told = true end})"
    )
    nvim = open_nvim("a\n", canned="loads", before=events)
    until(lambda: statusline(nvim) == "fimls 40%")
    assert nvim.lua("return _G.told")
    nvim = open_nvim("a\n", canned="fails")
    until(lambda: statusline(nvim) == "fimls ✗")
    nvim.command("Fimls status")
    until(nvim.messages)
    assert "Set fimls.model to the folder of a model." in nvim.messages()[0]


def test_server_that_dies(open_nvim: Opener) -> None:
    nvim = open_nvim(
        "a\n", canned="dies", after="require('fimls.client').pauses = {20, 20, 20, 20, 20}"
    )
    text = "typing goes on, whatever becomes of the server. " * 6
    nvim.type("o")
    typed = ""
    for key in text:
        nvim.type("<Space>" if key == " " else key)
        typed += key
        time.sleep(0.03)
        if statusline(nvim) == "fimls ✗":
            break
    until(lambda: statusline(nvim) == "fimls ✗" or nvim.type("x<BS>"), 20)
    assert nvim.lines()[1] == typed
    assert (
        len(nvim.messages()) == 1
        and "the server ended 6 times in three minutes" in nvim.messages()[0]
    )
    assert len(open_nvim.log("started")) == 6, "once, and five times more"
    assert nvim.call("nvim_get_mode") == {"mode": "i", "blocking": False}
    asked = len(open_nvim.log("asked"))
    nvim.type("and on<Esc>")
    nvim.command("Fimls restart")
    until(lambda: len(open_nvim.log("started")) == 7)
    assert len(open_nvim.log("asked")) == asked


def test_server_that_dies_at_an_edit(open_nvim: Opener) -> None:
    nvim = open_nvim("# SLOW\n", after="require('fimls.client').pauses = {20, 20, 20, 20, 20}")
    nvim.type("1GV:Fimls fill<CR>")
    until(lambda: open_nvim.log("fill"))
    os.kill(open_nvim.log("started")[-1]["pid"], signal.SIGKILL)
    until(lambda: "fimls: the server ended; nothing was filled in" in nvim.messages())
    assert nvim.lines() == ["# SLOW"]
    until(lambda: len(open_nvim.log("started")) == 2)
    until(lambda: statusline(nvim) == "fimls ✓")
    nvim.type("1GV:Fimls fill<CR>")
    until(lambda: len(open_nvim.log("fill")) == 2)


def test_restart_of_a_server_that_hangs(open_nvim: Opener) -> None:
    nvim = open_nvim("a\n", name="a.txt", canned="deaf")
    nvim.type("ototal = ")
    until(lambda: open_nvim.log("asked"))
    nvim.type("<Esc>")
    nvim.command("Fimls restart")
    until(lambda: len(open_nvim.log("started")) == 2)
    until(lambda: statusline(nvim) == "fimls ✓")


def test_no_command(open_nvim: Opener) -> None:
    nvim = open_nvim("a\n", name="a.txt", setup="{ cmd = { 'no-such-fimls', 'lsp' } }", wait=None)
    until(lambda: statusline(nvim) == "fimls ✗")
    nvim.type("ototal = <Tab>x<Esc>")
    until(lambda: nvim.lines() == ["a", "total = \tx"])
    nvim.command("edit other.py | edit a.txt")
    time.sleep(0.1)
    assert len(nvim.messages()) == 1 and "no-such-fimls cannot be run" in nvim.messages()[0]
    nvim.command("checkhealth fimls")
    until(lambda: any("no-such-fimls cannot be run" in line for line in nvim.lines()))


def test_any_named_file(open_nvim: Opener) -> None:
    nvim = open_nvim("", name="notes.unheard-of")
    nvim.type("itotal = ")
    until(lambda: nvim.ghost() == TOTAL)
    nvim.type("<Esc>")
    nvim.command("enew | silent write second.py")
    nvim.type("itotal = ")
    until(lambda: nvim.ghost() == TOTAL)
    assert [e["uri"].rpartition("/")[2] for e in open_nvim.log("open")] == [
        "notes.unheard-of",
        "second.py",
    ]


def test_bad_options(open_nvim: Opener) -> None:
    options = (
        "{ cmd = COMMAND, filetypes = 'python', colour = 1, keymaps = { accept = 3, nxt = "
        "'x', next = false } }"
    )
    nvim = open_nvim(
        "a\n", setup=options, after="require('fimls.config').resolve({ cmd = 'fimls', colour = 1 })"
    )
    until(lambda: len(nvim.messages()) >= 5)
    assert sorted(nvim.messages()) == [
        'fimls: option cmd: expected a list of strings, not "fimls"; the default is used',
        'fimls: option filetypes: expected a list of strings, not "python"; the default is used',
        'fimls: option keymaps.accept: expected keys like "<Tab>" or false, not 3',
        "fimls: unknown option colour",
        "fimls: unknown option keymaps.nxt",
    ]
    nvim.type("ototal = ")
    until(lambda: nvim.ghost() == TOTAL)


def test_settings_reach_the_server(open_nvim: Opener) -> None:
    nvim = open_nvim(
        "a\n", setup="{ cmd = COMMAND, settings = { maxTokens = 9 }, keymaps = false }"
    )
    config = nvim.lua(
        "local c = vim.lsp.get_clients({name='fimls'})[1].config return {c.init_options, "
        "c.settings}"
    )
    assert config == [{"maxTokens": 9}, {"fimls": {"maxTokens": 9}}]
    assert nvim.call("nvim_buf_get_keymap", 0, "i") == []


def test_init_of_three_lines(open_nvim: Opener) -> None:
    init = open_nvim.folder / "init.lua"
    init.write_text(
        f"vim.opt.runtimepath:prepend({quoted(PLUGIN)})\n"
        f"require('fimls').setup({{ cmd = {{ {quoted(sys.executable)}, {quoted(CANNED)} }} }})\n"
        "vim.o.statusline = '%f %{v:lua.require(\"fimls\").statusline()}'\n"
    )
    nvim = open_nvim("a\n", init=init)
    until(lambda: nvim.frame().lines()[-2].rstrip() == "a.py fimls ✓")
    nvim.type("ototal = ")
    until(lambda: f"total = {TOTAL}" in nvim.frame().lines())
    assert nvim.lines() == ["a", "total = "]
    nvim.type("<Tab><Esc>:silent w<CR>")
    until(lambda: (open_nvim.folder / "a.py").read_text() == f"a\ntotal = {TOTAL}\n")


def enabled(open_nvim: Opener, config: str = "") -> Neovim:
    if open_nvim.version == "0.10":
        pytest.skip("vim.lsp.enable came with Neovim 0.11")
    init = open_nvim.folder / "init.lua"
    init.write_text(
        f"vim.opt.runtimepath:prepend({quoted(PLUGIN)})\n_G.said = {{}}\n"
        "vim.notify = function(message) table.insert(_G.said, message) end\n"
        f"vim.o.termguicolors = true vim.api.nvim_set_hl(0, 'FimlsGhostText', {{ fg = "
        f"'#{GHOST:06x}' }})\n"
        f"vim.lsp.config('fimls', {{ cmd = {{ {quoted(sys.executable)}, {quoted(CANNED)} }} }})\n"
        f"vim.lsp.enable('fimls')\n{config}\n"
    )
    return open_nvim("a\n", init=init)


def test_vim_lsp_enable(open_nvim: Opener) -> None:
    # Neovim's own renderer, switched on for all servers, leaves ours alone: nothing is drawn twice.
    nvim = enabled(
        open_nvim, "if vim.lsp.inline_completion then vim.lsp.inline_completion.enable() end"
    )
    until(lambda: statusline(nvim) == "fimls ✓")
    nvim.type("ototal = ")
    until(lambda: nvim.ghost() == TOTAL)
    time.sleep(0.4)
    assert nvim.frame().lines()[1] == f"total = {TOTAL}"
    assert len({e["version"] for e in open_nvim.log("asked")}) == len(open_nvim.log("asked"))
    nvim.type("<Tab>")
    until(lambda: nvim.lines()[1] == f"total = {TOTAL}")
    assert [e["experimental"] for e in open_nvim.log("initialized")] == [
        {"fimls": {"status": True, "offers": True}}
    ]
    nvim.command("Fimls restart")
    until(lambda: len(open_nvim.log("open")) == 2)
    nvim.type("<CR>total = ")
    until(lambda: nvim.ghost() == TOTAL)


def test_enabled_and_killed(open_nvim: Opener) -> None:
    nvim = enabled(open_nvim, "require('fimls.client').pauses = {20, 20, 20, 20, 20}")
    subprocess.run(["kill", "-9", str(open_nvim.log("started")[0]["pid"])], check=True)
    until(lambda: len(open_nvim.log("open")) == 2)
    nvim.type("ototal = ")
    until(lambda: nvim.ghost() == TOTAL)
    assert len(nvim.messages()) <= 1


def test_killed(open_nvim: Opener) -> None:
    nvim = open_nvim("a\n", after="require('fimls.client').pauses = {20, 20, 20, 20, 20}")
    nvim.command("edit b.py")
    until(lambda: len(open_nvim.log("open")) == 2)
    nvim.type("itotal = ")
    until(lambda: nvim.ghost() == TOTAL)
    subprocess.run(["kill", "-9", str(open_nvim.log("started")[0]["pid"])], check=True)
    until(lambda: len(open_nvim.log("started")) == 2)
    until(lambda: statusline(nvim) == "fimls ✓")
    nvim.type("<CR>total = ")
    until(lambda: nvim.ghost() == TOTAL)
    assert nvim.messages() == []


def test_health_and_help(open_nvim: Opener) -> None:
    nvim = open_nvim("a\n")
    nvim.command("checkhealth fimls")
    until(lambda: any("server command:" in line for line in nvim.lines()))
    report = "\n".join(nvim.lines())
    assert "ERROR" not in report and "state: ready" in report, report
    assert "no key is taken" in report
    # Tags are made in a copy: the plugin's folder stays as it is.
    doc = open_nvim.folder / "doc"
    doc.mkdir()
    text = (PLUGIN / "doc" / "fimls.txt").read_text()
    (doc / "fimls.txt").write_text(text)
    command = [
        binary(open_nvim.version),
        "--headless",
        "-u",
        "NONE",
        "-i",
        "NONE",
        "-c",
        f"helptags {doc}",
        "-c",
        "q",
    ]
    env = environment(open_nvim.folder)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == ""
    tags = (doc / "tags").read_text()
    for tag in ("fimls-options", ":Fimls", "fimls-keymaps", "fimls-status"):
        assert f"{tag}\t" in tags
    assert max(map(len, text.splitlines())) <= 78
