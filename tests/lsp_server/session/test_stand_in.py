"""The bundled model, or the one that answered before, stands in while the chosen model loads or
cannot be used. The engines are played; the last test has real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lsp_server.engines import local
from lsp_server.engines.interface import EngineState
from lsp_server.session import session, stand_in
from lsp_server.settings import Settings
from lsp_server.user_settings import store_model
from tests.lsp_server.helpers import INLINE, Home, Window, until, window_in_process
from tests.lsp_server.played import Played, Typist, settle

WATCHES = INLINE | {"experimental": {"fimls": {"status": True}}}
READY = EngineState("ready", 1.0)


class Loads(Played):
    """A played engine that is ready, or fails, when the test says so."""

    def __init__(self, on_state: Callable[[EngineState], None]) -> None:
        super().__init__()
        self.state = EngineState("absent")
        self.released = self.closed = 0
        self._on_state = on_state
        self._settled = asyncio.Event()

    def start(self) -> None:
        super().start()
        if self.state.name in ("absent", "failed"):
            self._settled.clear()
            self.becomes(EngineState("loading"))

    def becomes(self, state: EngineState) -> None:
        self.state = state
        if state.name in ("ready", "failed"):
            self._settled.set()
        self._on_state(state)

    async def wait_until_settled(self) -> EngineState:
        await self._settled.wait()
        return self.state

    async def release(self, client: str) -> None:
        self.released += 1

    async def close(self) -> None:
        self.closed += 1


class Engines:
    """made: every engine that was made, with its model."""

    def __init__(self) -> None:
        self.made: list[tuple[str, Loads]] = []

    def make(
        self, settings: Settings, *, on_state: Callable[[EngineState], None] = lambda state: None
    ) -> Loads:
        engine = Loads(on_state)
        engine.address = str(Path(settings.model).resolve())
        self.made.append((settings.model, engine))
        return engine

    async def of(self, model: str, number: int = 0) -> Loads:
        """The engine made for a model, once it is starting."""

        def found() -> Loads | None:
            engines = [engine for name, engine in self.made if name == model]
            return engines[number] if len(engines) > number and engines[number].starts else None

        return await until(found)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    engines = Engines()
    monkeypatch.setattr(local, "make_engine", engines.make)
    monkeypatch.setattr(session, "STAND_IN_AFTER_S", 0.001)
    monkeypatch.setattr(stand_in, "LARGE_BYTES", 0)
    return engines


async def shows(window: Window, state: str, *words: str) -> dict[str, Any]:
    """Waits until this is the window's status; returns it."""

    async def found() -> dict[str, Any] | None:
        status = await window.request("fimls/status", {})
        fits = status["state"] == state and all(word in status["message"] for word in words)
        return status if fits else None

    return await until(found)


async def suggests(typist: Typist, engine: Loads, text: str) -> None:
    """The engine is asked, and what it says is suggested."""
    number = len(engine.asked)
    items = typist.ask_at(typist.text + "#\n    ")
    assert await engine.answers(number, text, items) == [text.rstrip("\n")]


@pytest.mark.asyncio
async def test_the_bundled_model_answers_until_the_chosen_one_can(
    engines: Engines, talkative_folder: Path
) -> None:
    model = str(talkative_folder)
    async with window_in_process({"model": model, "format": "starcoder2"}) as window:
        chosen, bundled = await engines.of(model), await engines.of("bundled")
        status = await shows(window, "loading", f"Loading the model '{model}'")
        assert status["model"] == model
        bundled.becomes(READY)
        chosen.becomes(EngineState("loading", 0.5))
        await shows(window, "loading", f"{model!r} is loading (50%), 'bundled' answers meanwhile.")
        typist = Typist(window)
        await suggests(typist, bundled, "a = 1\n")
        assert chosen.asked == []

        typist.to(typist.text + "#\n    ")
        items = typist.ask()  # it is on its way at the switch
        stream = await bundled.stream(1)
        chosen.becomes(READY)
        await shows(window, "busy", model)
        await until(lambda: bundled.released)
        stream.finish("b = 2\n")
        assert await chosen.answers(0, "c = 3\n", items) == ["c = 3"]
        await suggests(typist, chosen, "d = 4\n")
        assert bundled.closed == 0  # it might still answer
        assert window.shown == []
    assert (bundled.closed, chosen.closed, chosen.released) == (1, 1, 0)


@pytest.mark.asyncio
async def test_who_asks_explicitly_waits_for_whichever_is_first(
    engines: Engines, talkative_folder: Path
) -> None:
    async with window_in_process({"model": str(talkative_folder), "alternatives": 1}) as window:
        bundled = await engines.of("bundled")
        typist = Typist(window)
        items = typist.ask(invoked=True)
        await settle()
        bundled.becomes(READY)
        assert await bundled.answers(0, "a = 1\n", items) == ["a = 1"]


