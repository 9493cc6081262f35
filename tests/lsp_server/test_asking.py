"""When an answer is cut, what goes on behind it, and what the engine is not asked: with an engine that a test plays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lsp_server import ahead as asked_ahead
from lsp_server import local_engine
from lsp_server.engines import CompletionRequest, EngineState, EngineUnavailable, Piece
from lsp_server.prompter import Prompter
from lsp_server.settings import RemoteSettings, Settings
from model.errors import ModelError
from model.hub import ModelFolder
from tests.lsp_server.helpers import INLINE, URI, Home, RpcError, Window, until, window_in_process

BODY = "def f():\n    "  # the cursor at its end asks for a block
END = (1, 4)
HOURS = 1e7  # milliseconds
PATIENT = {"remote.url": "http://engine", "remote.format": "starcoder2", "alternatives": 1}


class Stream:
    """One answer, said piece by piece by the test."""

    def __init__(self, request: CompletionRequest, name: str) -> None:
        self.request, self.closed, self.name = request, False, name
        self.told: list[bool] = []  # each time, whether it is idle from then on
        self.pieces: asyncio.Queue[Piece | Exception | None] = asyncio.Queue()

    def say(self, *texts: str) -> None:
        for text in texts:
            self.pieces.put_nowait(Piece(text, (-0.1,), id=self.name))

    def finish(self, *texts: str) -> None:
        self.say(*texts)
        self.pieces.put_nowait(None)


class Played:
    """An engine here. asked: the answers, the oldest first; prefilled: prompts that were to be read."""

    has_idle_time = True
    state = EngineState("ready")

    def __init__(self) -> None:
        self.starts = 0
        self.asked: list[Stream] = []
        self.prefilled: list[CompletionRequest] = []

    def start(self) -> None:
        self.starts += 1

    async def wait_until_settled(self) -> EngineState:
        return self.state

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        stream = Stream(request, str(len(self.asked)))
        self.asked.append(stream)
        try:
            while (piece := await stream.pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            stream.closed = True

    async def prefill(self, request: CompletionRequest) -> None:
        self.prefilled.append(request)

    async def prioritize(self, id: str, *, idle: bool) -> None:
        self.asked[int(id)].told.append(idle)

    async def close(self) -> None: ...

    async def stream(self, number: int) -> Stream:
        return await until(lambda: len(self.asked) > number and self.asked[number])

    @property
    def waited_for(self) -> list[Stream]:
        return [stream for stream in self.asked if not stream.request.idle]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Played:
    played = Played()
    monkeypatch.setattr(local_engine, "make_engine", lambda *_, **__: played)
    return played


@contextlib.asynccontextmanager
async def window_at(text: str = BODY, **settings: Any) -> AsyncIterator[Window]:
    async with window_in_process(PATIENT | settings) as window:
        window.open(text)
        await until(lambda: window_is_ready(window))
        yield window


async def window_is_ready(window: Window) -> bool:
    return (await window.request("fimls/status", {}))["state"] in ("ready", "busy")


async def settle() -> None:
    """Lets everything happen that can."""
    for _ in range(50):
        await asyncio.sleep(0.001)


def texts(items: list[dict[str, Any]]) -> list[str]:
    return [item["insertText"] for item in items]


class Typist:
    """Edits the window's document, whose text it knows."""

    def __init__(self, window: Window, text: str = BODY) -> None:
        self.window, self.text, self.version = window, text, 1

    def to(self, text: str) -> None:
        """Another text, as one edit of what differs, and the cursor to its end."""
        same = 0
        while same < min(len(text), len(self.text)) and text[same] == self.text[same]:
            same += 1
        self.version += 1
        where = {"start": self.place(self.text[:same]), "end": self.place(self.text)}
        self.window.change(self.version, text[same:], where)
        self.text = text

    @staticmethod
    def place(before: str) -> dict[str, int]:
        return {"line": before.count("\n"), "character": len(before.rpartition("\n")[2])}

    def ask(self, **how: Any) -> tuple[int, asyncio.Future[Any]]:
        place = self.place(self.text)
        return self.window.ask(place["line"], place["character"], **how)

    async def asked(self, **how: Any) -> list[str]:
        return texts(await self.ask(**how)[1])

    async def types(self, keys: str) -> list[str]:
        self.to(self.text + keys)
        return await self.asked()


