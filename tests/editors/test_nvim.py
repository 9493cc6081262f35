"""Neovim 0.10 to 0.12 with the plugin and a server of canned answers: what is on the screen, and
what the keys do."""

from __future__ import annotations

import time

import pytest

from tests.editors.canned_server import ANSWERS
from tests.editors.nvim import Neovim, Shared, until

pytestmark = pytest.mark.editors

FIB, FIB_2, FIB_3 = ANSWERS["def fib(n):"]
TOTAL = ANSWERS["total = "][0]
PRINT, PRINT_2 = ANSWERS["print("]
MONEY = ANSWERS["money = "][0]
PLAIN = "vim.bo.autoindent, vim.bo.indentexpr = false, ''"


def saved(nvim: Neovim, shared_nvim: Shared, name: str = "a.py") -> bytes:
    nvim.type("<Esc>")
    nvim.command("silent write")
    return (shared_nvim.folder / name).read_bytes()


def test_accepted_whole(shared_nvim: Shared) -> None:
    nvim = shared_nvim("# été 🎉\nx = 1\ny = 2\n")
    nvim.type("2Godef fib(n):")
    until(lambda: nvim.ghost() == FIB[1:])
    assert nvim.lines()[2:4] == ["def fib(n):", "y = 2"], "ghost text is not text"
    nvim.type("<Tab>")
    expected = ["# été 🎉", "x = 1", *("def fib(n):" + FIB).split("\n"), "y = 2"]
    until(lambda: nvim.lines() == expected)
    assert nvim.call("nvim_win_get_cursor", 0) == [7, len("    return a")]
    assert nvim.ghost() == ""
    until(lambda: shared_nvim.log("accepted"))
    until(lambda: [e["text"] for e in shared_nvim.log("shown")] == [FIB])

    nvim.type(
        "!<Esc>u"
    )  # what is typed afterwards is a step of its own, and the accepted text is one
    until(lambda: nvim.lines() == expected)
    nvim.type("u")
    until(lambda: nvim.lines()[2:4] == ["def fib(n):", "y = 2"])
    nvim.type("<C-r>")
    until(lambda: nvim.lines() == expected)
    assert saved(nvim, shared_nvim).decode() == "# été 🎉\nx = 1\ndef fib(n):" + FIB + "\ny = 2\n"
    until(lambda: shared_nvim.log("change")[-1]["text"] == "\n".join(expected) + "\n")


def test_the_server_hears_where_the_cursor_rests(shared_nvim: Shared) -> None:
    nvim = shared_nvim("one\ntwo\nthree\n")
    nvim.type("jl")
    until(lambda: shared_nvim.log("focus") and shared_nvim.log("focus")[-1]["at"] == [1, 1])
    count = len(shared_nvim.log("focus"))
    nvim.type("jkjkj0")  # one rest, one message
    until(lambda: shared_nvim.log("focus")[-1]["at"] == [2, 0])
    assert len(shared_nvim.log("focus")) == count + 1
    nvim.type("A")
    until(lambda: len(shared_nvim.log("focus")) > count + 1)
    count = len(shared_nvim.log("focus"))
    nvim.type(" and more")
    until(lambda: any(e["text"].endswith("three and more\n") for e in shared_nvim.log("change")))
    time.sleep(0.2)
    assert len(shared_nvim.log("focus")) == count, "keys tell for themselves"


def test_accepted_by_word(shared_nvim: Shared) -> None:
    nvim = shared_nvim("a\n")
    nvim.type("ototal = ")
    until(lambda: nvim.ghost() == TOTAL)
    asked = len(shared_nvim.log("asked"))
    for accepted in ["sum", "sum(", "sum(price", "sum(price *"]:
        nvim.type("<M-w>")
        until(lambda accepted=accepted: nvim.lines()[1] == f"total = {accepted}")
        until(lambda accepted=accepted: nvim.ghost() == TOTAL[len(accepted) :])
    until(lambda: len(shared_nvim.log("partly")) == 4)
    until(lambda: [e["length"] for e in shared_nvim.log("partly")] == [3, 4, 9, 11])
    assert all(e["text"] == TOTAL for e in shared_nvim.log("partly"))
    time.sleep(0.2)
    assert len(shared_nvim.log("asked")) == asked, "the rest needs no request"
    until(lambda: [e["text"] for e in shared_nvim.log("shown")] == [TOTAL])
    nvim.type("<Esc>u")
    until(lambda: nvim.lines()[1] == "total = sum(price")
    assert nvim.ghost() == ""


