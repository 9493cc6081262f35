"""Where fimls keeps its files: chosen by a variable, else platformdirs' place; sockets where only
the user can go."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs
import pytest

from lsp_server.folders import cache_folder, log_folder, runtime_folder, state_folder
from tests.lsp_server.helpers import Home


@pytest.mark.parametrize("kind", ["cache", "state", "log"])
def test_a_variable_chooses_a_folder(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = {"cache": cache_folder, "state": state_folder, "log": log_folder}[kind]
    monkeypatch.setattr(
        platformdirs, f"user_{kind}_path", lambda name, appauthor: tmp_path / "theirs" / name
    )
    monkeypatch.setenv(f"FIMLS_{kind.upper()}_DIR", str(tmp_path / "mine"))
    assert folder() == tmp_path / "mine"
    monkeypatch.delenv(f"FIMLS_{kind.upper()}_DIR")
    assert folder() == tmp_path / "theirs" / "fimls"
    assert folder().exists() == (kind == "log")


def test_the_start_of_a_window_does_not_wait_for_platformdirs(home: Home) -> None:
    script = "import sys, lsp_server.engines.process; print('platformdirs' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
        == "False\n"
    )


def test_each_folder_that_is_made_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIMLS_LOG_DIR", str(tmp_path / "a" / "b" / "log"))
    tmp_path.chmod(0o755)
    folder = log_folder()
    modes = [
        stat.S_IMODE(level.stat().st_mode)
        for level in (tmp_path, *list(folder.parents)[1::-1], folder)
    ]
    assert modes == [0o755, 0o700, 0o700, 0o700]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FIMLS_RUNTIME_DIR": "{}/mine", "XDG_RUNTIME_DIR": "{}/xdg"}, "mine"),
        ({"XDG_RUNTIME_DIR": "{}/xdg"}, "xdg/fimls"),
        ({"XDG_CACHE_HOME": "{}/cache"}, "cache/fimls/run"),
        ({"FIMLS_RUNTIME_DIR": "{}/" + "long/" * 20, "TMPDIR": "{}"}, f"fimls-{os.getuid()}"),
    ],
    ids=["chosen", "session", "cache", "too long"],
)
def test_the_runtime_folder_is_private_and_short(
    home: Home, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("FIMLS_RUNTIME_DIR", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(home.path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # a choice that was made before
    assert runtime_folder() == home.path / expected
    assert stat.S_IMODE(runtime_folder().stat().st_mode) == 0o700


def test_a_runtime_folder_that_others_can_enter_is_closed(home: Home) -> None:
    home.runtime.mkdir(mode=0o755)
    assert stat.S_IMODE(runtime_folder().stat().st_mode) == 0o700


def test_a_runtime_folder_of_someone_else_is_refused(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(
        PermissionError,
        match="belongs to someone else; set FIMLS_RUNTIME_DIR to a folder of your own",
    ):
        runtime_folder()


def test_a_runtime_folder_that_leads_elsewhere_is_refused(home: Home) -> None:
    home.runtime.symlink_to("/tmp")
    with pytest.raises(PermissionError, match="FIMLS_RUNTIME_DIR"):
        runtime_folder()