# ---- the deadline ----


@pytest.mark.asyncio
async def test_within_the_budget_the_whole_answer_is_waited_for(engine: Played) -> None:
    async with window_at(timeBudget=HOURS) as window:
        _, items = window.ask(*END)
        stream = await engine.stream(0)
        stream.say("a = 1\n", "    b = 2\n")
        await settle()
        assert not items.done()
        stream.finish("    c = 3")
        assert texts(await items) == ["a = 1\n    b = 2\n    c = 3"]


@pytest.mark.asyncio
async def test_at_the_deadline_the_whole_lines_are_shown(engine: Played) -> None:
    async with window_at(timeBudget=30) as window:
        _, items = window.ask(*END)
        stream = await engine.stream(0)
        stream.say("a = 1\n", "    b = 2\n", "    c =")
        assert texts(await items) == ["a = 1\n    b = 2"]
        assert not stream.closed
        why = (await window.request("fimls/why", {}))["markdown"]
        assert "cut at the setting timeBudget" in why


@pytest.mark.asyncio
async def test_where_no_line_is_whole_the_first_is_waited_for(engine: Played) -> None:
    async with window_at(timeBudget=0) as window:
        _, items = window.ask(*END)
        stream = await engine.stream(0)
        for part in ("\n", "    ", "a =", " 1"):  # a line of blanks is none
            stream.say(part)
            await settle()
            assert not items.done()
        stream.say("\n")
        assert texts(await items) == ["\n    a = 1"]


@pytest.mark.asyncio
async def test_a_line_that_the_filters_hide_is_not_shown_either(engine: Played) -> None:
    async with window_at(timeBudget=0, minConfidence=0.5) as window:
        _, items = window.ask(*END)
        stream = await engine.stream(0)
        stream.pieces.put_nowait(Piece("a = 1\n", (-2.0,)))
        await settle()
        assert not items.done()
        stream.pieces.put_nowait(Piece("    b = 2\n", (-0.01,) * 9))  # the model has become surer of all
        assert texts(await items) == ["a = 1\n    b = 2"]


@pytest.mark.asyncio
async def test_the_rest_of_a_line_is_whole_when_it_is_done(engine: Played) -> None:
    async with window_at("x = ", timeBudget=0) as window:
        _, items = window.ask(0, 4)
        stream = await engine.stream(0)
        stream.say("1", " + 2")
        await settle()
        assert not items.done()
        stream.say("\n")
        assert texts(await items) == ["1 + 2"]
        await until(lambda: stream.closed)


@pytest.mark.asyncio
async def test_who_asks_for_it_gets_all_of_it(engine: Played) -> None:
    async with window_at(timeBudget=0) as window:
        _, items = window.ask(*END, invoked=True)
        stream = await engine.stream(0)
        stream.say("a = 1\n    b = 2\n")
        await settle()
        assert not items.done()
        stream.finish("    c = 3")
        assert texts(await items) == ["a = 1\n    b = 2\n    c = 3"]


@pytest.mark.asyncio
async def test_patience_ends(engine: Played) -> None:
    async with window_at(timeBudget=0, patience=0.05) as window:
        _, items = window.ask(*END)
        stream = await engine.stream(0)
        stream.say("a = 1")
        assert await items == []
        await until(lambda: stream.closed)
        assert "No whole line had come" in (await window.request("fimls/why", {}))["markdown"]
        # That was no answer: the next request is a new one.
        _, items = window.ask(*END)
        (await engine.stream(1)).finish("a = 1\n")
        assert texts(await items) == ["a = 1"]