def test_accepted_by_line(shared_nvim: Shared) -> None:
    nvim = shared_nvim("a\n")
    nvim.type("odef fib(n):")
    until(lambda: nvim.ghost())
    lines = ("def fib(n):" + FIB).split("\n")
    for count in range(2, 6):
        nvim.type("<M-l>")
        until(lambda count=count: nvim.lines()[1:] == lines[:count])
        until(lambda count=count: nvim.ghost() == "\n".join(lines[count:]))
    until(lambda: shared_nvim.log("accepted"))
    lengths = [len("\n".join(lines[:n])) - 11 for n in (2, 3, 4)]
    until(lambda: [e["length"] for e in shared_nvim.log("partly")] == lengths)


def test_length_of_a_part_is_counted_in_utf16(shared_nvim: Shared) -> None:
    nvim = shared_nvim("a\n")
    nvim.type("os = '🎉'; print(")
    until(lambda: nvim.ghost() == PRINT)
    for _ in range(3):  # " then héllo then wörld
        nvim.type("<M-w>")
    until(lambda: nvim.lines()[1] == "s = '🎉'; print(\"héllo wörld")
    until(lambda: nvim.ghost() == ' 🎉")')
    nvim.type("<M-w>")
    until(lambda: len(shared_nvim.log("partly")) == 4)
    until(lambda: [e["length"] for e in shared_nvim.log("partly")] == [1, 6, 12, 15])
    nvim.type("<Tab>")
    assert until(lambda: saved(nvim, shared_nvim)).decode() == f"a\ns = '🎉'; print({PRINT}\n"


def test_dismissed(shared_nvim: Shared) -> None:
    nvim = shared_nvim("a\n")
    nvim.type("ototal = ")
    until(lambda: nvim.ghost() == TOTAL)
    nvim.type("<C-]>")
    until(lambda: nvim.ghost() == "")
    time.sleep(0.2)
    assert nvim.ghost() == ""
    nvim.type("<M-\\>")
    until(lambda: nvim.ghost() == TOTAL)
    nvim.type("<Esc>")
    until(lambda: nvim.ghost() == "")
    assert nvim.lines() == ["a", "total = "]


def test_next_and_previous(shared_nvim: Shared) -> None:
    nvim = shared_nvim("a\n")
    nvim.type("odef fib(n):")
    until(lambda: nvim.ghost() == FIB[1:])
    for key, text, number in [
        ("]", FIB_2, 2),
        ("]", FIB_3, 3),
        ("]", FIB, 1),
        ("[", FIB_3, 3),
        ("[", FIB_2, 2),
    ]:
        nvim.type(f"<M-{key}>")
        until(
            lambda text=text, number=number: "\n".join(nvim.frame().lines()).count(
                f"{text[-9:]}  ({number}/3)"
            )
        )
        assert nvim.ghost() == text[1:]
    assert [e["kind"] for e in shared_nvim.log("asked")][-2:] == [2, 1], "asked for once"
    until(lambda: {e["text"] for e in shared_nvim.log("shown")} == {FIB, FIB_2, FIB_3})
    nvim.type("<Tab>")
    until(lambda: nvim.lines()[1:] == ("def fib(n):" + FIB_2).split("\n"))


def test_typed_through(shared_nvim: Shared) -> None:
    nvim = shared_nvim("a\n")
    nvim.type("ototal = ")
    until(lambda: nvim.ghost() == TOTAL)
    asked, first = len(shared_nvim.log("asked")), len(nvim.frames())
    for i, key in enumerate("sum(price", 1):
        nvim.type(key)
        until(lambda i=i: nvim.ghost() == TOTAL[i:])
    # No frame between without it: it does not flicker, and never is more or less than the rest.
    for frame in nvim.frames()[first:]:
        [(_, before, ghost)] = frame.ghost()
        assert before + ghost == f"total = {TOTAL}"
    assert len(shared_nvim.log("asked")) == asked
    nvim.type("<BS>")
    until(lambda: nvim.ghost() == TOTAL[8:])
    nvim.type("x")
    until(lambda: nvim.ghost() == "")
    until(lambda: shared_nvim.log("asked")[-1]["line"] == "total = sum(pricx")


def test_typed_through_a_line_break(shared_nvim: Shared) -> None:
    nvim = shared_nvim("a\n", lua=PLAIN)
    nvim.type("odef fib(n):")
    until(lambda: nvim.ghost() == FIB[1:])
    nvim.type("<CR>    a, ")
    until(
        lambda: (
            nvim.ghost()
            == "b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a"
        )
    )
    nvim.type("<Tab>")
    until(lambda: nvim.lines()[1:] == ("def fib(n):" + FIB).split("\n"))


