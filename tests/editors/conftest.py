"""Neovims of each version: one for each test that needs its own, and one for all tests of a module
that do not; and one VS Code for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.editors.nvim import VERSIONS, Opener, Shared, opener

if TYPE_CHECKING:
    from tests.editors.vscode import Code


@pytest.fixture(params=VERSIONS)
def open_nvim(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    with opener(request.param, tmp_path) as made:
        yield made


@pytest.fixture(scope="module", params=VERSIONS)
def shared_nvim(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("nvim") / "0"
    folder.mkdir()
    with opener(request.param, folder) as made:
        yield Shared(made)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the canned server behind `code` has heard."""
    return tmp_path_factory.mktemp("vscode") / "heard.jsonl"


@pytest.fixture(scope="module")
def code(log: Path) -> Iterator[Code]:
    from tests.editors.vscode import QUIET, canned, start  # Playwright, which the others do without

    with start({"fimls.serverCommand": canned(log)}, QUIET) as code:
        code.wait_state("ready")
        code.press("Control+b")  # the side bar
        yield code