@pytest.mark.asyncio
async def test_patience_that_is_shorter_than_the_budget_gets_the_whole_lines(engine: Played) -> None:
    async with window_at(timeBudget=HOURS, patience=0.05) as window:
        _, items = window.ask(*END)
        (await engine.stream(0)).say("a = 1\n", "    b")
        assert texts(await items) == ["a = 1"]


# ---- what goes on behind it ----


async def cut(engine: Played, window: Window) -> Stream:
    """An answer of which the first line was shown; the second is being written."""
    _, items = window.ask(*END)
    stream = await engine.stream(0)
    stream.say("a = 1\n", "    b")
    assert texts(await items) == ["a = 1"]
    return stream


@pytest.mark.asyncio
async def test_the_next_key_finds_the_rest(engine: Played) -> None:
    async with window_at(timeBudget=0) as window:
        typist, stream = Typist(window), await cut(engine, window)
        assert await typist.types("a") == [" = 1"]
        stream.say(" = 2\n")
        await settle()
        assert await typist.types(" ") == ["= 1\n    b = 2"]
        stream.finish("    c = 3")
        await settle()
        assert await typist.types("=") == [" 1\n    b = 2\n    c = 3"]
        assert len(engine.waited_for) == 1
        # What was written is the answer at the first text, too.
        typist.to(BODY)
        assert await typist.asked() == ["a = 1\n    b = 2\n    c = 3"]
        assert len(engine.waited_for) == 1


@pytest.mark.asyncio
async def test_behind_the_accepted_lines_the_next_one_is_waited_for(engine: Played) -> None:
    async with window_at(timeBudget=0) as window:
        typist, stream = Typist(window), await cut(engine, window)
        typist.to(BODY + "a = 1")
        number, items = typist.ask()
        await settle()
        assert not items.done()
        stream.say(" = 2\n", "    c")
        assert texts(await items) == ["\n    b = 2"]
        typist.to(BODY + "a = 1\n    b = 2")
        _, items = typist.ask()
        stream.finish()
        assert texts(await items) == ["\n    c"]
        assert len(engine.waited_for) == 1
        assert window.answers[number] == 1


@pytest.mark.asyncio
async def test_typing_on_into_what_is_being_written(engine: Played) -> None:
    async with window_at(timeBudget=0) as window:
        typist, stream = Typist(window), await cut(engine, window)
        typist.to(BODY + "a = 1\n    b = ")
        _, items = typist.ask()
        await settle()
        stream.say(" = 2\n")
        assert texts(await items) == ["2"]
        assert len(engine.asked) == 1


@pytest.mark.asyncio
async def test_where_nothing_more_comes_the_engine_is_asked_anew(engine: Played) -> None:
    async with window_at(timeBudget=0) as window:
        typist, stream = Typist(window), await cut(engine, window)
        typist.to(BODY + "a = 1")
        _, items = typist.ask()
        await settle()
        stream.pieces.put_nowait(EngineUnavailable("gone"))
        (await engine.stream(1)).finish("0")
        assert texts(await items) == ["0"]


@pytest.mark.asyncio
async def test_an_explicit_request_waits_for_all_of_the_rest(engine: Played) -> None:
    async with window_at(timeBudget=0) as window:
        typist, stream = Typist(window), await cut(engine, window)
        _, items = typist.ask(invoked=True)
        stream.say(" = 2\n")
        await settle()
        assert not items.done()
        stream.finish("    c = 3")
        assert texts(await items) == ["a = 1\n    b = 2\n    c = 3"]
        assert len(engine.waited_for) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("end", ["departs", "goes back", "elsewhere", "closes", "cancel", "shutdown", "settings"])
