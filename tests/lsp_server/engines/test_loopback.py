"""The engine on a loopback port with a key in a private file, as on systems without Unix sockets;
FIMLS_TRANSPORT chooses it here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from lsp_server.engines.local import local_client
from model.engine.http.addresses import answers, listen
from model.engine.http.routes import make_app
from model.engine.loading import EngineProcess
from model.engine.options import Launch
from model.engine.rendezvous import engines_in, lock_of, read_address, suffix
from tests.lsp_server.helpers import Home, Window, until


@contextlib.asynccontextmanager
async def engine_at(path: Path) -> AsyncIterator[None]:
    """An engine in this process that loads no model; its lock is the caller's matter."""
    process = EngineProcess(Launch(listen=f"loopback:{path}"))
    runner = web.AppRunner(make_app(process), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await listen(runner, process)
        yield
    finally:
        assert process.port is not None
        await process.port.close()
        await runner.cleanup()


async def status(path: Path) -> dict[str, Any] | None:
    client = local_client(path)
    try:
        return await client.call("GET", "/fimls/status")
    finally:
        await client.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "a.port"


@pytest.mark.asyncio
async def test_who_can_read_the_file_is_answered_and_nobody_else(path: Path) -> None:
    async with engine_at(path):
        with lock_of(path):
            told = await status(path)
            assert told is not None and told["state"] == "loading"
            assert engines_in(path.parent) == [path]
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert await asyncio.to_thread(answers, path)
            url = f"http://127.0.0.1:{read_address(path).port}/fimls/status"
            async with aiohttp.ClientSession() as session, session.get(url) as response:
                assert response.status == 401


@pytest.mark.asyncio
async def test_each_engine_has_a_key_of_its_own(path: Path) -> None:
    keys = set()
    for _ in range(2):
        async with engine_at(path):
            with lock_of(path):
                keys.add(read_address(path).key)
    assert len(keys) == 2 and all(len(key) > 30 for key in keys)


@pytest.mark.asyncio
@pytest.mark.parametrize("why", ["no lock", "open to others", "a link", "garbage", "absent"])
async def test_an_address_that_may_be_anybodys_is_not_asked(
    path: Path, tmp_path: Path, why: str
) -> None:
    """no lock: the engine was killed, and its port may be another program's."""
    async with engine_at(path):
        with lock_of(path):
            if why == "open to others":
                path.chmod(0o644)
            elif why == "a link":
                path.rename(tmp_path / "elsewhere")
                path.symlink_to(tmp_path / "elsewhere")
            elif why == "garbage":
                path.write_text('{"port": "many"}')
            elif why == "absent":
                path.unlink()
            if why != "no lock":
                assert await status(path) is None
                assert not await asyncio.to_thread(answers, path)
        assert await status(path) is None


@pytest.mark.parametrize(("transport", "expected"), [("loopback", ".port"), ("", ".sock")])
def test_the_setting_chooses(
    transport: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIMLS_TRANSPORT", transport)
    assert suffix() == expected


@pytest.mark.slow
@pytest.mark.asyncio
async def test_the_whole_product_works_over_loopback(
    home: Home, talkative_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two windows share one engine, which is started again after it was killed."""
    home.environment["FIMLS_TRANSPORT"] = "loopback"
    settings = {"model": str(talkative_folder), "maxTokens": 8}
    async with Window.spawn(home) as first, Window.spawn(home) as second:
        for window in (first, second):
            await window.start(settings)
            window.open("x = ")
            assert await window.suggestion(0, 4)
        (engine,) = home.engines()
        assert [path.suffix for path in engines_in(home.runtime)] == [".port"]
        os.kill(engine, signal.SIGKILL)
        for window in (first, second):
            window.reopen("x = ")
            assert await window.suggestion(0, 4)
        (again,) = await until(home.engines)
        assert again != engine
        assert first.shown == second.shown == []
