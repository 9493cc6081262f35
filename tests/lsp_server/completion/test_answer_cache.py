"""What the engine is not asked again, and what makes another question: with an engine that a test
plays."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from fim.shaping.quotes import Open
from lsp_server.completion.query import Query, query_at
from lsp_server.documents import Snapshot
from lsp_server.session.prompter import Prompter
from lsp_server.settings import RemoteSettings, Settings
from tests.lsp_server.helpers import URI
from tests.lsp_server.played import Played, typist_at


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("settings", "said", "shown"),
    [({}, "1 + 2", ["1 + 2"]), ({}, "", []), ({"minConfidence": 1}, "1 + 2", [])],
)
async def test_deleting_and_retyping_asks_nobody(
    engine: Played, settings: dict[str, Any], said: str, shown: list[str]
) -> None:
    engine.has_idle_time = False
    async with typist_at("x =", **settings) as typist:
        assert await engine.answers(0, said, typist.ask_at("x = ")) == shown
        assert await engine.answers(1, "", typist.ask_at("x = ?")) == []
        for _ in range(2):
            assert await typist.ask_at("x = ") == shown
            assert await typist.ask_at("x = ?") == []
        assert len(engine.asked) == 2


@pytest.mark.asyncio
async def test_it_is_said_that_nobody_was_asked(engine: Played) -> None:
    async with typist_at("x = ") as typist:
        assert await engine.answers(0, "", typist.ask()) == []
        assert await typist.ask() == []
        assert "was not asked again" in await typist.why()


@pytest.mark.asyncio
async def test_other_ways_to_sample_are_other_questions(engine: Played) -> None:
    async with typist_at("x = ", alternatives=2) as typist:
        assert await engine.answers(0, "first", typist.ask()) == ["first"]
        assert await engine.answers(1, "second", typist.ask(invoked=True)) == ["first", "second"]
        assert engine.asked[1].request.seed == 1


@pytest.mark.asyncio
async def test_a_document_that_is_opened_again_has_no_answers(engine: Played) -> None:
    async with typist_at("x = ") as typist:
        for number in range(2):
            assert await engine.answers(number, "1", typist.ask()) == ["1"]
            typist.window.reopen("x = ")


# Another value of everything that a question is known by.
REQUEST = {
    "prompt": (1, 2, 4),
    "max_tokens": 9,
    "temperature": 0.5,
    "top_p": 0.5,
    "seed": 9,
    "stop": ("\n",),
    "stop_ids": (3,),
    "client": "other",
    "begin_with": "a",
    "copying": {"weight": 1.0},
    "idle": True,
    "shorter": ((1, 2),),
    "prefill_ms": 5.0,
}
SHAPER = {
    "extent": "span",
    "before": "y",
    "after": "y",
    "below": ("y",),
    "prefix": "y",
    "suffix": "y",
    "whole": False,
    "language": "lua",
    "opened": (Open("(", ")"),),
    "spare": 3,
    "one_line": True,
    "lead": "    ",
    "dismissed": ("y",),
    "off": frozenset({"syntax"}),
    "crlf": True,
    "known": frozenset("\ufeff"),
    "sentinels": ("<end>",),
    "max_lines": 9,
    "min_confidence": 0.5,
    "least_columns": 9,
    "closing": "}",
    "secrets": frozenset({"hunter22"}),
    "fixed": True,
}
DECIDES_NOTHING = {"client", "idle"}


def asked(prompt: tuple[int, ...] | str = (1, 2, 3)) -> Query:
    settings = Settings(remote=RemoteSettings("http://engine", format="starcoder2"))
    snapshot = Snapshot(URI, 1, "python", "x = ", 4)
    question = query_at(snapshot, None, Prompter.for_settings(settings), settings, "me")
    return replace(question, request=replace(question.request, prompt=prompt))


def test_a_question_is_known_by_all_that_decides_its_answer() -> None:
    question = asked()
    assert asked().key == question.key
    for part, others in (("request", REQUEST), ("shaper", SHAPER)):
        value = getattr(question, part)
        assert set(others) == {field.name for field in fields(value)}
        for name, other in others.items():
            assert getattr(value, name) != other
            key = replace(question, **{part: replace(value, **{name: other})}).key
            assert (key == question.key) == (name in DECIDES_NOTHING), name
    prompts = [(), (1,), (1, 2, 3), (3, 2, 1), (1, 2, 3, 0), (256,), "", "\0", "(1, 2, 3)"]
    assert len({asked(prompt).key for prompt in prompts}) == len(prompts)
