"""Neovim with the real server and the bundled model."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.editors.nvim import ROOT, VERSIONS, opener, quoted, until

pytestmark = pytest.mark.editors

FIMLS = ROOT / ".venv" / "bin" / "fimls"
BEFORE = '''"""Settings in files."""

import json
from pathlib import Path


def read_settings(path: Path) -> dict[str, str]:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def read_defaults(path: Path) -> dict[str, str]:
'''
AFTER = """

def names(settings: dict[str, str]) -> list[str]:
    return sorted(settings)
"""


@pytest.fixture(scope="module")
def home() -> Iterator[dict[str, str]]:
    """Folders of our own for sockets and logs, with short paths; the engine in them ends with the
    tests."""
    if not FIMLS.exists():
        pytest.skip("fimls is not installed in .venv: `make test` installs it")
    folder = Path(tempfile.mkdtemp(prefix="fn-", dir="/tmp"))
    names = ("RUNTIME", "LOG", "STATE", "CONFIG")
    env = {f"FIMLS_{name}_DIR": str(folder / name.lower()) for name in names}
    env["FIMLS_NO_NOTE"] = "1"
    yield env
    subprocess.run([FIMLS, "engine", "stop"], env=env, capture_output=True, timeout=60, check=False)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_real_server(version: str, tmp_path: Path, home: dict[str, str]) -> None:
    with opener(version, tmp_path) as open_nvim:
        env = ", ".join(f"{name} = {quoted(value)}" for name, value in home.items())
        setup = f"{{ cmd = {{ {quoted(FIMLS)}, 'lsp' }}, cmd_env = {{ {env} }}, settings = {{ multiline = 'never' }} }}"
        nvim = open_nvim(BEFORE + AFTER, setup=setup, wait=None)
        until(lambda: nvim.lua("return vim.fn.maparg('<M-Bslash>', 'i') ~= ''"), 60)  # attached
        line = BEFORE.count("\n")
        nvim.type(f"{line}Go<C-u>    with open(path, ")
        # While the model loads there are none: the invoked request waits for it.
        nvim.type("<M-\\>")
        try:
            until(nvim.ghost, 120)
        except AssertionError as error:
            log = Path(home["FIMLS_LOG_DIR"], "lsp.log")
            said = log.read_text() if log.exists() else "no log of the server"
            raise AssertionError(
                f"{error}; {nvim.lua('return require([[fimls.client]]).status()')}; {said}"
            ) from None
        ghost = nvim.frame().ghost()
        assert len(ghost) == 1
        suggestion = ghost[0][2]
        nvim.type("<Tab>")
        until(lambda: nvim.lines()[line] == f"    with open(path, {suggestion}")
        until(lambda: not nvim.call("nvim_get_mode")["blocking"])
        nvim.type("<Esc>")
        nvim.command("silent write")
        written = (tmp_path / "a.py").read_text(encoding="utf-8")
        assert written == f"{BEFORE}    with open(path, {suggestion}\n{AFTER}"
        assert 'encoding="utf-8"' in suggestion, "the line above, once more"
        # Nor do the other messages disturb, whichever of them this server knows.
        code = nvim.call("nvim_get_current_buf")
        for command in ("status", "body", "cancel", "snooze 0", "why"):
            nvim.command(f"Fimls {command}")
        until(lambda: len(nvim.messages()) >= 3)
        assert nvim.call("nvim_get_mode") == {"mode": "n", "blocking": False}
        assert nvim.call("nvim_buf_get_lines", code, line, line + 1, True) == [
            f"    with open(path, {suggestion}"
        ]