@pytest.mark.asyncio
async def test_a_model_that_loads_quickly_needs_nobody(
    engines: Engines, talkative_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "STAND_IN_AFTER_S", 0.3)
    async with window_in_process({"model": str(talkative_folder)}) as window:
        chosen = await engines.of(str(talkative_folder))
        chosen.becomes(READY)
        await shows(window, "ready")
        await asyncio.sleep(0.5)
    assert len(engines.made) == 1


@pytest.mark.asyncio
async def test_a_stand_in_that_comes_too_late_is_released(
    engines: Engines, talkative_folder: Path
) -> None:
    async with window_in_process({"model": str(talkative_folder)}) as window:
        chosen, bundled = await engines.of(str(talkative_folder)), await engines.of("bundled")
        await shows(window, "loading")
        chosen.becomes(READY)
        await until(lambda: bundled.released)
        await shows(window, "ready", str(talkative_folder))
    assert bundled.closed == 1


@pytest.mark.asyncio
async def test_a_chosen_model_that_fails_leaves_the_bundled_one_answering(
    engines: Engines, talkative_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with window_in_process({"model": str(talkative_folder)}, WATCHES) as window:
        chosen, bundled = await engines.of(str(talkative_folder)), await engines.of("bundled")
        bundled.becomes(READY)
        chosen.becomes(EngineState("failed", message="There is no memory for it."))
        await shows(window, "failed", "There is no memory for it. Meanwhile 'bundled' answers.")
        typist = Typist(window)
        await suggests(typist, bundled, "a = 1\n")
        await shows(window, "failed", "There is no memory for it.")  # it still says so
        assert (bundled.released, chosen.starts) == (0, 1)
        monkeypatch.setattr(session, "RETRY_S", 0.0)
        chosen.becomes(EngineState("failed", message="There is no memory for it."))
        items = typist.ask_at(typist.text + "#")
        await until(lambda: chosen.starts == 2)
        assert await bundled.answers(1, "b = 2\n", items) == ["b = 2"]
        chosen.becomes(READY)
        await shows(window, "ready", str(talkative_folder))


@pytest.mark.asyncio
async def test_a_chosen_model_that_is_not_there_leaves_the_bundled_one_answering(
    engines: Engines, tmp_path: Path
) -> None:
    async with window_in_process({"model": str(tmp_path / "nowhere")}) as window:
        await until(lambda: window.shown)
        bundled = await engines.of("bundled")
        bundled.becomes(READY)
        await shows(window, "failed", "nowhere", "Meanwhile 'bundled' answers.")
        await suggests(Typist(window), bundled, "a = 1\n")
        assert len(window.shown) == 1 and "nowhere" in window.shown[0]


@pytest.mark.asyncio
@pytest.mark.parametrize("broken", ["for the window", "for the engine"])
async def test_who_asks_explicitly_with_a_broken_model_waits_for_the_bundled_one(
    engines: Engines, talkative_folder: Path, tmp_path: Path, broken: str
) -> None:
    """The answer was empty until the bundled one had come."""
    is_there = broken == "for the engine"
    model = str(talkative_folder if is_there else tmp_path / "nowhere")
    async with window_in_process({"model": model, "alternatives": 1}) as window:
        typist = Typist(window)
        items = typist.ask(invoked=True)
        if is_there:
            chosen = await engines.of(model)
            chosen.becomes(EngineState("failed", message="nowhere"))
        bundled = await engines.of("bundled")
        await settle()
        assert not items.done()
        bundled.becomes(READY)
        assert await bundled.answers(0, "a = 1\n", items) == ["a = 1"]
        assert len(window.shown) == 1 and "nowhere" in window.shown[0]


@pytest.mark.asyncio
async def test_who_asks_explicitly_where_no_model_works_is_answered_in_words(
    engines: Engines, tmp_path: Path
) -> None:
    async with window_in_process({"model": str(tmp_path / "nowhere")}, WATCHES) as window:
        items = Typist(window).ask(invoked=True)
        bundled = await engines.of("bundled")
        assert window.shown == []  # the status shows it
        bundled.becomes(EngineState("failed", message="no"))
        assert await items == []
        assert len(window.shown) == 1 and "nowhere" in window.shown[0]


@pytest.mark.asyncio
async def test_if_the_bundled_model_fails_too_nothing_is_tried_again(
    engines: Engines, talkative_folder: Path
) -> None:
    async with window_in_process({"model": str(talkative_folder)}) as window:
        chosen, bundled = await engines.of(str(talkative_folder)), await engines.of("bundled")
        bundled.becomes(EngineState("failed", message="no"))
        await until(lambda: bundled.released)
        for share in (0.2, 0.4):
            chosen.becomes(EngineState("loading", share))
            await settle()
        chosen.becomes(READY)
        await shows(window, "ready")
    assert len(engines.made) == 2 and window.shown == []


@pytest.mark.asyncio
async def test_the_former_model_answers_until_the_new_choice_can(
    engines: Engines, talkative_folder: Path
) -> None:
    model = str(talkative_folder)
    async with window_in_process() as window:
        bundled = await engines.of("bundled")
        bundled.becomes(READY)
        typist = Typist(window)
        await shows(window, "ready", "bundled")
        await suggests(typist, bundled, "a = 1\n")
        await window.command("fimls.chooseModel", {"name": model})
        chosen = await engines.of(model)
        await shows(window, "loading", "'bundled' answers meanwhile")
        await suggests(typist, bundled, "b = 2\n")
        chosen.becomes(READY)
        await shows(window, "ready", model)
        await suggests(typist, chosen, "c = 3\n")
        assert (bundled.released, len(engines.made)) == (1, 2)

        await window.command("fimls.chooseModel", {"name": model})  # as it is
        await shows(window, "ready", model)
        assert len(engines.made) == 2


@pytest.mark.asyncio
async def test_going_back_while_the_new_choice_loads(
    engines: Engines, talkative_folder: Path
) -> None:
    model = str(talkative_folder)
    async with window_in_process() as window:
        bundled = await engines.of("bundled")
        bundled.becomes(READY)
        await shows(window, "ready", "bundled")
        await window.command("fimls.chooseModel", {"name": model})
        chosen = await engines.of(model)
        await window.command("fimls.chooseModel", {"name": "bundled"})
        again = await engines.of("bundled", 1)
        again.becomes(READY)  # it is the same process
        await shows(window, "ready", "bundled")
        await suggests(Typist(window), again, "a = 1\n")
        assert (bundled.released, chosen.released, again.released) == (0, 1, 0)


@pytest.mark.asyncio
async def test_another_name_of_the_model_that_runs_leaves_its_engine(
    engines: Engines, talkative_folder: Path, tmp_path: Path
) -> None:
    other_name = tmp_path / "link"
    other_name.symlink_to(talkative_folder)
    store_model(str(talkative_folder))
    async with window_in_process() as window:
        first = await engines.of(str(talkative_folder))
        first.becomes(READY)
        await shows(window, "ready", talkative_folder.name)
        await window.command("fimls.chooseModel", {"name": str(other_name)})
        again = await engines.of(str(other_name))
        again.becomes(READY)
        await shows(window, "ready", "link")
        await suggests(Typist(window), again, "a = 1\n")
        assert (first.released, again.released) == (0, 0)


@pytest.mark.asyncio
async def test_a_choice_that_failed_can_be_made_again(
    engines: Engines, talkative_folder: Path
) -> None:
    model = str(talkative_folder)
    async with window_in_process() as window:
        (await engines.of("bundled")).becomes(READY)
        await shows(window, "ready")
        await window.command("fimls.chooseModel", {"name": model})
        (await engines.of(model)).becomes(EngineState("failed", message="no memory"))
        await shows(window, "failed", "no memory Meanwhile 'bundled' answers.")
        await window.command("fimls.chooseModel", {"name": model})
        (await engines.of(model, 1)).becomes(READY)
        await shows(window, "ready", model)


@pytest.mark.asyncio
async def test_a_lost_engine_is_started_again_and_covered(
    engines: Engines, talkative_folder: Path
) -> None:
    """As after its idle time."""
    model = str(talkative_folder)
    async with window_in_process({"model": model}) as window:
        chosen = await engines.of(model)
        chosen.becomes(READY)
        await shows(window, "ready")
        before = len(engines.made) - 1
        chosen.becomes(EngineState("absent"))
        typist = Typist(window)
        assert await typist.ask() == []
        assert chosen.state.name == "loading"
        bundled = await engines.of("bundled", before)
        bundled.becomes(READY)
        await suggests(typist, bundled, "a = 1\n")
        chosen.becomes(READY)
        await shows(window, "ready", model)


@pytest.mark.asyncio
async def test_without_the_chosen_model_a_real_bundled_one_answers(home: Home) -> None:
    async with Window.spawn(home) as window:
        await window.start({"model": "/nowhere"})
        await shows(window, "failed", "/nowhere", "Meanwhile 'bundled' answers.")
        window.open("def add(a, b):\n    return ")
        assert await window.ask(1, 11, invoked=True)[1]
        assert len(home.engines()) == 1
    await until(lambda: not home.engines())  # nobody else needs it


@pytest.mark.asyncio
async def test_real_engines_take_over_from_each_other(home: Home, talkative_folder: Path) -> None:
    """The former one's process ends at the switch, long before its idle time."""
    async with window_in_process({"maxTokens": 8}) as window:
        window.open("def add(a, b):\n    return ")
        await shows(window, "ready", "bundled")
        (bundled,) = home.engines()
        assert await window.ask(1, 11, invoked=True)[1]
        await window.command("fimls.chooseModel", {"name": str(talkative_folder)})
        await shows(window, "ready", str(talkative_folder))
        await until(lambda: len(home.engines()) == 1 and bundled not in home.engines())
        assert len((await window.suggestion(1, 11))["insertText"]) > 4
