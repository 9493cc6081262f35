"""Neovim: keys that others want too, completion menus, and buffers where nothing is to be
suggested."""

from __future__ import annotations

import time

import pytest

from tests.editors.canned_server import ANSWERS
from tests.editors.nvim import Shared, until

pytestmark = pytest.mark.editors

TOTAL = ANSWERS["total = "][0]
UNMAP = "pcall(vim.keymap.del, 'i', '<Tab>')"


@pytest.mark.parametrize(
    ("mapping", "written"),
    [
        ("", "x\ty"),
        ("vim.keymap.set('i', '<Tab>', 'plain…')", "xplain…y"),
        (
            "vim.keymap.set('i', '<Tab>', function() return '<lt>expr>' end, {expr = true})",
            "x<expr>y",
        ),
        (
            "vim.keymap.set('i', '<Tab>', function() vim.api.nvim_put({'called'}, 'c', false, "
            "true) end)",
            "xcalledy",
        ),
        ("vim.cmd([[inoremap <expr> <Tab> pumvisible() ? '<C-n>' : 'vim…<Left>']])", "xvimy…"),
        (
            r"""vim.cmd([[inoremap <expr> <Tab> pumvisible() ? "\<C-n>" : "vim…\<Left>"]])""",
            "xvimy…",
        ),
        ("vim.cmd('imap <Tab> <Plug>(other)') vim.cmd('inoremap <Plug>(other) plug')", "xplugy"),
        ("vim.cmd('imap <Tab> <Tab>again')", "x\tagainy"),
        (
            "vim.api.nvim_create_autocmd('BufReadPost', {once = true, command = 'inoremap "
            "<buffer> <Tab> own'})",
            "xowny",
        ),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_tab_falls_through(shared_nvim: Shared, mapping: str, written: str, late: bool) -> None:
    late = late and "BufRead" not in mapping
    given = {"lua": mapping} if late else {"first": f"{UNMAP} {mapping}"}
    nvim = shared_nvim("a\n", name="a.txt", **given)
    nvim.type("ox<Tab>y")
    until(lambda: nvim.lines()[1] == written)
    nvim.type("<End><CR>total = ")
    until(lambda: nvim.ghost() == TOTAL)
    nvim.type("<Tab>")
    until(lambda: nvim.lines()[2] == f"total = {TOTAL}")
    nvim.lua(UNMAP)


def test_an_alt_key_with_nothing_to_do_is_escape_and_the_key(shared_nvim: Shared) -> None:
    nvim = shared_nvim("ab cd\n", name="a.txt")
    nvim.type("A<M-w>x")  # w goes nowhere at the end, and x takes the last letter
    until(lambda: nvim.lines() == ["ab c"])
    assert nvim.call("nvim_get_mode")["mode"] == "n"


def test_a_buffer_that_was_unloaded_gets_its_keys_again(shared_nvim: Shared) -> None:
    nvim = shared_nvim("a\n", name="a.txt")
    file = nvim.call("nvim_buf_get_name", 0)
    nvim.command("silent bdelete")
    shared_nvim.log.forget()
    nvim.command(f"silent edit {file}")
    until(lambda: shared_nvim.log("open"))
    nvim.type("ototal = ")
    until(lambda: nvim.ghost() == TOTAL)
    nvim.type("<Tab>")
    until(lambda: nvim.lines()[1] == f"total = {TOTAL}")


@pytest.mark.parametrize("mapped", [True, False])
def test_completion_menu(shared_nvim: Shared, mapped: bool) -> None:
    menu = "vim.cmd([[inoremap <expr> <Tab> pumvisible() ? '<C-n>' : '<Tab>']])" if mapped else ""
    nvim = shared_nvim("total = 1\ntotally = 2\n\n", name="a.txt", first=f"{UNMAP} {menu}")

    def menu_is_open() -> bool:
        return bool(nvim.call("nvim_call_function", "pumvisible", []))

    nvim.type("Gotot<C-n>")
    until(menu_is_open)
    if mapped:
        nvim.type("<C-p><Tab>")  # back to what was typed, and to the first entry
        until(lambda: nvim.lines()[-1] in ("total", "totally"))
        assert menu_is_open()
    asked = len(shared_nvim.log("asked"))
    nvim.type("<C-n><C-n><C-n>")
    time.sleep(0.1)
    assert nvim.ghost() == "" and len(shared_nvim.log("asked")) == asked, "the menu has the word"
    nvim.type("<C-e><C-w>total = ")
    until(lambda: nvim.ghost() == TOTAL)
    # A menu with nothing chosen and a suggestion beside it: Tab is the menu's if it was mapped,
    # else ours.
    nvim.type("<Esc>")
    nvim.lua("vim.bo.completefunc, vim.o.completeopt = 'v:lua.words', 'menuone,noselect'")
    nvim.lua("function _G.words(find) return find == 1 and 8 or { 'sum(1)', 'sum(2)' } end")
    nvim.type("A<C-x><C-u>")
    until(menu_is_open)
    until(lambda: nvim.ghost()[:8] == TOTAL[:8])
    nvim.type("<Tab>")
    until(lambda: nvim.lines()[-1] == ("total = sum(1)" if mapped else f"total = {TOTAL}"))
    until(lambda: nvim.ghost() == "")
    nvim.lua(f"vim.o.completeopt = 'menu,preview' {UNMAP}")


@pytest.mark.parametrize(
    "lua",
    [
        "vim.cmd('setlocal nomodifiable')",
        "vim.cmd('setlocal readonly')",
        "vim.cmd('enew')",
        "vim.cmd('enew | setlocal buftype=nofile')",
        "vim.cmd('enew | setlocal buftype=prompt | startinsert')",
        "vim.cmd('terminal sleep 9')",
        "vim.bo.filetype = 'disabled'",
        "vim.b.visual_multi = 1",
    ],
)
def test_buffers_without_suggestions(shared_nvim: Shared, lua: str) -> None:
    off = "require('fimls.config').options.disabled_filetypes = { 'disabled' }"
    nvim = shared_nvim("a\n", name="a.txt", first=off, lua=lua)
    nvim.type("Atotal = ")
    time.sleep(0.1)
    assert nvim.ghost() == ""
    assert not shared_nvim.log("asked")
    assert nvim.lua("return require('fimls').statusline()") in (
        "",
        "fimls ✓" if "multi" in lua else "",
    )
    nvim.type("<C-\\><C-n>")
    nvim.command("silent! bwipeout!")
    assert nvim.messages() == []


def test_command_line_window(shared_nvim: Shared) -> None:
    nvim = shared_nvim("a\n", name="a.txt")
    nvim.type("q:itotal = ")
    time.sleep(0.1)
    assert nvim.ghost() == "" and not shared_nvim.log("asked")
    nvim.type("<Esc>:quit<CR>")
    until(lambda: nvim.call("nvim_call_function", "getcmdwintype", []) == "")


def test_recorded(shared_nvim: Shared) -> None:
    """What a macro records is what was typed, and it plays without suggestions."""
    nvim = shared_nvim("a\n", name="a.txt")
    nvim.type("qqototal = ")
    until(nvim.ghost)
    nvim.type("<Tab><Esc>q")
    until(lambda: nvim.lines()[1] == f"total = {TOTAL}")
    assert nvim.call("nvim_call_function", "getreg", ["q"]) == "ototal = \t\x1b"
    nvim.type("u")
    nvim.type("@q")
    until(lambda: nvim.lines()[-1] == "total = \t")
