"""How a server ends: when it is told to, when nobody is there any more, and when it was started
wrongly."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lsp_server.helpers import GONE_S, Endpoint, Home, Window, talks, until


@pytest.fixture
def editor() -> Iterator[subprocess.Popen[bytes]]:
    """The process that the server is told to go with. It holds no pipe of the server's, as under a
    shell in between."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


async def gone_in_time(window: Window) -> int:
    """The server's exit status; fails if it takes longer than promised."""
    started = time.monotonic()
    status = await window.exit_status()
    assert time.monotonic() - started <= GONE_S
    return status


@pytest.mark.asyncio
@pytest.mark.parametrize(("polite", "status"), [(True, 0), (False, 1)])
async def test_exit_ends_the_server_with_the_status_of_the_protocol(
    home: Home, polite: bool, status: int
) -> None:
    async with Window.spawn(home) as window:
        await window.start({"enabled": False})
        if polite:
            assert await window.request("shutdown") is None
        window.notify("exit")
        assert await gone_in_time(window) == status
    assert home.log("stderr") == ""


@pytest.mark.asyncio
async def test_the_end_of_input_ends_the_server(home: Home) -> None:
    async with Window.spawn(home) as window:
        await window.start({"enabled": False})
        window.end_of_input()
        assert await gone_in_time(window) == 1
    assert home.log("stderr") == ""


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize("after_s", [0.0, 0.3, 0.6, 1.2])
async def test_a_server_that_is_starting_ends_in_time(home: Home, after_s: float) -> None:
    """It waited for its own threads, which imported: two to nine seconds on a busy machine."""
    async with Window.spawn(home) as window:
        await window.start()
        window.open("x = ")
        window.ask(0, 4)
        await asyncio.sleep(after_s)
        window.end_of_input()
        assert await gone_in_time(window) == 1
    assert home.log("stderr") == ""


@pytest.mark.asyncio
async def test_the_end_of_input_before_anything_else_ends_the_server(home: Home) -> None:
    async with Window.spawn(home) as window:
        window.end_of_input()
        assert await window.exit_status() == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("named", ["by processId", "by --clientProcessId"])
async def test_a_server_goes_with_its_editor_in_mid_answer(
    home: Home, editor: subprocess.Popen[bytes], named: str
) -> None:
    """Although its input stays open, and nobody has taken note yet of the editor's end."""
    arguments = (
        ["--stdio", f"--clientProcessId={editor.pid}"] if named == "by --clientProcessId" else []
    )
    async with Endpoint(talks) as endpoint, Window.spawn(home, *arguments) as window:
        settings = {
            "remote.url": endpoint.url,
            "remote.format": "starcoder2",
            "remote.timeout": 1000.0,
        }
        await window.start(settings, processId=None if arguments else editor.pid)
        window.open("x = ")

        async def asked() -> bool:
            window.ask(0, 4)
            return endpoint.streams == 1

        await until(asked)
        editor.kill()
        assert await gone_in_time(window) == 1
        await until(lambda: endpoint.streams == 0)
    assert home.log("stderr") == ""


@pytest.mark.asyncio
async def test_an_editor_that_ends_while_the_engine_starts_leaves_no_server(home: Home) -> None:
    async with Window.spawn(home) as window:
        await window.start()
        await until(home.engines)
        window.end_of_input()
        await gone_in_time(window)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "settings",
    [
        {"enabled": False},
        {"remote.url": "http://127.0.0.1:9", "remote.format": "starcoder2"},
    ],
    ids=["disabled", "remote"],
)
async def test_a_spare_engine_that_is_not_needed_goes(home: Home, settings: dict[str, Any]) -> None:
    async with Window.spawn(home) as window:
        await until(home.engines)
        await window.start(settings)
        await until(lambda: not home.engines())


@pytest.mark.asyncio
async def test_a_spare_engine_goes_with_its_window(home: Home) -> None:
    async with Window.spawn(home) as window:
        await until(home.engines)
        window.process.kill()
        await until(lambda: not home.engines())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--tcp"], "fimls lsp: unknown argument '--tcp'; it takes --stdio only\n"),
        (["--stdio", "file.py"], "fimls lsp: unknown argument 'file.py'; it takes --stdio only\n"),
    ],
)
def test_unknown_arguments_end_it_at_once(home: Home, arguments: list[str], complaint: str) -> None:
    command = [sys.executable, "-m", "lsp_server", "lsp", *arguments]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=dict(os.environ)
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", complaint)
