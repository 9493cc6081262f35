"""What the engine is asked in its idle time: with an engine that a test plays, and once with one of
its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lsp_server.completion import prefill
from lsp_server.engines.interface import EngineState
from tests.lsp_server.helpers import INLINE, URI, Home, until, window_in_process
from tests.lsp_server.played import HOURS, PATIENT, Played, Typist, typist_at

pytestmark = pytest.mark.asyncio


# ---- where the cursor stands ----


async def test_an_edit_ends_the_prefill_of_the_text_before(
    engine: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefill, "DELAY_S", 0.2)
    async with typist_at("x = ") as typist:
        typist.looks()
        await typist.rests()
        typist.window.change(2, "y = ")
        await asyncio.sleep(0.3)
        assert engine.prefilled == []
        typist.looks()
        (read,) = await until(lambda: engine.prefilled)
        assert "y = " in str(read.prompt)


@pytest.mark.parametrize("off", ["enabled", "late", "language", "snooze"])
async def test_where_nothing_is_suggested_nothing_is_started_or_read(
    engine: Played, off: str
) -> None:
    engine.state = EngineState("absent")
    settings = {"enabled": {"enabled": False}, "language": {"disabledLanguages": ["python"]}}.get(
        off, {}
    )
    pulls = INLINE | {"workspace": {"configuration": True}} if off == "late" else INLINE
    async with window_in_process(
        PATIENT | settings, pulls, {"enabled": False} if off == "late" else None
    ) as window:
        typist = Typist(window, "x = ")
        if off == "snooze":
            await window.request("fimls/snooze", {"minutes": 5})
        typist.looks()
        await typist.rests()
        await asyncio.sleep(0.2)
        # The session itself has its engine started where the settings allow.
        assert engine.starts == (0 if off in ("enabled", "late") else 1)
        engine.state = EngineState("ready")
        typist.looks()
        await asyncio.sleep(0.1)
        assert engine.prefilled == []


async def test_the_prompt_at_the_cursor_is_read_before_anybody_asks(engine: Played) -> None:
    async with typist_at("x = 1\ny = ") as typist:
        document = {"textDocument": {"uri": URI}}
        for params in (
            document,
            document | {"position": None},
            document | {"position": {"line": "1"}},
            None,
            {},
        ):
            typist.window.notify(
                "textDocument/didFocus", params
            )  # nobody tells where the cursor is
        await typist.rests()
        assert engine.prefilled == []
        typist.looks()
        (read,) = await until(lambda: engine.prefilled)
        assert read.idle
        await engine.answers(0, "2", typist.ask())
        assert engine.asked[0].request.prompt == read.prompt and not engine.asked[0].request.idle
        typist.looks()
        await typist.rests()
        assert len(engine.prefilled) == 1  # the answer there is known


async def test_a_place_that_was_told_while_the_model_loads_is_read_afterwards(
    engine: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.state, loaded = EngineState("loading"), asyncio.Event()

    async def wait() -> EngineState:
        await loaded.wait()
        engine.state = EngineState("ready")
        return engine.state

    monkeypatch.setattr(engine, "wait_until_settled", wait)
    async with window_in_process(PATIENT) as window:
        typist = Typist(window, "x = ")
        typist.looks()
        await typist.rests()
        assert engine.prefilled == []
        loaded.set()
        await until(lambda: engine.prefilled)


async def test_others_engines_get_no_idle_work(engine: Played) -> None:
    engine.has_idle_time = False
    async with typist_at() as typist:
        await engine.answers(0, "a = 1", typist.ask())
        typist.looks(position={"line": 0, "character": 0})
        await typist.rests()
        assert (len(engine.asked), engine.prefilled) == (1, [])


# ---- with an engine of its own ----


async def test_type_through_and_retype_cost_no_forward_pass(
    home: Home, talkative_folder: Path
) -> None:
    settings = {
        "model": str(talkative_folder),
        "maxTokens": 8,
        "temperature": 1.0,
        "timeBudget": HOURS,
    }
    async with window_in_process(settings) as window:
        typist = Typist(window, "x = ")
        text = (await window.suggestion(0, 4))["insertText"]

        async def passes() -> dict[str, int]:
            status = await until(lambda: at_rest(home))
            return dict(status["forward_passes"])

        before = await passes()
        assert before["calls"] > 0 and before["positions"] > before["calls"]
        for taken in range(1, len(text)):
            assert await typist.types(text[taken - 1]) == [text[taken:]]
        for length in range(len(text) - 1, -1, -1):
            assert await typist.ask_at("x = " + text[:length]) == [text[length:]]
        assert await passes() == before
        typist.looks(position={"line": 0, "character": 1})
        await until(lambda: passes_beyond(home, before["positions"]))


async def at_rest(home: Home) -> dict[str, Any] | None:
    status = await home.status()
    return status if status is not None and not status["busy"] and not status["waiting"] else None


async def passes_beyond(home: Home, positions: int) -> bool:
    status = await home.status()
    return status is not None and status["forward_passes"]["positions"] > positions