async def test_it_ends(engine: Played, end: str) -> None:
    async with window_at(timeBudget=0) as window:
        typist, stream = Typist(window), await cut(engine, window)
        assert not stream.closed
        if end == "departs":
            typist.to(BODY + "z")
        elif end == "goes back":
            typist.to(BODY[:-1])
        elif end == "elsewhere":
            window.ask(0, 0)
        elif end == "closes":
            window.close_document()
        elif end == "cancel":
            typist.to(BODY + "a = 1")
            number, items = typist.ask()
            await settle()
            window.cancel(number)
            with pytest.raises(RpcError):
                await items
        elif end == "shutdown":
            await window.request("shutdown")
        else:
            window.notify("workspace/didChangeConfiguration", {"settings": {"fimls": {"layout": "psm"}}})
            await until(lambda: window_is_ready(window))
            await settle()
            window.ask(*END)
        await until(lambda: stream.closed)
        if end == "shutdown":
            window.notify("exit")
            await window.ended()


@pytest.mark.asyncio
async def test_a_request_that_supersedes_one_that_waits_is_served_by_the_same_answer(engine: Played) -> None:
    async with window_at(timeBudget=0) as window:
        typist, stream = Typist(window), await cut(engine, window)
        typist.to(BODY + "a = 1")
        _, older = typist.ask()
        await settle()
        typist.to(BODY + "a = 1\n")
        _, newer = typist.ask()
        assert await older == []
        stream.say(" = 2\n")
        assert texts(await newer) == ["    b = 2"]
        assert len(engine.waited_for) == 1


@pytest.mark.asyncio
async def test_what_goes_on_makes_way_unless_somebody_waits_for_it(engine: Played) -> None:
    async with window_at(timeBudget=0) as window:
        typist, stream = Typist(window), await cut(engine, window)
        await until(lambda: stream.told == [True])
        typist.to(BODY + "a = 1")
        _, items = typist.ask()
        await until(lambda: stream.told == [True, False])
        stream.say(" = 2\n", "    c")
        assert texts(await items) == ["\n    b = 2"]
        await until(lambda: stream.told == [True, False, True])
        window.notify("textDocument/didFocus", {"textDocument": {"uri": URI}, "position": Typist.place(typist.text)})
        await window_is_ready(window)
        await settle()
        assert engine.prefilled == []  # it would end what goes on there


@pytest.mark.asyncio
async def test_it_ends_when_the_engine_is_asked_for_another_document(engine: Played) -> None:
    async with window_at(timeBudget=0) as window:
        stream = await cut(engine, window)
        window.open("y = ", "file:///other.py")
        _, items = window.ask(0, 4, "file:///other.py")
        other = await engine.stream(1)
        await until(lambda: stream.closed)
        other.finish("2")
        assert texts(await items) == ["2"]


@pytest.mark.asyncio
async def test_what_was_shown_counts_as_accepted_though_there_is_more_by_now(engine: Played) -> None:
    async with window_at(timeBudget=0) as window:
        typist, stream = Typist(window), await cut(engine, window)
        stream.finish(" = 2\n")
        await settle()
        typist.to(BODY + "a = 1")
        counts = (await window.request("fimls/status", {}))["counts"]
        assert counts == {"shown": 1, "accepted": 1, "partlyAccepted": 0, "typedThrough": 0}


# ---- what was asked before ----


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("settings", "said", "shown"), [({}, "1 + 2", ["1 + 2"]), ({}, "", []), ({"minConfidence": 1}, "1 + 2", [])]
)
async def test_deleting_and_retyping_asks_nobody(
    engine: Played, settings: dict[str, Any], said: str, shown: list[str]
) -> None:
    engine.has_idle_time = False
    async with window_at("x =", **settings) as window:
        typist = Typist(window, "x =")
        typist.to("x = ")
        _, items = typist.ask()
        (await engine.stream(0)).finish(said)
        assert texts(await items) == shown
        typist.to("x = ?")
        _, items = typist.ask()
        (await engine.stream(1)).finish("")
        assert await items == []
        for _ in range(2):
            typist.to("x = ")
            assert await typist.asked() == shown
            typist.to("x = ?")
            assert await typist.asked() == []
        assert len(engine.asked) == 2


