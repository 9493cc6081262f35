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

from lsp_server.engines.process import open_engine_log
from lsp_server.folders import (
    cache_folder,
    config_folder,
    log_folder,
    runtime_folder,
    state_folder,
)
from lsp_server.logs import engine_log
from lsp_server.user_settings import read_user_settings
from model.catalogue.places import data_folder, hub_cache, ollama_stores
from model.private_files import make_private_folder
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
    assert not folder().exists()


def test_the_start_of_a_window_does_not_wait_for_platformdirs(home: Home) -> None:
    script = "import sys, lsp_server.engines.process; print('platformdirs' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
        == "False\n"
    )


def test_each_folder_that_is_made_is_private(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    folder = tmp_path / "a" / "b" / "log"
    make_private_folder(folder)
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


@pytest.fixture
def strangers_home(home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """No variable names a folder, and the working folder is anyone's."""
    for name in os.environ:
        if name.startswith(("FIMLS_", "XDG_", "HF_", "HUGGINGFACE_", "OLLAMA_")):
            monkeypatch.delenv(name)
    (home.path / "tmp").mkdir(mode=0o777)
    (home.path / "cwd").mkdir()
    monkeypatch.chdir(home.path / "cwd")
    monkeypatch.setattr(tempfile, "tempdir", str(home.path / "tmp"))
    return home


@pytest.fixture(params=["", "relative", None])
def without_home(
    request: pytest.FixtureRequest, strangers_home: Home, monkeypatch: pytest.MonkeyPatch
) -> Home:
    """HOME is empty, relative, or unset for a user whom the system's list does not know."""

    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    if request.param is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", request.param)
    return strangers_home


WITHOUT_HOME = {
    "cache": cache_folder,
    "config": config_folder,
    "state": state_folder,
    "log": log_folder,
    "data": data_folder,
}


@pytest.mark.skipif(sys.platform == "win32", reason="users and modes")
def test_without_a_home_all_lies_in_a_private_folder_for_temporary_files(
    without_home: Home,
) -> None:
    own = without_home.path / "tmp" / f"fimls-{os.getuid()}"
    for kind, folder in WITHOUT_HOME.items():
        assert folder() == own / kind
    assert runtime_folder().is_relative_to(own)
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert read_user_settings() == ({}, ())
    with open_engine_log() as log:
        assert engine_log() == own / "log" / "engine.log"
        assert os.path.samestat(os.fstat(log.fileno()), engine_log().stat())
    # "~" is no folder here: a repository could have one, with models in it.
    for place in (hub_cache(), *ollama_stores()):
        assert place.is_absolute() and "~" not in place.parts
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="users and modes")
def test_what_a_stranger_has_put_in_its_place_is_not_used(
    without_home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    (without_home.path / "tmp" / f"fimls-{owner + 1}").mkdir(mode=0o777)
    for kind in WITHOUT_HOME.keys() - {"log"}:
        with pytest.raises(OSError, match="set HOME or TMPDIR to a folder of your own"):
            WITHOUT_HOME[kind]()
    with pytest.raises(OSError, match="set HOME or TMPDIR to a folder of your own"):
        runtime_folder()
    content, (problem,) = read_user_settings()
    assert content == {} and "set HOME or TMPDIR" in problem
    with open_engine_log() as log:  # costs the log, and nothing else
        assert log.name == os.devnull


@pytest.mark.skipif(sys.platform == "win32", reason="users and modes")
@pytest.mark.parametrize("session", [False, True])
def test_a_home_that_cannot_be_written_costs_the_log_and_not_the_sockets(
    strangers_home: Home, monkeypatch: pytest.MonkeyPatch, *, session: bool
) -> None:
    (strangers_home.path / "file").write_text("")  # root may write into any folder
    monkeypatch.setenv("HOME", str(strangers_home.path / "file"))
    if session:  # another user's, after `su`
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(strangers_home.path / "file"))
    assert runtime_folder() == strangers_home.path / "tmp" / f"fimls-{os.getuid()}"
    with open_engine_log() as log:
        assert log.name == os.devnull
    assert engine_log().name == "engine.log"  # what messages name
    assert read_user_settings() == ({}, ())


def test_a_folder_for_sockets_that_cannot_be_made_names_the_remedy(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home.path / "file").write_text("")
    monkeypatch.setenv("FIMLS_RUNTIME_DIR", str(home.path / "file" / "run"))
    with pytest.raises(OSError, match=r"File exists.*; set FIMLS_RUNTIME_DIR to a folder"):
        runtime_folder()
