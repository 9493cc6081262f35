"""Homes: folders for sockets and logs, and no engine that outlives a test; or an engine that a test
plays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lsp_server.engines import local
from tests.lsp_server.helpers import Home
from tests.lsp_server.played import Played


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the developer has set for an editor is not for the tests, nor are their counts the
    developer's."""
    for name in [name for name in os.environ if name.startswith("FIMLS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FIMLS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("FIMLS_CONFIG_DIR", str(tmp_path / "config"))


@pytest.fixture
def home(no_settings_from_outside: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A test's own home, also for what runs in the test's process."""
    home = Home()
    for name, value in home.environment.items():
        monkeypatch.setenv(name, value)
    yield home
    home.close()


@pytest.fixture(scope="module")
def shared_home() -> Iterator[Home]:
    """A home for the tests of a module that can share an engine: starting one takes seconds."""
    home = Home()
    yield home
    home.close()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Played:
    played = Played()
    monkeypatch.setattr(local, "make_engine", lambda *_, **__: played)
    return played