@pytest.mark.asyncio
async def test_it_is_said_that_nobody_was_asked(engine: Played) -> None:
    async with window_at("x = ") as window:
        typist = Typist(window, "x = ")
        _, items = typist.ask()
        (await engine.stream(0)).finish("")
        assert await items == []
        assert await typist.asked() == []
        assert "was not asked again" in (await window.request("fimls/why", {}))["markdown"]


@pytest.mark.asyncio
async def test_other_ways_to_sample_are_other_questions(engine: Played) -> None:
    async with window_at("x = ", alternatives=2) as window:
        _, items = window.ask(0, 4)
        (await engine.stream(0)).finish("first")
        assert texts(await items) == ["first"]
        _, items = window.ask(0, 4, invoked=True)
        await until(lambda: len(engine.waited_for) == 2)
        engine.waited_for[1].finish("second")
        assert texts(await items) == ["first", "second"]
        assert engine.waited_for[1].request.seed == 1


@pytest.mark.asyncio
async def test_a_document_that_is_opened_again_has_no_answers(engine: Played) -> None:
    async with window_at("x = ") as window:
        for number in range(2):
            _, items = window.ask(0, 4)
            await until(lambda: len(engine.waited_for) == number + 1)  # noqa: B023
            engine.waited_for[-1].finish("1")
            assert texts(await items) == ["1"]
            window.reopen("x = ")


# ---- what will be asked next ----


async def shown_whole(engine: Played, window: Window) -> Stream:
    """A suggestion is shown; what the engine is asked then."""
    _, items = window.ask(*END)
    (await engine.stream(0)).finish("a = 1")
    assert texts(await items) == ["a = 1"]
    ahead = await engine.stream(1)
    assert ahead.request.idle and str(ahead.request.prompt).endswith("\n    a = 1")
    return ahead


@pytest.mark.asyncio
async def test_what_comes_behind_a_suggestion_is_there_when_it_is_accepted(engine: Played) -> None:
    async with window_at() as window:
        typist, ahead = Typist(window), await shown_whole(engine, window)
        ahead.finish(" + 2")
        await settle()
        for keys in ("a ", "= 1"):  # also by the keys that it has
            answer = await typist.types(keys)
        assert answer == [" + 2"]
        await settle()
        # And so on: what comes behind that one.
        assert [stream.request.idle for stream in engine.asked] == [False, True, True]


@pytest.mark.asyncio
async def test_what_has_begun_to_come_is_taken_up(engine: Played) -> None:
    async with window_at() as window:
        typist, ahead = Typist(window), await shown_whole(engine, window)
        ahead.say(" +")
        await settle()
        typist.to(BODY + "a = 1")
        _, items = typist.ask()
        await settle()
        assert ahead.told == [False]  # no idle work any more
        ahead.finish(" 2")
        assert texts(await items) == [" + 2"]
        assert len(engine.waited_for) == 1
        why = (await window.request("fimls/why", {}))["markdown"]
        assert re.search(r"first token after\W+0 ms", why)


@pytest.mark.asyncio
@pytest.mark.parametrize("begun", [False, True])
async def test_who_asks_does_not_wait_behind_idle_work(engine: Played, begun: bool) -> None:
    """What has not begun is asked again; what has begun, too, when it had to make way for another window."""
    async with window_at() as window:
        typist, ahead = Typist(window), await shown_whole(engine, window)
        if begun:
            ahead.say(" +")
            await settle()
        typist.to(BODY + "a = 1")
        _, items = typist.ask()
        await settle()
        if begun:
            ahead.pieces.put_nowait(Piece("", ended=True))
        await until(lambda: len(engine.waited_for) == 2)
        engine.waited_for[1].finish(" + 3")
        assert texts(await items) == [" + 3"]


