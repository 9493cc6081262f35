"""No file of a model is read on the server's event loop: one on a dead mount would stop it."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lsp_server.engines.local import LocalEngine
from model.export.export import export
from model.weights.files import BUNDLED
from model.weights.folder import find_model
from tests.lsp_server.helpers import Home, until, window_in_process

pytestmark = pytest.mark.asyncio

watched: list[Path] = []  # the folders whose files may be read on other threads only
found: list[str] = []
read: set[str] = set()


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook stays for good; so it looks only while something is watched."""
    if watched and event in ("open", "os.listdir", "os.scandir"):
        path = str(arguments[0])
        if any(path.startswith(str(folder)) for folder in watched):
            read.add(Path(path).name)
            if asyncio._get_running_loop() is not None:
                found.append(path + "\n" + "".join(traceback.format_stack(limit=12)))


sys.addaudithook(hook)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """A folder and a GGUF file, whose engines never come up."""
    monkeypatch.setattr(LocalEngine, "_spawn", lambda self: None)
    folder = tmp_path / "models" / "folder"
    shutil.copytree(BUNDLED, folder)
    export(find_model("bundled"), tmp_path / "models" / "gguf", "gguf", "float16")
    (file,) = (tmp_path / "models" / "gguf").glob("*.gguf")
    watched.append(tmp_path / "models")
    yield [folder, file]
    watched.clear()
    found.clear()
    read.clear()


async def test_no_file_of_a_model_is_read_on_the_loop(home: Home, models: list[Path]) -> None:
    folder, file = models
    async with window_in_process({"model": ""}) as window:  # "": not set
        window.open("def f():\n    ")
        for model in (folder, file):
            await window.command("fimls.chooseModel", {"name": str(model)})
            await window.ask(1, 4)[1]
            await window.request("fimls/status")
            assert len(await window.command("fimls.listModels")) > 5
        await until(lambda: {"config.json", "tokenizer.json", file.name} <= read)
    assert found == [], found[0]


async def test_the_watch_sees_what_is_read(models: list[Path]) -> None:
    folder, file = models
    (folder / "config.json").read_text()
    os.close(os.open(file, os.O_RDONLY))
    await asyncio.to_thread((folder / "tokenizer.json").read_text)
    assert [Path(line.split("\n")[0]).name for line in found] == ["config.json", file.name]
