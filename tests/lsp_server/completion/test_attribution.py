"""Suggestions that repeat text of known packages, from the model's answer to what the editor and
the log are told."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lsp_server.commands.complete import complete_at
from lsp_server.session import known_packages
from lsp_server.settings import parse
from tests.corpora import code, write_corpus
from tests.lsp_server.helpers import INLINE, Endpoint, Window, says, until, window_in_process
from training.attribution import build

KNOWN = "".join(line.lstrip() + "\n" for line in code("known").split("\n") if line)
LINES = KNOWN.split("\n")
TWO = {"package": "two", "version": "1.0", "licence": "BSD-3-Clause"}


@pytest.fixture
def folder(starcoder2_folder: Path, tmp_path: Path) -> Path:
    """A model folder with a filter of a corpus in which KNOWN stands."""
    folder = shutil.copytree(starcoder2_folder, tmp_path / "model")
    (folder / "attribution.bin").write_bytes(
        build(write_corpus(tmp_path, {"two": [KNOWN]}), 100_000)
    )
    return folder


def settings_for(endpoint: Endpoint, folder: Path, **more: Any) -> dict[str, Any]:
    """The folder's tokenizer and filter, and an endpoint that says what a test wants."""
    return {"model": str(folder), "remote.url": endpoint.url, "multiline": "never"} | more


@asynccontextmanager
async def window_on_known(
    folder: Path, answer: str, capabilities: dict[str, Any] = INLINE, **more: Any
) -> AsyncIterator[Window]:
    """A window on KNOWN up to the middle of its 20th line; the endpoint says how it goes on
    there."""
    async with (
        Endpoint(says(answer + "\n")) as endpoint,
        window_in_process(settings_for(endpoint, folder, **more), capabilities) as window,
    ):
        window.open("\n".join([*LINES[:20], LINES[20][:12]]))
        yield window


@pytest.mark.asyncio
async def test_an_inline_item_says_whose_text_it_makes(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lsp_server")
    async with window_on_known(folder, LINES[20][12:]) as window:
        item = await window.suggestion(20, 12)
    assert item["insertText"] == LINES[20][12:]
    _, sentence = item["command"]["arguments"]
    assert sentence.startswith("makes text of two 1.0 (BSD-3-Clause), at least ")
    assert int(sentence.split()[-2]) >= 50
    assert "makes text of two 1.0 (BSD-3-Clause)" in caplog.text
    assert LINES[20] not in caplog.text


@pytest.mark.asyncio
async def test_a_menus_entry_says_so_too(folder: Path) -> None:
    async with window_on_known(folder, LINES[20][12:], {}) as window:
        item = await window.suggestion(20, 12, menu=True)
    assert item["command"]["arguments"][1].startswith("makes text of two")
    assert "makes text of two 1.0 (BSD-3-Clause)" in item["detail"]


@pytest.mark.asyncio
async def test_of_a_suggestion_of_ones_own_nothing_is_said(folder: Path) -> None:
    async with (
        Endpoint(says("something_of_my_own(here)\n")) as endpoint,
        window_in_process(settings_for(endpoint, folder)) as window,
    ):
        window.open("x = ")
        item = await window.suggestion(0, 4)
    assert item["insertText"] == "something_of_my_own(here)"
    assert len(item["command"]["arguments"]) == 1


@pytest.mark.asyncio
async def test_such_suggestions_can_be_hidden(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lsp_server")
    async with window_on_known(folder, LINES[20][12:], attribution="hide") as window:

        async def asked() -> bool:
            assert await window.ask(20, 12)[1] == []
            return '"attributed"' in caplog.text

        await until(asked)
    assert "two 1.0 (BSD-3-Clause)" in caplog.text


@pytest.mark.asyncio
async def test_nobody_looks_where_it_is_off(folder: Path) -> None:
    async with window_on_known(folder, LINES[20][12:], attribution="off") as window:
        assert len((await window.suggestion(20, 12))["command"]["arguments"]) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("spoilt", [b"", b"something else", "cut short"])
async def test_a_broken_file_is_one_warning_and_suggestions_go_on(
    spoilt: bytes | str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lsp_server")
    file = folder / "attribution.bin"
    file.write_bytes(file.read_bytes()[:-100] if isinstance(spoilt, str) else spoilt)
    async with window_on_known(folder, LINES[20][12:]) as window:
        for _ in range(3):
            assert len((await window.suggestion(20, 12))["command"]["arguments"]) == 1
        assert window.shown == []
    (warning,) = [
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
    ]
    assert str(file) in warning and "again" in warning and "\n" not in warning


@pytest.mark.asyncio
async def test_a_completion_from_the_shell_says_so(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "a.py"
    place.write_text("\n".join([*LINES[:20], LINES[20][:12]]))
    async with Endpoint(says(LINES[20][12:] + "\n")) as endpoint:
        for mode in ("show", "hide", "off"):
            settings, problems = parse(settings_for(endpoint, folder, attribution=mode))
            answer = await complete_at(f"{place}:21:13", settings)
            assert problems == () and json.dumps(answer)
            if mode == "off":
                assert answer["attribution"] is None
            else:
                assert list(answer["attribution"]["sources"]) == [TWO]
            assert answer["text"] == ("" if mode == "hide" else LINES[20][12:])


@pytest.mark.asyncio
async def test_the_file_is_not_read_before_a_suggestion(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(
        known_packages, "read_bytes", lambda path, most: read.append(path) or path.read_bytes()
    )
    async with window_on_known(folder, LINES[20][12:]) as window:
        assert folder / "attribution.bin" not in read
        await window.suggestion(20, 12)
        await window.suggestion(20, 12)
    assert read.count(folder / "attribution.bin") == 1


def with_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def with_terabyte(file: Path) -> None:
    os.truncate(file, 2**40)


@pytest.mark.asyncio
@pytest.mark.skipif(sys.platform == "win32", reason="FIFOs")
@pytest.mark.parametrize("spoil", [with_fifo, with_terabyte])
async def test_what_becomes_of_the_file_later_holds_no_suggestion_up(
    spoil: Callable[[Path], None], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lsp_server")
    async with window_on_known(folder, LINES[20][12:]) as window:

        async def ready() -> bool:
            return (await window.request("fimls/status"))["state"] == "ready"

        await until(ready)
        spoil(folder / "attribution.bin")
        for _ in range(2):
            (item,) = await window.ask(20, 12, invoked=True)[1]
            assert len(item["command"]["arguments"]) == 1
    assert caplog.text.count("attribution.bin cannot be used") == 1


@pytest.mark.asyncio
async def test_a_disk_that_does_not_answer_holds_no_suggestion_up(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = threading.Event()
    monkeypatch.setattr(known_packages, "read_bytes", lambda path, most: dead.wait() and b"")
    monkeypatch.setattr(known_packages, "READING_S", 0.05)
    async with window_on_known(folder, LINES[20][12:]) as window:
        for _ in range(3):
            (item,) = await window.ask(20, 12, invoked=True)[1]
            assert len(item["command"]["arguments"]) == 1
            window.reopen("\n".join([*LINES[:20], LINES[20][:12]]))
        (reader,) = (each for each in threading.enumerate() if each.name == "fimls-files")
        assert reader.daemon, "the process could not end"
    dead.set()
    assert caplog.text.count("the disk does not answer") == 1