@pytest.mark.asyncio
async def test_it_ends_when_something_else_is_typed(engine: Played) -> None:
    async with window_at() as window:
        typist, ahead = Typist(window), await shown_whole(engine, window)
        typist.to(BODY + "a")
        await settle()
        assert not ahead.closed
        typist.to(BODY + "ax")
        await until(lambda: ahead.closed)


@pytest.mark.asyncio
async def test_it_ends_with_its_document(engine: Played) -> None:
    async with window_at() as window:
        ahead = await shown_whole(engine, window)
        ahead.say(" + 2")
        await settle()
        window.close_document()
        await until(lambda: ahead.closed)
        window.open(BODY + "a = 1")
        _, items = window.ask(1, 9)
        await until(lambda: len(engine.waited_for) == 2)  # it was not kept
        engine.waited_for[1].finish(" + 3")
        assert texts(await items) == [" + 3"]


@pytest.mark.asyncio
async def test_an_edit_ends_the_prefill_of_the_text_before(engine: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked_ahead, "FIRST_S", 0.2)
    place = {"textDocument": {"uri": URI}, "position": {"line": 0, "character": 4}}
    async with window_at("x = ") as window:
        window.notify("textDocument/didFocus", place)
        await window_is_ready(window)
        await settle()
        window.change(2, "y = ")
        await asyncio.sleep(0.3)
        assert engine.prefilled == []
        window.notify("textDocument/didFocus", place)
        (read,) = await until(lambda: engine.prefilled)
        assert "y = " in str(read.prompt)


@pytest.mark.asyncio
@pytest.mark.parametrize("off", ["enabled", "late", "language", "snooze"])
async def test_where_nothing_is_suggested_nothing_is_started_or_read(engine: Played, off: str) -> None:
    engine.state = EngineState("absent")
    settings = {"enabled": {"enabled": False}, "language": {"disabledLanguages": ["python"]}}.get(off, {})
    pulls = INLINE | {"workspace": {"configuration": True}} if off == "late" else INLINE
    async with window_in_process(PATIENT | settings, pulls, {"enabled": False} if off == "late" else None) as window:
        window.open("x = ")
        if off == "snooze":
            await window.request("fimls/snooze", {"minutes": 5})
        line = {"textDocument": {"uri": URI}, "position": {"line": 0, "character": 4}}
        window.notify("textDocument/didFocus", line)
        await window_is_ready(window)
        await asyncio.sleep(0.2)
        # The session itself has its engine started where the settings allow.
        assert engine.starts == (0 if off in ("enabled", "late") else 1)
        engine.state = EngineState("ready")
        window.notify("textDocument/didFocus", line)
        await asyncio.sleep(0.1)
        assert engine.prefilled == []


@pytest.mark.asyncio
async def test_behind_an_answer_that_was_cut_nothing_is_asked_yet(engine: Played) -> None:
    async with window_at(timeBudget=0) as window:
        typist, stream = Typist(window), await cut(engine, window)
        await settle()
        assert len(engine.asked) == 1
        stream.finish(" = 2")
        await settle()
        assert await typist.types("a") == [" = 1\n    b = 2"]
        ahead = await engine.stream(1)
        assert ahead.request.idle and str(ahead.request.prompt).endswith("\n    b = 2")


@pytest.mark.asyncio
async def test_the_prompt_at_the_cursor_is_read_before_anybody_asks(engine: Played) -> None:
    async with window_at("x = 1\ny = ") as window:
        document = {"textDocument": {"uri": URI}}
        for params in (document, document | {"position": None}, document | {"position": {"line": "1"}}, None, {}):
            window.notify("textDocument/didFocus", params)  # nobody tells where the cursor is
        await window_is_ready(window)
        await settle()
        assert engine.prefilled == []
        window.notify("textDocument/didFocus", document | {"position": {"line": 1, "character": 4}})
        (read,) = await until(lambda: engine.prefilled)
        assert read.idle
        _, items = window.ask(1, 4)
        stream = await engine.stream(0)
        assert stream.request.prompt == read.prompt and not stream.request.idle
        stream.finish("2")
        await items
        window.notify("textDocument/didFocus", document | {"position": {"line": 1, "character": 4}})
        await window_is_ready(window)
        await settle()
        assert len(engine.prefilled) == 1  # the answer there is known


