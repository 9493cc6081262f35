"""Models in Neovim, with the real server: choosing one, fetching one from a hub on loopback, the
doctor's page, and the offer of a larger one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.editors import offering_server
from tests.editors.nvim import (
    SCREENS,
    VERSIONS,
    Neovim,
    Opener,
    Tmux,
    binary,
    environment,
    init_lua,
    opener,
    plain,
    quoted,
    until,
)
from tests.editors.test_nvim_screen import picture
from tests.model.catalogue.hub_server import Hub, serving
from tests.model.export.exports import exported, toy

pytestmark = pytest.mark.editors

FILE = "toy.gguf"
LETTERS = re.compile(r"[a-z]{8,}")  # what the talkative toy writes


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    (file,) = exported(toy(folder), folder, "gguf").glob("*.gguf")
    with serving(Hub({FILE: file.read_bytes()}, slow_s=0.02)) as hub:
        yield hub


@dataclass
class Home:
    """What a user has of fimls, in a folder of its own with a short path, for sockets."""

    folder: Path
    hub: Hub

    @property
    def variables(self) -> dict[str, str]:
        names = ("RUNTIME", "LOG", "STATE", "CONFIG", "CACHE", "DATA")
        folders = {f"FIMLS_{name}_DIR": str(self.folder / name.lower()) for name in names}
        return folders | {
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_CACHE": str(self.folder / "hub"),
            "OLLAMA_MODELS": str(self.folder / "ollama"),
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def setup(self, *program: str, **more: str) -> str:
        """The argument of setup()."""
        pairs = (self.variables | more).items()
        env = ", ".join(f"{name} = {quoted(value)}" for name, value in pairs)
        command = (sys.executable, "-P", *(program or ("-m", "lsp_server", "lsp")))
        return f"{{ cmd = {{ {', '.join(map(quoted, command))} }}, cmd_env = {{ {env} }} }}"

    def chosen(self) -> Any:
        """What the server keeps for this user."""
        path = self.folder / "config" / "settings.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else {}

    def close(self) -> None:
        stop = [sys.executable, "-P", "-m", "lsp_server", "engine", "stop"]
        env = os.environ | self.variables
        subprocess.run(stop, env=env, capture_output=True, timeout=60, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def home(version: str, hub: Hub) -> Iterator[Home]:
    made = Home(Path(tempfile.mkdtemp(prefix="fm-", dir="/tmp")), hub)
    yield made
    made.close()


@pytest.fixture(scope="module")
def opened(version: str, tmp_path_factory: pytest.TempPathFactory, home: Home) -> Iterator[Neovim]:
    with opener(version, tmp_path_factory.mktemp("models")) as open_nvim:
        nvim = open_nvim("x = 1\n", setup=home.setup(FIMLS_NO_NOTE="1"), wait=None)
        wait_model(nvim, "bundled")
        yield nvim


@pytest.fixture
def nvim(opened: Neovim) -> Neovim:
    """One Neovim for all tests of a version, with nothing said so far."""
    opened.lua("_G.said = {}")
    return opened


def wait_model(nvim: Neovim, name: str) -> None:
    """Until that model answers."""
    status: dict[str, Any] = {}

    def is_ready() -> bool:
        status.update(nvim.lua("return require('fimls.client').status()"))
        return (status["state"], status["model"]) == ("ready", name)

    try:
        until(is_ready, 120)
    except AssertionError:
        raise AssertionError(f"{status}; {nvim.messages()}") from None


def screen(nvim: Neovim) -> str:
    return "\n".join(nvim.frame().lines())


def said(nvim: Neovim, text: str, seconds: float = 30.0) -> None:
    until(lambda: any(text in message for message in nvim.messages()), seconds)


def windows(nvim: Neovim) -> list[str]:
    """The texts of the floating windows."""
    return nvim.lua("""
        local found = {}
        for _, win in ipairs(vim.api.nvim_list_wins()) do
          if vim.api.nvim_win_get_config(win).relative ~= '' then
            local lines = vim.api.nvim_buf_get_lines(vim.api.nvim_win_get_buf(win), 0, -1, true)
            found[#found + 1] = table.concat(lines, '\\n')
          end
        end
        return found""")


def answer(nvim: Neovim, question: str, number: int) -> str:
    """Chooses from Neovim's own list of answers; what the screen showed."""
    until(lambda: question in screen(nvim), 30)
    seen = screen(nvim)
    nvim.type(f"{number}<CR>")
    # The same question may come again: what is still on the screen is not it.
    until(lambda: question not in screen(nvim), 30)
    return seen


def numbered(seen: str, name: str) -> int:
    """The number before a row of a list."""
    (row,) = re.findall(rf"^ *(\d+): \W*{re.escape(name)}\b.*$", seen, re.MULTILINE)
    return int(row)


def test_a_model_on_the_disk_is_chosen_and_writes(
    nvim: Neovim, home: Home, talkative_folder: Path
) -> None:
    nvim.type(f":Fimls model {talkative_folder}<CR>")
    wait_model(nvim, str(talkative_folder))
    said(nvim, f"fimls: the model is {talkative_folder} from now on")
    assert home.chosen() == {"model": str(talkative_folder)}
    nvim.type("ggOtotal = <M-\\>")
    until(lambda: LETTERS.search(nvim.ghost()), 60)
    nvim.type("<Esc>u:Fimls model<CR>")
    until(lambda: "2: " in screen(nvim) and "codegemma-2b" in screen(nvim), 30)
    seen = screen(nvim)
    assert "1:   bundled" in seen
    assert re.search(r"↓ qwen2.5-coder-0.5b +491 MB +RAM \d+ MB +Apache-2.0", seen)
    assert re.search(r"↓ starcoder2-3b .*BigCode OpenRAIL-M", seen)
    assert "speed: `:Fimls doctor`" in seen
    assert re.search(rf"✓ {re.escape(str(talkative_folder))}", seen)
    nvim.type("1<CR>")
    wait_model(nvim, "bundled")
    assert home.chosen() == {"model": "bundled"}


def test_names_are_completed(nvim: Neovim, talkative_folder: Path) -> None:
    def completed(line: str) -> list[str]:
        return nvim.call("nvim_eval", f"getcompletion({json.dumps(line)}, 'cmdline')")

    found = completed("Fimls model qwen2.5-coder-")
    assert found[:2] == ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]
    assert "bundled" in completed("Fimls model ")
    assert f"{talkative_folder}/" in completed(f"Fimls model {str(talkative_folder)[:-2]}")
    assert completed("Fimls mod") == ["model"]
    assert completed("Fimls doctor ") == []


