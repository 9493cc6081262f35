"""When an answer is cut, and what goes on behind it: with an engine that a test plays."""

from __future__ import annotations

import math

import pytest

from lsp_server.engines.interface import EngineUnavailable, Piece
from tests.lsp_server.helpers import RpcError, until
from tests.lsp_server.played import BODY, HOURS, Played, cut, settle, typist_at

pytestmark = pytest.mark.asyncio


# ---- the deadline ----


@pytest.mark.parametrize(
    ("budget", "invoked"),
    [(HOURS, False), (0, True)],
    ids=["within the budget", "for who asks for it"],
)
async def test_the_whole_answer_is_asked(engine: Played, budget: float, invoked: bool) -> None:
    async with typist_at(timeBudget=budget) as typist:
        items = typist.ask(invoked=invoked)
        stream = await engine.stream(0)
        stream.say("a = 1\n", "    b = 2\n")
        await settle()
        assert not items.done()
        stream.finish("    c = 3")
        assert await items == ["a = 1\n    b = 2\n    c = 3"]


async def test_at_the_deadline_the_whole_lines_are_shown(engine: Played) -> None:
    async with typist_at(timeBudget=30) as typist:
        items = typist.ask()
        stream = await engine.stream(0)
        stream.say("a = 1\n", "    b = 2\n", "    c =")
        assert await items == ["a = 1\n    b = 2"]
        assert not stream.closed
        assert "cut at the setting timeBudget" in await typist.why()


@pytest.mark.parametrize(
    ("text", "parts", "shown", "whole"),
    [
        (BODY, ["\n", "    ", "a =", " 1"], "\n    a = 1", False),  # a line of blanks is none
        ("x = ", ["1", " + 2"], "1 + 2", True),  # the rest of a line is all of an answer
    ],
)
async def test_where_no_line_is_whole_the_first_is_asked(
    engine: Played, text: str, parts: list[str], shown: str, whole: bool
) -> None:
    async with typist_at(text, timeBudget=0) as typist:
        items = typist.ask()
        stream = await engine.stream(0)
        for part in parts:
            stream.say(part)
            await settle()
            assert not items.done()
        stream.say("\n")
        assert await items == [shown]
        if whole:
            await until(lambda: stream.closed)


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        (["a = 1\n", "    b = 2\n", "    c ="], "a = 1\n    b = 2"),
        (["a", " =", " 1"], "a = 1"),  # one line: its rest can be asked for
        (["a = 1\n", "    b = 2\n", "c"], "a = 1\n    b = 2"),
    ],
    ids=["lines", "one line", "at a stop"],
)
async def test_half_a_line_where_the_answer_has_no_more_tokens_is_not_shown(
    engine: Played, parts: list[str], shown: str
) -> None:
    async with typist_at(maxTokens=3) as typist:
        items = typist.ask()
        stream = await engine.stream(0)
        stream.finish(*parts)
        assert await items == [shown]


async def test_a_line_that_the_filters_hide_is_not_shown_either(engine: Played) -> None:
    async with typist_at(timeBudget=0, minConfidence=0.5) as typist:
        items = typist.ask()
        stream = await engine.stream(0)
        stream.pieces.put_nowait(Piece("\n", (-0.1,)))
        await settle()
        assert not items.done()
        stream.pieces.put_nowait(Piece("    b = 2\n", (-0.1,)))
        assert await items == ["\n    b = 2"]


async def test_an_answer_ends_when_it_can_no_longer_be_sure_enough(engine: Played) -> None:
    async with typist_at("x = ", timeBudget=HOURS, minConfidence=0.5) as typist:
        items = typist.ask()
        stream = await engine.stream(0)
        stream.pieces.put_nowait(Piece("1", (-0.3,)))
        await settle()
        assert not items.done()
        stream.pieces.put_nowait(Piece("1", (-0.4,)))  # the product of both is less than a half
        assert await items == []
        await until(lambda: stream.closed)
        # It is not asked again, except by somebody who wants to see anything.
        assert await typist.ask() == []
        assert len(engine.asked) == 1
        assert await engine.answers(1, "2\n", typist.ask(invoked=True)) == ["2"]


async def test_the_lines_before_a_doubt_are_shown(engine: Played) -> None:
    async with typist_at(timeBudget=HOURS, minConfidence=0.5) as typist:
        items = typist.ask()
        stream = await engine.stream(0)
        for text, logprob in (
            ("a = 1", -0.1),
            ("\n", -0.1),
            ("    b", -0.1),
            (" = 2\n", -0.1),
            ("    c", -9.0),
        ):
            stream.pieces.put_nowait(Piece(text, (logprob,)))
        assert await items == ["a = 1\n    b = 2"]
        await until(lambda: stream.closed)


async def test_an_answer_is_as_sure_as_all_its_tokens_together(engine: Played) -> None:
    async with typist_at("x = ", minConfidence=0) as typist:
        items = typist.ask()
        stream = await engine.stream(0)
        for logprob in (-0.5, 0.0, -0.25):
            stream.pieces.put_nowait(Piece("1", (logprob,)))
        stream.finish()
        assert await items == ["111"]
        assert f"{math.exp(-0.75):.0%} (" in await typist.why()


