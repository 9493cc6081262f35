"""What the engine is asked in its idle time: with an engine that a test plays, and once with one of
its own."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lsp_server.completion import lookahead as asked_ahead
from lsp_server.engines.interface import EngineState, Piece
from tests.lsp_server.helpers import INLINE, URI, Home, until, window_in_process
from tests.lsp_server.played import BODY, HOURS, PATIENT, Played, Stream, Typist, settle, typist_at

pytestmark = pytest.mark.asyncio


# ---- behind a suggestion ----


@contextlib.asynccontextmanager
async def shown_whole(engine: Played) -> AsyncIterator[tuple[Typist, Stream]]:
    """A suggestion is shown; what the engine is asked then."""
    async with typist_at() as typist:
        assert await engine.answers(0, "a = 1", typist.ask()) == ["a = 1"]
        ahead = await engine.stream(1)
        assert ahead.request.idle and str(ahead.request.prompt).endswith("\n    a = 1")
        yield typist, ahead


async def test_what_comes_behind_a_suggestion_is_there_when_it_is_accepted(engine: Played) -> None:
    async with shown_whole(engine) as (typist, ahead):
        ahead.finish(" + 2")
        await settle()
        for keys in ("a ", "= 1"):  # also by the keys that it has
            answer = await typist.types(keys)
        assert answer == [" + 2"]
        await settle()
        # And so on: what comes behind that one.
        assert [stream.request.idle for stream in engine.asked] == [False, True, True]


async def test_what_has_begun_to_come_is_taken_up(engine: Played) -> None:
    async with shown_whole(engine) as (typist, ahead):
        ahead.say(" +")
        await settle()
        items = typist.ask_at(BODY + "a = 1")
        await settle()
        assert ahead.told == [False]  # no idle work any more
        ahead.finish(" 2")
        assert await items == [" + 2"]
        assert len(engine.waited_for) == 1
        assert re.search(r"first token after\W+0 ms", await typist.why())


@pytest.mark.parametrize("begun", [False, True])
async def test_who_asks_does_not_wait_behind_idle_work(engine: Played, begun: bool) -> None:
    """What has not begun is asked again; what has begun, too, when it had to make way for another
    window."""
    async with shown_whole(engine) as (typist, ahead):
        if begun:
            ahead.say(" +")
            await settle()
        items = typist.ask_at(BODY + "a = 1")
        await settle()
        if begun:
            ahead.pieces.put_nowait(Piece("", ended=True))
        assert await engine.answers(1, " + 3", items) == [" + 3"]


async def test_it_ends_when_something_else_is_typed(engine: Played) -> None:
    async with shown_whole(engine) as (typist, ahead):
        typist.to(BODY + "a")
        await settle()
        assert not ahead.closed
        typist.to(BODY + "ax")
        await until(lambda: ahead.closed)


async def test_it_ends_with_its_document(engine: Played) -> None:
    async with shown_whole(engine) as (typist, ahead):
        ahead.say(" + 2")
        await settle()
        typist.window.close_document()
        await until(lambda: ahead.closed)
        items = Typist(typist.window, BODY + "a = 1").ask()
        assert await engine.answers(1, " + 3", items) == [" + 3"]  # it was not kept


# ---- where the cursor stands ----


async def test_an_edit_ends_the_prefill_of_the_text_before(
    engine: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked_ahead, "FIRST_S", 0.2)
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

        await asyncio.sleep(0.1)  # what is asked ahead begins
        before = await passes()
        assert before["calls"] > 0 and before["positions"] > before["calls"]
        for taken in range(1, len(text)):
            assert await typist.types(text[taken - 1]) == [text[taken:]]
        for length in range(len(text) - 1, -1, -1):
            assert await typist.ask_at("x = " + text[:length]) == [text[length:]]
        assert await passes() == before
        # Accepted: what comes behind was asked ahead.
        assert len((await typist.ask_at("x = " + text))[0]) == 8
        await asyncio.sleep(0.1)
        after = await passes()
        assert after["calls"] > before["calls"]  # for what comes behind that one
        typist.looks(position={"line": 0, "character": 1})
        await until(lambda: passes_beyond(home, after["positions"]))


async def at_rest(home: Home) -> dict[str, Any] | None:
    status = await home.status()
    return status if status is not None and not status["busy"] and not status["waiting"] else None


async def passes_beyond(home: Home, positions: int) -> bool:
    status = await home.status()
    return status is not None and status["forward_passes"]["positions"] > positions