def test_what_cannot_be_had_is_said(nvim: Neovim, home: Home) -> None:
    before = home.chosen()
    nvim.type(":Fimls model /no/such/folder<CR>")
    said(nvim, "There is no model folder /no/such/folder")
    nvim.type(":Fimls model no-such-name<CR>")
    said(nvim, "There is no model folder no-such-name")
    nvim.type(":Fimls model Qwen2.5-Coder<CR>")
    seen = answer(nvim, "qwen2.5-coder-7b", 1)
    assert "starcoder2" not in seen
    answer(nvim, "qwen2.5-coder-0.5b (491 MB, Apache-2.0) is not on this machine", 2)
    nvim.type(":Fimls model org/none<CR>")
    answer(nvim, "org/none is not on this machine", 1)
    said(nvim, "There is no model org/none at ", 60)
    nvim.type(":Fimls cancel<CR>")
    said(nvim, "fimls: there is nothing to cancel")
    assert home.chosen() == before


def test_a_licence_is_asked_about(nvim: Neovim, hub: Hub) -> None:
    hub.requests.clear()
    hub.licence = "other"
    hub.licence_name = "odd-terms"
    try:
        nvim.type(":Fimls model org/repo<CR>")
        answer(nvim, "org/repo is not on this machine", 1)
        answer(nvim, "comes under the licence odd-terms", 2)
        said(nvim, "which has conditions of its own")
    finally:
        hub.licence, hub.licence_name = "apache-2.0", ""
    assert not hub.asked("GET", FILE)