def test_superseded(shared_nvim: Shared) -> None:
    nvim = shared_nvim("a\n")
    nvim.type("o# SLOW")
    until(lambda: any("SLOW" in e["line"] for e in shared_nvim.log("asked")))
    nvim.type("!")
    until(lambda: shared_nvim.log("cancelled"))
    nvim.type("<CR># LATE total = ")
    until(lambda: shared_nvim.log("asked")[-1]["line"].endswith("# LATE total = "))
    nvim.type(
        "x<BS>"
    )  # the late answer was for a text that is there again: cancelled, and asked for anew
    until(lambda: nvim.ghost() == TOTAL)
    nvim.type("<CR># LATE print(")
    until(lambda: shared_nvim.log("asked")[-1]["line"].endswith("print("))
    nvim.type("y")
    time.sleep(0.6)
    assert nvim.ghost() == "", "an answer that came too late is not drawn"


def test_verbatim(shared_nvim: Shared) -> None:
    nvim = shared_nvim("a\n", lua="vim.bo.textwidth = 20 vim.cmd('iabbrev <buffer> cost C')")
    nvim.type("omoney = ")
    until(lambda: nvim.ghost() == MONEY)
    nvim.type("<Tab>")
    assert until(lambda: saved(nvim, shared_nvim)).decode() == f"a\nmoney = {MONEY}\n"


def test_tabs_and_crlf(shared_nvim: Shared) -> None:
    nvim = shared_nvim(
        b"def f(tabs):\r\n\tx = 1\r\n\ty = '\xf0\x9f\x8e\x89'\r\n", lua="vim.bo.tabstop = 4"
    )
    assert nvim.call("nvim_get_option_value", "fileformat", {}) == "dos"
    nvim.type("2Go<C-u><C-v><Tab>if tabs:")
    until(lambda: nvim.ghost() == "        return True")
    assert [before for _, before, _ in nvim.frame().ghost()] == [""], "two tabs of four columns"
    nvim.type("<Tab>")
    until(lambda: nvim.lines()[2:4] == ["\tif tabs:", "\t\treturn True"])
    expected = "def f(tabs):\r\n\tx = 1\r\n\tif tabs:\r\n\t\treturn True\r\n\ty = '🎉'\r\n"
    assert saved(nvim, shared_nvim).decode() == expected


def test_text_to_the_right(shared_nvim: Shared) -> None:
    nvim = shared_nvim("call()\nother\n")
    nvim.type("f(aone")
    until(lambda: nvim.ghost() == ", two")
    assert nvim.frame().lines()[0] == "call(one, two)"
    nvim.type("<Tab>")
    until(lambda: nvim.lines() == ["call(one, two)", "other"])


def test_several_lines_in_front_of_text(shared_nvim: Shared) -> None:
    nvim = shared_nvim("  # why\nother\n", lua=PLAIN)
    nvim.type("Idef fib(n):")
    until(lambda: nvim.ghost())
    rows = [row for row in nvim.frame().lines() if row][:6]
    # The comment would stand behind the last line: that is where it is shown.
    assert rows == [*("  def fib(n):" + FIB + "# why").split("\n"), "other"]
    nvim.type("<Tab>")
    until(lambda: nvim.lines() == [*("  def fib(n):" + FIB + "# why").split("\n"), "other"])


# Changes what the canned server answers before the plugin sees it.
ALTERED = """
local client = vim.lsp.get_clients({name='fimls'})[1]
_G.request = _G.request or client.request
client.request = function(...)
  local arguments = {...}
  local at = type(arguments[1]) == 'string' and 1 or 2
  local answer = arguments[at + 2]
  if arguments[at] == 'textDocument/inlineCompletion' then
    arguments[at + 2] = function(err, result, ...)
      ALTER
      return answer(err, result, ...)
    end
  end
  return _G.request(unpack(arguments))
end
"""
OWN_RANGES = """
local item = result and result.items[1]
if item then -- the first replaces the bracket behind the cursor, the second nothing
  item.insertText = 'one)'
  item.range['end'].character = item.range['end'].character + 1
  local second = vim.deepcopy(item)
  second.insertText, second.range['end'] = 'two', second.range.start
  result.items = {item, second}
end
"""


@pytest.mark.parametrize(
    ("keys", "line"), [("", "print(one)"), ("<M-]>", "print(two)"), ("<M-]><M-]>", "print(one)")]
)
def test_each_alternative_replaces_what_is_its_own(
    shared_nvim: Shared, keys: str, line: str
) -> None:
    nvim = shared_nvim("print()\n")
    nvim.lua(ALTERED.replace("ALTER", OWN_RANGES))
    nvim.type("f(a<M-\\>")
    until(lambda: "(1/2)" in nvim.frame().lines()[0])
    nvim.type(keys)
    until(lambda: f"({2 if 'two' in line else 1}/2)" in nvim.frame().lines()[0])
    nvim.type("<Tab>")
    until(lambda: nvim.lines() == [line])
    nvim.lua("vim.lsp.get_clients({name='fimls'})[1].request = _G.request")