@pytest.mark.asyncio
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
        window.open("x = ")
        window.notify("textDocument/didFocus", {"textDocument": {"uri": URI}, "position": {"line": 0, "character": 4}})
        await window.request("fimls/status", {})
        await settle()
        assert engine.prefilled == []
        loaded.set()
        await until(lambda: engine.prefilled)


@pytest.mark.asyncio
async def test_others_engines_get_no_idle_work(engine: Played) -> None:
    engine.has_idle_time = False
    async with window_at() as window:
        _, items = window.ask(*END)
        (await engine.stream(0)).finish("a = 1")
        await items
        window.notify("textDocument/didFocus", {"textDocument": {"uri": URI}, "position": {"line": 0, "character": 0}})
        await window_is_ready(window)
        await settle()
        assert (len(engine.asked), engine.prefilled) == (1, [])


# ---- with an engine of its own ----


@pytest.mark.asyncio
async def test_type_through_and_retype_cost_no_forward_pass(home: Home, talkative_folder: Path) -> None:
    settings = {"model": str(talkative_folder), "maxTokens": 8, "temperature": 1.0, "timeBudget": HOURS}
    async with window_in_process(settings) as window:
        window.open("x = ")
        text = (await window.suggestion(0, 4))["insertText"]
        typist = Typist(window, "x = ")

        async def passes() -> dict[str, int]:
            status = await until(lambda: at_rest(home))
            return dict(status["forward_passes"])

        await asyncio.sleep(0.1)  # what is asked ahead begins
        before = await passes()
        assert before["calls"] > 0 and before["positions"] > before["calls"]
        for taken in range(1, len(text)):
            assert await typist.types(text[taken - 1]) == [text[taken:]]
        for length in range(len(text) - 1, -1, -1):
            typist.to("x = " + text[:length])
            assert await typist.asked() == [text[length:]]
        assert await passes() == before
        typist.to("x = " + text)  # accepted: what comes behind was asked ahead
        assert len((await typist.asked())[0]) == 8
        await asyncio.sleep(0.1)
        after = await passes()
        assert after["calls"] > before["calls"]  # for what comes behind that one
        document = {"uri": URI}
        window.notify("textDocument/didFocus", {"textDocument": document, "position": {"line": 0, "character": 1}})
        await until(lambda: passes_beyond(home, after["positions"]))


async def at_rest(home: Home) -> dict[str, Any] | None:
    status = await home.status()
    return status if status is not None and not status["busy"] and not status["waiting"] else None


async def passes_beyond(home: Home, positions: int) -> bool:
    status = await home.status()
    return status is not None and status["forward_passes"]["positions"] > positions


def test_the_budget_suits_the_model(talkative_folder: Path) -> None:
    elsewhere = RemoteSettings("http://engine")
    for settings, budget in [
        (Settings(), 100),
        (Settings(time_budget=0.0), 0),
        (Settings(model=str(talkative_folder)), 300),
        (Settings(remote=elsewhere), 300),
        (Settings(remote=replace(elsewhere, format="starcoder2")), 300),
        (Settings(remote=replace(elsewhere, format="starcoder2"), time_budget=7.0), 7),
    ]:
        assert Prompter.for_settings(settings).time_budget == budget


@pytest.mark.parametrize("budget", [-1, "100", True, float("nan")])
def test_a_budget_that_is_none_is_refused(tmp_path: Path, budget: object) -> None:
    (tmp_path / "fimls.json").write_text(json.dumps({"time_budget": budget}))
    with pytest.raises(ModelError, match="time_budget is"):
        _ = ModelFolder(tmp_path, {}).preferences