def test_a_pull_ends_with_the_server(nvim: Neovim, hub: Hub) -> None:
    hub.slow_s = 0.05
    nvim.type(":Fimls model org/repo<CR>")
    answer(nvim, "org/repo is not on this machine", 1)
    until(lambda: windows(nvim), 30)
    nvim.type(":Fimls model org/repo<CR>")
    answer(nvim, "org/repo is not on this machine", 1)
    said(nvim, "fimls: one thing at a time; `:Fimls cancel` ends what goes on")
    nvim.type(":Fimls restart<CR>")
    said(nvim, "fimls: the server ended; try again")
    assert not windows(nvim)
    wait_model(nvim, "bundled")


def test_a_model_is_fetched_with_progress_that_can_be_cancelled(
    nvim: Neovim, home: Home, hub: Hub
) -> None:
    hub.requests.clear()
    hub.slow_s = 0.05
    nvim.type(":Fimls model org/repo<CR>")
    answer(nvim, "org/repo is not on this machine", 2)
    nvim.type(":Fimls model org/repo<CR>")
    answer(nvim, "org/repo is not on this machine", 1)
    until(lambda: re.search(r"fimls: org/repo \d+% fetching \d+ kB of \d+ kB", screen(nvim)), 30)
    assert re.fullmatch(r"fimls fetches \d+%", nvim.lua("return require('fimls').statusline()"))
    nvim.type("ix")  # one can write meanwhile
    until(lambda: nvim.lines()[0].startswith("x"))
    nvim.type("<Esc>u:Fimls cancel<CR>")
    said(nvim, "fimls: cancelled")
    until(lambda: not windows(nvim))
    until(lambda: "org/repo" not in nvim.frame().lines()[1])
    assert not home.chosen().get("model", "").startswith("org")
    hub.slow_s = 0.001
    nvim.type(":Fimls model org/repo<CR>")
    answer(nvim, "org/repo is not on this machine", 1)
    wait_model(nvim, "org/repo")
    assert home.chosen() == {"model": "org/repo"}
    assert hub.asked("GET", FILE)[-1]["range"].startswith("bytes="), "it goes on from there"
    assert not windows(nvim)
    nvim.type(":Fimls model bundled<CR>")
    wait_model(nvim, "bundled")
    nvim.type(":Fimls model org/repo<CR>")  # it is here by now
    wait_model(nvim, f"org/repo:{FILE}")
    nvim.type(":Fimls model bundled<CR>")
    wait_model(nvim, "bundled")


def test_doctor(nvim: Neovim, version: str) -> None:
    if version != VERSIONS[0]:
        pytest.skip("it takes half a minute; the newest version asks it in the terminal")
    nvim.type(":Fimls doctor<CR>")
    said(nvim, "the doctor looks at this machine")
    nvim.type("ix")
    said(nvim, "its page opens in normal mode", 180)
    assert nvim.lines()[0].startswith("x")
    nvim.type("<Esc>")
    until(lambda: nvim.lines()[0].startswith("# "))
    page = nvim.lua("return {vim.bo.filetype, vim.bo.buftype, vim.bo.modifiable}")
    assert page == ["markdown", "nofile", False]
    assert nvim.call("nvim_buf_get_name", 0) == "fimls://doctor"
    assert any(line.startswith("| qwen2.5-coder-0.5b |") for line in nvim.lines())
    nvim.type("q")
    until(lambda: nvim.lines()[0].startswith("x"))
    nvim.type("u:Fimls model<CR>")  # with what it has measured
    seen = answer(nvim, "Type number", 1)
    assert re.search(r"↓ qwen2.5-coder-0.5b +491 MB +RAM \d+ MB +[\d.]+ s +Apache-2.0", seen)
    nvim.command("checkhealth fimls")
    until(lambda: any("`:Fimls doctor` looks at" in line for line in nvim.lines()))
    nvim.command("bwipeout")


