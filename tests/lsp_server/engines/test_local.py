"""The engine process and its windows: shared, found, replaced, mended, and gone when nobody needs
it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lsp_server import __version__
from lsp_server.engines import local
from lsp_server.engines.interface import CompletionRequest, EngineState, EngineUnavailable
from lsp_server.engines.local import LocalEngine
from lsp_server.engines.process import open_engine_log
from model.engine.options import EngineOptions
from model.engine.process import RELEASED_S
from model.weights.folder import find_model
from tests.lsp_server.helpers import Home, front_folder, until

REQUEST = CompletionRequest((1, 50, 51, 3, 2), max_tokens=5)
ENDLESS = CompletionRequest((1, 50, 51, 3, 2), max_tokens=4000)


class WindowSide(LocalEngine):
    """A window's side of an engine, which remembers how it fared."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.states: list[str] = []
        self.messages: list[str] = []
        super().__init__(find_model(folder), EngineOptions(**settings), on_state=self._remember)

    def _remember(self, state: EngineState) -> None:
        if self.states[-1:] != [state.name]:
            self.states.append(state.name)
        if state.message:
            self.messages.append(state.message)

    async def ask(self) -> str | None:
        """The answer to a small request; None where there is none now."""
        return await self.answer(REQUEST)

    async def answer(self, request: CompletionRequest) -> str | None:
        try:
            return "".join([piece.text async for piece in self.complete(request)])
        except EngineUnavailable:
            return None


@asynccontextmanager
async def window_on(folder: Path, **settings: Any) -> AsyncIterator[WindowSide]:
    """A window whose engine is ready."""
    window = WindowSide(folder, **settings)
    window.start()
    assert (await window.wait_until_settled()).name == "ready", window.messages
    try:
        yield window
    finally:
        await window.close()