async def test_patience_ends(engine: Played) -> None:
    async with typist_at(timeBudget=0, patience=0.5) as typist:
        items = typist.ask()
        stream = await engine.stream(0)
        stream.say("a = 1")
        assert await items == []
        await until(lambda: stream.closed)
        assert "No whole line had come" in await typist.why()
        # That was no answer: the next request is a new one.
        assert await engine.answers(1, "a = 1\n", typist.ask()) == ["a = 1"]


async def test_patience_that_is_shorter_than_the_budget_gets_the_whole_lines(
    engine: Played,
) -> None:
    async with typist_at(timeBudget=HOURS, patience=0.5) as typist:
        items = typist.ask()
        (await engine.stream(0)).say("a = 1\n", "    b")
        assert await items == ["a = 1"]


# ---- what goes on behind it ----


async def test_the_next_key_finds_the_rest(engine: Played) -> None:
    async with cut(engine) as (typist, stream):
        assert await typist.types("a") == [" = 1"]
        stream.say(" = 2\n")
        await settle()
        assert await typist.types(" ") == ["= 1\n    b = 2"]
        stream.finish("    c = 3")
        await settle()
        assert await typist.types("=") == [" 1\n    b = 2\n    c = 3"]
        assert len(engine.asked) == 1
        # What was written is the answer at the first text, too.
        assert await typist.ask_at(BODY) == ["a = 1\n    b = 2\n    c = 3"]
        assert len(engine.asked) == 1


async def test_behind_the_accepted_lines_the_next_one_is_asked(engine: Played) -> None:
    async with cut(engine) as (typist, stream):
        items = typist.ask_at(BODY + "a = 1")
        number = typist.number
        await settle()
        assert not items.done()
        stream.say(" = 2\n", "    c")
        assert await items == ["\n    b = 2"]
        items = typist.ask_at(BODY + "a = 1\n    b = 2")
        stream.finish()
        assert await items == ["\n    c"]
        assert len(engine.asked) == 1
        assert typist.window.answers[number] == 1


async def test_typing_on_into_what_is_being_written(engine: Played) -> None:
    async with cut(engine) as (typist, stream):
        items = typist.ask_at(BODY + "a = 1\n    b = ")
        await settle()
        stream.say(" = 2\n")
        assert await items == ["2"]
        assert len(engine.asked) == 1


async def test_where_nothing_more_comes_the_engine_is_asked_anew(engine: Played) -> None:
    async with cut(engine) as (typist, stream):
        items = typist.ask_at(BODY + "a = 1")
        await settle()
        stream.pieces.put_nowait(EngineUnavailable("gone"))
        assert await engine.answers(1, "0", items) == ["0"]


async def test_an_explicit_request_waits_for_all_of_the_rest(engine: Played) -> None:
    async with cut(engine) as (typist, stream):
        items = typist.ask(invoked=True)
        stream.say(" = 2\n")
        await settle()
        assert not items.done()
        stream.finish("    c = 3")
        assert await items == ["a = 1\n    b = 2\n    c = 3"]
        assert len(engine.asked) == 1


@pytest.mark.parametrize(
    "end", ["departs", "goes back", "elsewhere", "closes", "cancel", "shutdown", "settings"]
)
async def test_it_ends(engine: Played, end: str) -> None:
    async with cut(engine) as (typist, stream):
        window = typist.window
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
            items = typist.ask_at(BODY + "a = 1")
            await settle()
            window.cancel(typist.number)
            with pytest.raises(RpcError):
                await items
        elif end == "shutdown":
            await window.request("shutdown")
        else:
            window.notify(
                "workspace/didChangeConfiguration", {"settings": {"fimls": {"layout": "psm"}}}
            )
            await until(typist.is_ready)
            await settle()
            typist.ask()
        await until(lambda: stream.closed)
        if end == "shutdown":
            window.notify("exit")
            await window.ended()


async def test_a_request_that_supersedes_one_that_waits_is_served_by_the_same_answer(
    engine: Played,
) -> None:
    async with cut(engine) as (typist, stream):
        older = typist.ask_at(BODY + "a = 1")
        await settle()
        newer = typist.ask_at(BODY + "a = 1\n")
        assert await older == []
        stream.say(" = 2\n")
        assert await newer == ["    b = 2"]
        assert len(engine.asked) == 1


async def test_where_an_answer_is_being_written_no_prompt_is_read(engine: Played) -> None:
    async with cut(engine) as (typist, stream):
        items = typist.ask_at(BODY + "a = 1")
        stream.say(" = 2\n", "    c")
        assert await items == ["\n    b = 2"]
        typist.looks()
        await typist.rests()
        assert engine.prefilled == []


async def test_it_ends_when_the_engine_is_asked_for_another_document(engine: Played) -> None:
    async with cut(engine) as (typist, stream):
        typist.window.open("y = ", "file:///other.py")
        _, items = typist.window.ask(0, 4, "file:///other.py")
        other = await engine.stream(1)
        await until(lambda: stream.closed)
        other.finish("2")
        assert [item["insertText"] for item in await items] == ["2"]


async def test_what_was_shown_counts_as_accepted_though_there_is_more_by_now(
    engine: Played,
) -> None:
    async with cut(engine) as (typist, stream):
        stream.finish(" = 2\n")
        await settle()
        typist.to(BODY + "a = 1")
        counts = (await typist.window.request("fimls/status", {}))["counts"]
        assert counts == {"shown": 1, "accepted": 1, "partlyAccepted": 0, "typedThrough": 0}