# As Neovim's own vim.notify, and kept.
NOTIFY = """vim.notify = function(message)
  table.insert(_G.said, message)
  vim.api.nvim_echo({ { message } }, true, {})
end"""


def test_a_larger_model_is_offered_once(version: str, tmp_path: Path, hub: Hub) -> None:
    home = Home(Path(tempfile.mkdtemp(prefix="fm-", dir="/tmp")), hub)
    program = str(Path(offering_server.__file__))
    offer = f"fimls: `:Fimls model {offering_server.NAME}` gets a better model"
    try:
        with opener(version, tmp_path) as open_nvim:
            # A model that still loads is no reason for an offer: the engine runs from now on.
            wait_model(offered(open_nvim, home, program, FIMLS_NO_NOTE="1"), "bundled")
            nvim = offered(open_nvim, home, program)
            nvim.type("itotal")  # nothing stops who writes, and it is said where it is seen
            asked = home.folder / "state" / "asked"
            until(asked.exists, 60)
            time.sleep(1)
            assert nvim.call("nvim_get_mode") == {"mode": "i", "blocking": False}
            assert nvim.messages() == []
            nvim.type(" = 1")
            until(lambda: nvim.lines()[0] == "total = 1x = 1")
            nvim.type("<Esc>")
            said(nvim, offer)
            until(lambda: nvim.frame().lines()[-1].startswith(offer))
            assert nvim.call("nvim_get_mode") == {"mode": "n", "blocking": False}
            second = offered(open_nvim, home, program)
            wait_model(second, "bundled")
            time.sleep(2)
            assert second.messages() == []
    finally:
        home.close()


def offered(open_nvim: Opener, home: Home, program: str, **more: str) -> Neovim:
    setup = home.setup(program, **more)
    return open_nvim("x = 1\n", setup=setup, before=NOTIFY, wait=None, size=(80, 24))


def test_in_a_terminal(tmp_path: Path, hub: Hub) -> None:
    """As a user sees it: the screens are kept as pictures."""
    home = Home(Path(tempfile.mkdtemp(prefix="fm-", dir="/tmp")), hub)
    hub.slow_s = 0.05
    line = "vim.o.statusline = ' %f %m%= %{v:lua.require(\"fimls\").statusline()} '"
    init = init_lua(tmp_path, home.setup(FIMLS_NO_NOTE="1"), before=line)
    (tmp_path / "a.py").write_text("x = 1\n")
    command = [binary(VERSIONS[-1]), "-u", str(init), "-n", "-i", "NONE", "a.py"]
    terminal = Tmux(tmp_path, command, environment(tmp_path), rows=30)

    def seen(pattern: str, seconds: float = 30.0) -> None:
        try:
            until(lambda: re.search(pattern, plain(terminal.screen())), seconds)
        except AssertionError:
            raise AssertionError(f"no {pattern} in\n{plain(terminal.screen())}") from None

    def picture_of(name: str) -> None:
        SCREENS.mkdir(parents=True, exist_ok=True)
        picture(terminal.screen(), SCREENS / f"nvim-{name}.svg")

    try:
        seen("fimls ✓", 120)
        terminal.keys(":Fimls model", "Enter")
        seen("Type number")
        picture_of("models")
        terminal.keys("Enter", ":Fimls model org/repo", "Enter")
        seen("org/repo is not on this machine")
        terminal.keys("1", "Enter")
        seen(r"fimls: org/repo \d\d% fetching \d+ kB of \d+ kB")
        picture_of("pull")
        terminal.keys(":Fimls cancel", "Enter")
        terminal.keys(":Fimls doctor", "Enter")
        seen("# fimls doctor", 180)
        picture_of("doctor")
    finally:
        terminal.close()
        home.close()