@pytest.fixture
def shared(shared_home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home where an engine may run already, for tests that leave it as it was."""
    for name, value in shared_home.environment.items():
        monkeypatch.setenv(name, value)
    return shared_home


# ---- one engine for all windows ----


ANOTHER = {
    "device": "cpu",
    "dtype": "float32",
    "quantization": "int8",
    "idle_timeout": 1.0,
    "threads": 2,
    "start_timeout": 1.0,
    "cache_memory": 1,
    "cache_disk": 1,
    "cache_weights": False,
}


@pytest.mark.parametrize("option", [each.name for each in fields(EngineOptions)])
def test_each_option_that_changes_an_engine_makes_another(
    home: Home, talkative_folder: Path, option: str
) -> None:
    """A new option does, unless it is marked: two windows that differ in it share no engine."""
    plain = WindowSide(talkative_folder).socket
    other = WindowSide(talkative_folder, **{option: ANOTHER[option]}).socket
    alike = ("idle_timeout", "start_timeout", "cache_weights")
    assert (other == plain) == (option in alike)


@pytest.mark.asyncio
async def test_two_windows_share_one_engine(shared: Home, talkative_folder: Path) -> None:
    async with window_on(talkative_folder) as first, window_on(talkative_folder) as second:
        assert len(shared.engines()) == 1
        served = (await shared.status())["served"]
        assert len(await first.ask()) == len(await second.ask()) == 5
        while (now := (await shared.status())["served"]) == served + 1:
            await asyncio.sleep(0.01)  # the engine counts a request just after its last event
        assert now == served + 2


@pytest.mark.asyncio
async def test_the_engine_outlives_its_windows(shared: Home, talkative_folder: Path) -> None:
    async with window_on(talkative_folder):
        before = shared.engines()
    async with window_on(talkative_folder):
        assert shared.engines() == before


@pytest.mark.asyncio
async def test_the_engine_loads_torch_and_nothing_heavier(
    shared: Home, talkative_folder: Path
) -> None:
    async with window_on(talkative_folder) as window:
        assert await window.ask()
        assert (await shared.status())["packages"] == ["torch"]


@pytest.mark.asyncio
async def test_only_this_user_can_reach_the_engine(shared: Home, talkative_folder: Path) -> None:
    async with window_on(talkative_folder) as window:
        assert stat.S_IMODE(window.socket.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(window.socket.stat().st_mode) == 0o600


@pytest.mark.asyncio
async def test_an_answer_that_is_closed_ends_the_work(shared: Home, talkative_folder: Path) -> None:
    async with window_on(talkative_folder) as window:
        async with aclosing(window.complete(ENDLESS)) as pieces:
            await anext(pieces)
            assert await shared.is_busy()
        await until_idle(shared)


async def until_idle(home: Home) -> None:
    async def idle() -> bool:
        return not await home.is_busy()

    await until(idle)


@pytest.mark.asyncio
async def test_five_windows_that_start_at_once_make_one_engine(
    home: Home, talkative_folder: Path
) -> None:
    windows = [WindowSide(talkative_folder) for _ in range(5)]
    for window in windows:
        window.start()
    assert {(await window.wait_until_settled()).name for window in windows} == {"ready"}
    await until(lambda: len(home.engines()) == 1)  # the others see that they are not needed
    assert [len(await window.ask() or "") for window in windows] == [5] * 5
    assert [window.messages for window in windows] == [[]] * 5
    for window in windows:
        await window.close()


@pytest.mark.asyncio
async def test_an_engine_that_all_have_released_ends_after_what_it_is_at(
    home: Home, talkative_folder: Path
) -> None:
    theirs = replace(REQUEST, client="theirs")
    async with window_on(talkative_folder) as window:
        assert await window.answer(theirs)
        await window.release("mine")  # which has asked nothing
        assert await window.answer(replace(REQUEST, client="mine"))
        await window.release("theirs")
        assert await window.answer(theirs)  # it asks again: it needs it after all
        await window.release("mine")
        await asyncio.sleep(3 * RELEASED_S + 1)
        assert home.engines(), "the others need it"
        async with aclosing(window.complete(replace(ENDLESS, client="theirs"))) as pieces:
            await anext(pieces)
            await window.release("mine")
            await window.release("theirs")
            await asyncio.sleep(3 * RELEASED_S)
            assert await anext(pieces)
        await until(lambda: not home.engines())


@pytest.mark.asyncio
async def test_an_engine_that_is_released_while_it_starts_ends(
    home: Home, talkative_folder: Path
) -> None:
    window = WindowSide(talkative_folder)
    window.start()
    await window.release("mine")
    await until(lambda: not home.engines())
    await window.close()


# ---- what is found in its place ----


@pytest.mark.asyncio
async def test_a_socket_that_nobody_serves_is_no_obstacle(
    home: Home, talkative_folder: Path
) -> None:
    path = WindowSide(talkative_folder).socket
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    path.with_suffix(".lock").touch()
    async with window_on(talkative_folder) as window:
        assert await window.ask()


@pytest.mark.asyncio
async def test_an_engine_of_another_version_is_replaced(home: Home, talkative_folder: Path) -> None:
    path = WindowSide(talkative_folder).socket
    stopped = asyncio.Event()

    async def status(request: web.Request) -> web.Response:
        status = {
            "server": "fimls",
            "version": "0.0.1",
            "model": str(talkative_folder),
            "state": "ready",
        }
        return web.json_response(status)

    async def stop(request: web.Request) -> web.Response:
        stopped.set()
        return web.json_response({"stopping": True})

    app = web.Application()
    app.add_routes([web.get("/fimls/status", status), web.post("/fimls/stop", stop)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()

    async def leave() -> None:
        await stopped.wait()
        await runner.cleanup()

    leaving = asyncio.ensure_future(leave())
    async with window_on(talkative_folder) as window:
        assert stopped.is_set()
        assert (await home.status())["version"] == __version__
        assert await window.ask()
    await leaving


# ---- the engine goes, and comes back ----


@pytest.mark.asyncio
async def test_an_engine_killed_in_mid_answer_is_mended(home: Home, talkative_folder: Path) -> None:
    async with window_on(talkative_folder) as window:
        with pytest.raises(EngineUnavailable):
            async for _ in window.complete(ENDLESS):
                for pid in home.engines():
                    os.kill(pid, signal.SIGKILL)
        assert await until(window.ask)
        assert window.states == ["loading", "ready", "absent", "loading", "ready"]
        assert window.messages == []


@pytest.mark.asyncio
async def test_an_engine_that_dies_leaves_no_zombie_behind(
    home: Home, talkative_folder: Path
) -> None:
    async with window_on(talkative_folder):
        (pid,) = home.engines()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.asyncio
async def test_an_idle_engine_goes_and_comes_back(home: Home, talkative_folder: Path) -> None:
    async with window_on(talkative_folder, idle_timeout=1.0) as window:
        assert await window.ask()
        await until(lambda: not home.engines())
        assert list(home.runtime.glob("*.sock")) == []
        assert await until(window.ask)
        assert window.messages == []


@pytest.mark.asyncio
@pytest.mark.parametrize("when", ["loading", "ready", "busy"])
async def test_an_engine_that_is_told_to_stop_ends_well(
    home: Home, talkative_folder: Path, when: str
) -> None:
    window = WindowSide(talkative_folder)
    window.start()
    engine = window._process
    await (until(home.status) if when == "loading" else window.wait_until_settled())
    async with aclosing(window.complete(ENDLESS)) as pieces:
        if when == "busy":
            await anext(pieces)
        await window._client.call("POST", "/fimls/stop")
        await window.close()
        assert await asyncio.to_thread(engine.wait, 60) == 0
    assert not window.socket.exists()


# ---- the engine cannot be had ----


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda:7"}, "cuda:7"),
        ({"start_timeout": 0.01}, "did not get ready within 0 s"),
    ],
)
async def test_an_engine_that_fails_says_why(
    home: Home, talkative_folder: Path, settings: dict[str, Any], message: str
) -> None:
    window = WindowSide(talkative_folder, **settings)
    window.start()
    assert (await window.wait_until_settled()).name == "failed"
    assert message in window.messages[0]
    await window.close()


@pytest.mark.asyncio
async def test_an_engine_that_cannot_even_be_started_is_tried_again_later(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    window = WindowSide(with_weights(tmp_path))
    window.start()
    assert window.state.name == "failed"
    assert window.messages == [
        "The engine could not be started ([Errno 2] No such file or directory: '/no/such/python')."
    ]
    assert await window.ask() is None
    assert window.states[-2:] == ["loading", "failed"]
    await window.close()


def with_weights(folder: Path) -> Path:
    """A model folder that looks whole from outside."""
    front_folder(folder)
    (folder / "model.safetensors").touch()
    return folder


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.asyncio
async def test_an_engine_that_keeps_dying_is_started_after_growing_pauses(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, window = Clock(), WindowSide(with_weights(tmp_path))

    async def ready_at_once() -> None:
        window._ready_since = clock.now
        window._set(EngineState("ready", 1.0))

    monkeypatch.setattr(local, "time", clock)
    monkeypatch.setattr(window, "_bring_up", ready_at_once)
    monkeypatch.setattr(window, "_spawn", lambda: None)
    window.start()

    async def pause_after_living(seconds: float) -> float:
        """Lets it live so long and die; someone types on; how long it takes until it is there
        again."""
        assert (await window.wait_until_settled()).name == "ready"
        clock.now += seconds
        died = clock.now
        window._lost()
        while window.state.name == "absent":
            clock.now += 0.5
            window.start()
        return clock.now - died

    assert [await pause_after_living(2.0) for _ in range(9)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert [
        await pause_after_living(31.0),
        await pause_after_living(2.0),
        await pause_after_living(2.0),
    ] == [0, 1, 2]
    await window.close()


# ---- folders ----


def test_without_a_log_folder_there_is_still_an_engine(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIMLS_LOG_DIR", "/dev/null/nowhere")
    with open_engine_log() as log:
        assert log.name == os.devnull


# ---- the window's own process ----


def test_the_language_server_never_loads_torch_or_transformers(talkative_folder: Path) -> None:
    script = f"""
import sys
import lsp_server.protocol.app, lsp_server.session.prompter, lsp_server.completion.suggestions
import lsp_server.engines.local, lsp_server.engines.interface
from lsp_server.settings import Settings
lsp_server.session.prompter.Prompter.for_settings(Settings(model={str(talkative_folder)!r}))
heavy = {{"torch", "transformers", "accelerate", "bitsandbytes", "numpy", "typer"}}
print(sorted(heavy & set(sys.modules)))
"""
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
        == "[]\n"
    )