REPLACING = """
for _, item in ipairs(result and result.items or {}) do
  local width = require('fimls.lsp').units('REPLACED', client.offset_encoding)
  item.insertText = ({TEXT})[1]
  item.range['end'].character = item.range['end'].character + width
  item.range.start.character = item.range.start.character - BEFORE
end
"""


@pytest.mark.parametrize(
    ("line", "keys", "text", "replaced", "before", "drawn", "ghost"),
    [
        ("print()", "f(a", "a, (b))", ")", 0, "print(a, (b))", "a, (b)"),
        ("print(']')", "f(a", "x[']']", "']'", 0, "print(x[']'])", "x[]"),
        ("print(é)", "f(a", "xéy", "é", 0, "print(xéy)", "xy"),
        ("print(abc)", "f(a", "xyz", "abc", 0, "print(xyzabc)", "xyz"),
        ("a 🎉print()", "f(a", "print(1)", ")", 6, "a 🎉print(1)", "1"),
    ],
)
def test_replaced_range(
    shared_nvim: Shared,
    line: str,
    keys: str,
    text: str,
    replaced: str,
    before: int,
    drawn: str,
    ghost: str,
) -> None:
    nvim = shared_nvim(line + "\n")
    values = {
        "TEXT": f"[==[{text}]==]",
        "REPLACED": replaced.replace("'", "\\'"),
        "BEFORE": str(before),
    }
    code = ALTERED.replace("ALTER", REPLACING)
    for name, value in values.items():
        code = code.replace(name, value)
    nvim.lua(code)
    nvim.type(keys)
    until(lambda: nvim.ghost() == ghost)
    assert nvim.frame().lines()[0] == drawn
    nvim.type("<Tab>")
    at = line.index("(") + 1
    until(lambda: nvim.lines() == [line[: at - before] + text + line[at + len(replaced) :]])
    nvim.lua("vim.lsp.get_clients({name='fimls'})[1].request = _G.request")


def test_modes_and_toggle(shared_nvim: Shared) -> None:
    nvim = shared_nvim("total = \nb\n")
    nvim.type("A")
    until(lambda: nvim.ghost() == TOTAL)
    for away, back in [("<C-o>:", "<Esc>"), ("<C-o>", "<Esc>"), ("<Insert>", "<Insert>")]:
        nvim.type(away)
        until(lambda: nvim.ghost() == "")
        nvim.type(back)
        until(lambda: nvim.ghost() == TOTAL)
    nvim.type("<Esc>")
    until(lambda: nvim.ghost() == "")
    nvim.command("Fimls toggle")
    asked = len(shared_nvim.log("asked"))
    nvim.type("A")
    time.sleep(0.2)
    assert nvim.ghost() == "" and len(shared_nvim.log("asked")) == asked
    assert nvim.lua("return require('fimls').statusline()") == "fimls off"
    nvim.type("<M-\\>")
    until(lambda: nvim.ghost() == TOTAL)
    nvim.type("<Esc>")
    nvim.command("Fimls toggle")
    nvim.type("A")
    until(lambda: nvim.ghost() == TOTAL)
    assert nvim.messages() == [
        "fimls: automatic suggestions off",
        "fimls: automatic suggestions on",
    ]


def test_says_what_it_repeats(shared_nvim: Shared) -> None:
    nvim = shared_nvim("a\n")
    nvim.type("oknown = ")
    until(
        lambda: (
            nvim.frame().lines()[1]
            == "known = text_of_two(here)  (makes text of two 1.0 (BSD-3-Clause))"
        )
    )
    assert nvim.ghost() == "text_of_two(here)"
    nvim.type("<Tab>")
    until(lambda: nvim.lines() == ["a", "known = text_of_two(here)"])
    until(lambda: nvim.frame().lines()[1] == "known = text_of_two(here)")


def test_dot_repeats_what_was_typed(shared_nvim: Shared) -> None:
    nvim = shared_nvim("a\n")
    nvim.type("ototal = ")
    until(lambda: nvim.ghost() == TOTAL)
    nvim.type("<Tab><Esc>j.")
    until(lambda: len(nvim.lines()) == 3)
    assert nvim.lines()[:2] == ["a", f"total = {TOTAL}"]
