"""Neovims of each version: one for each test that needs its own, and one for all tests of a module that do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.editors.nvim import VERSIONS, Opener, Shared, opener


@pytest.fixture(params=VERSIONS)
def open_nvim(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    with opener(request.param, tmp_path) as made:
        yield made


@pytest.fixture(scope="module", params=VERSIONS)
def shared_nvim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("nvim") / "0"
    folder.mkdir()
    with opener(request.param, folder) as made:
        yield Shared(made)
