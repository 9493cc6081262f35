"""What editors/PROTOCOL.md promises beyond plain completion, over the wire."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from aiohttp import web

from fim import Extent, Reason
from lsp_server.completion import suggestions
from lsp_server.completion.explain import KINDS, REASONS, quoted
from lsp_server.session.usage import read_usage, summary
from tests.lsp_server.helpers import (
    INLINE,
    URI,
    Endpoint,
    RpcError,
    Window,
    answers_with,
    says,
    until,
    window_in_process,
    window_on,
)

WATCHES = INLINE | {"experimental": {"fimls": {"status": True}}}


def point(line: int, character: int) -> dict[str, int]:
    return {"line": line, "character": character}


def span(line: int, start: int, end: int) -> dict[str, Any]:
    return {"start": point(line, start), "end": point(line, end)}


def insertion(line: int, character: int) -> dict[str, Any]:
    return span(line, character, character)


def accept_command(item: dict[str, Any]) -> dict[str, Any]:
    return {"command": item["command"]["command"], "arguments": item["command"]["arguments"]}


async def counts(window: Window) -> dict[str, int]:
    return (await window.request("fimls/status", {}))["counts"]


# ---- what is answered ----


@pytest.mark.asyncio
async def test_typing_or_accepting_a_part_asks_the_engine_no_more() -> None:
    async with window_on(says("first, second\n")) as (window, endpoint):
        item = await window.suggestion(0, 4)
        assert item["insertText"] == "first, second"
        for version, (column, text, rest) in enumerate(
            [(4, "f", "irst, second"), (5, "irst,", " second"), (10, " s", "econd")], start=2
        ):
            window.change(version, text, insertion(0, column))
            answers = await window.ask(0, column + len(text))[1]
            assert [(a["insertText"], a["command"]) for a in answers] == [(rest, item["command"])]
        # Deleting and typing the same again costs nothing either; something else does.
        window.change(5, "", span(0, 11, 12))
        assert [a["insertText"] for a in await window.ask(0, 11)[1]] == ["second"]
        assert len(endpoint.bodies) == 1
        window.change(6, "?", insertion(0, 11))
        await window.ask(0, 12)[1]
        assert len(endpoint.bodies) == 2


@pytest.mark.asyncio
async def test_an_automatic_request_gets_one_and_an_explicit_one_alternatives() -> None:
    async def by_seed(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        text = {0: "greedy", 1: "greedy", 2: "second"}.get(body["seed"], "third")
        assert (body["temperature"] > 0) == (body["seed"] > 0)
        return await says(text + "\n")(request)

    async with window_on(by_seed) as (window, endpoint):
        assert [item["insertText"] for item in await window.ask(0, 4)[1]] == ["greedy"]
        assert len(endpoint.bodies) == 1
        items = await window.ask(0, 4, invoked=True)[1]
        assert [item["insertText"] for item in items] == ["greedy", "second", "third"]
        assert len({item["command"]["arguments"][0] for item in items}) == 3


@pytest.mark.asyncio
async def test_an_explicit_request_is_answered_however_unsure() -> None:
    async with window_on(says("answer\n"), {"minConfidence": 0}) as (window, _):
        window.notify(
            "workspace/didChangeConfiguration", {"settings": {"fimls": {"minConfidence": 1}}}
        )

        async def hidden() -> bool:
            return await window.ask(0, 4)[1] == []

        await until(hidden)
        assert [item["insertText"] for item in await window.ask(0, 4, invoked=True)[1]] == [
            "answer"
        ]


@pytest.mark.asyncio
async def test_an_explicit_request_waits_for_the_model() -> None:
    async with Endpoint(says("answer\n")) as endpoint:
        remote = {"remote.url": endpoint.url, "remote.format": "starcoder2", "alternatives": 1}
        async with window_in_process(remote) as window:
            window.open("x = ")
            assert [item["insertText"] for item in await window.ask(0, 4, invoked=True)[1]] == [
                "answer"
            ]


@pytest.mark.asyncio
async def test_the_best_alternative_stays_in_front_when_asked_again() -> None:
    async def by_seed(request: web.Request) -> web.StreamResponse:
        return await says(["best", "second", "third"][(await request.json())["seed"]] + "\n")(
            request
        )

    async with window_on(by_seed) as (window, _):
        for invoked in (True, False, True):
            texts = [item["insertText"] for item in await window.ask(0, 4, invoked=invoked)[1]]
            assert texts == ["best", "second", "third"][: 3 if invoked else 1]


@pytest.mark.asyncio
async def test_an_explicit_request_survives_new_settings_and_a_slow_client() -> None:
    async with Endpoint(says("answer\n")) as endpoint:
        remote = {"remote.url": endpoint.url, "remote.format": "starcoder2", "alternatives": 1}
        slow = INLINE | {"workspace": {"configuration": True}}
        async with window_in_process(remote, slow, configuration=...) as window:  # it never answers
            window.open("x = ")
            _, items = window.ask(0, 4, invoked=True)
            await asyncio.sleep(0.1)
            assert not items.done()
            assert [item["insertText"] for item in await items] == ["answer"]
            window.notify("workspace/didChangeConfiguration", {"settings": None})
            window.reopen("x = ")
            assert len(await window.ask(0, 4, invoked=True)[1]) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("changed", [{}, {"maxTokens": 32}])
async def test_settings_that_come_in_the_middle_cost_no_answer(changed: dict[str, Any]) -> None:
    """Some editors send their settings once more right after the start."""
    async with window_on(says("answer\n")) as (window, endpoint):

        async def slowly(request: web.Request) -> web.StreamResponse:
            await asyncio.sleep(0.3)
            return await says("answer\n")(request)

        endpoint.answer = slowly
        _, items = window.ask(0, 4, invoked=True)
        await until(lambda: endpoint.streams == 1)
        window.notify("workspace/didChangeConfiguration", {"settings": {"fimls": changed}})
        assert [item["insertText"] for item in await items] == ["answer"]


@pytest.mark.asyncio
async def test_a_suggestion_goes_on_from_the_entry_that_is_selected_in_a_menu() -> None:
    async def prompted(request: web.Request) -> web.StreamResponse:
        assert "x = print" in (await request.json())["prompt"]
        return await says("(lines)\n")(request)

    async with window_on(prompted) as (window, _):
        window.change(2, "x = pr + 1")
        selected = {"range": span(0, 4, 6), "text": "print"}
        (item,) = await window.ask(0, 6, selectedCompletionInfo=selected)[1]
        assert (item["insertText"], item["range"]) == ("print(lines)", span(0, 4, 6))
        assert (
            await window.ask(0, 6, selectedCompletionInfo={"range": span(0, 8, 9), "text": "far"})[
                1
            ]
            == []
        )


@pytest.mark.asyncio
async def test_what_looks_like_a_snippet_is_plain_text() -> None:
    code = 'f"${cost} {rest} ${1:name}"'
    async with window_on(says(code + "\n")) as (window, _):
        item = await window.suggestion(0, 4)
        assert item["insertText"] == code  # a string; a snippet would be an object
        entry = await window.suggestion(0, 4, menu=True)
        assert (entry["textEdit"]["newText"], entry["insertTextFormat"]) == (code, 1)


# ---- what became of it ----


@pytest.mark.asyncio
async def test_a_silent_client_is_counted_by_its_edits() -> None:
    async with window_on(says("one.two\n")) as (window, _):
        before = await counts(window)
        await window.suggestion(0, 4)
        window.change(2, "one", insertion(0, 4))
        await window.ask(0, 7)[1]
        window.change(3, ".two", insertion(0, 7))
        after = await counts(window)
        grown = {name: after[name] - before[name] for name in after}
        assert grown == {"shown": 1, "accepted": 1, "partlyAccepted": 1, "typedThrough": 0}


@pytest.mark.asyncio
async def test_a_client_can_tell_what_it_shows_and_accepts() -> None:
    async with window_on(says("one.two\n")) as (window, _):
        before = await counts(window)
        item = await window.suggestion(0, 4)
        window.notify("textDocument/didShowCompletion", {"item": item})
        window.notify(
            "textDocument/didPartiallyAcceptCompletion", {"item": item, "acceptedLength": 3}
        )
        await window.request("workspace/executeCommand", accept_command(item))
        window.notify("textDocument/didShowCompletion", {"item": {"insertText": "somebody else's"}})
        window.notify("textDocument/didShowCompletion", None)
        window.change(2, "", span(0, 0, 4))
        await window.suggestion(0, 0)  # answered, and not shown as far as this client tells
        after = await counts(window)
        grown = {name: after[name] - before[name] for name in after}
        assert grown == {"shown": 1, "accepted": 1, "partlyAccepted": 1, "typedThrough": 0}
        assert window.shown == []


@pytest.mark.asyncio
async def test_memory_is_given_back_when_nobody_types_and_when_a_document_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each key in a large document leaves holes as large as that: they stayed."""
    given: list[int] = []
    monkeypatch.setattr(suggestions, "TIDY_S", 0.1)
    monkeypatch.setattr(suggestions, "give_back_memory", lambda: given.append(1))
    async with window_on(says("1\n")) as (window, _):
        await until(lambda: given)
        number = len(given)
        await asyncio.sleep(0.3)
        assert len(given) == number
        window.close_document()
        await until(lambda: len(given) > number)


@pytest.mark.asyncio
async def test_counts_are_kept_here_without_a_word_of_the_text(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(suggestions, "TIDY_S", 0.0)
    client = {"clientInfo": {"name": "Test Editor", "version": "7"}}
    async with window_on(says("secret_canary\n"), **client) as (window, _):
        await window.suggestion(0, 4)
        await until(lambda: read_usage() and read_usage()[0].counts.shown >= 2)
        (session,) = read_usage()
        assert session.is_open and session.client == "Test Editor 7"
    (file,) = (tmp_path / "state" / "sessions").iterdir()
    assert "canary" not in file.read_text() and file.stat().st_mode & 0o077 == 0
    (session,) = read_usage()
    assert not session.is_open
    ours = json.loads(file.read_text())
    strange = [
        {"started": float("inf")},
        {"started": float("nan")},
        {"pid": 0},
        {"pid": 10**27},
        {"counts": {}},
    ]
    for number, wrong in enumerate(strange):
        file.with_name(f"0-{number}.json").write_text(json.dumps(ours | wrong))
    file.with_name("1.json").write_text("[" * 100_000)
    file.with_name("2.json").write_text("{")  # cut short
    os.mkfifo(file.with_name("3.json"))
    assert read_usage() == [session]
    assert summary(read_usage())[-1].endswith(
        "2 shown, 0 accepted (0%), 0 in part, 0 typed through"
    )


# ---- status ----


@pytest.mark.asyncio
async def test_a_client_that_asks_is_told_each_state_once() -> None:
    async with window_on(
        says("answer\n"), {"disabledLanguages": ["markdown"]}, capabilities=WATCHES
    ) as (window, _):
        await until(lambda: window.statuses and window.statuses[-1]["state"] == "ready")
        states = [status["state"] for status in window.statuses]
        assert all(before != after for before, after in pairwise(states))

        window.open("text", "file:///work/place/notes.md", "markdown")
        window.notify(
            "textDocument/didFocus", {"textDocument": {"uri": "file:///work/place/notes.md"}}
        )
        await until(lambda: window.statuses[-1]["state"] == "off")
        assert "fimls.disabledLanguages" in window.statuses[-1]["message"]
        window.notify("textDocument/didFocus", {})
        await until(lambda: window.statuses[-1]["state"] == "ready")


@pytest.mark.asyncio
async def test_snoozing_stops_what_comes_by_itself_and_no_more() -> None:
    async with window_on(says("answer\n"), capabilities=WATCHES) as (window, _):
        status = await window.request("fimls/snooze", {"minutes": 5})
        assert status["state"] == "off" and "Snoozed until" in status["message"]
        assert await window.ask(0, 4)[1] == []
        assert (
            len(await window.ask(0, 4, invoked=True)[1]) == 1
        )  # the endpoint knows one answer only
        await until(lambda: window.statuses and window.statuses[-1]["state"] == "off")
        assert (await window.request("fimls/snooze", {"minutes": 0}))["state"] == "ready"
        assert len(await window.ask(0, 4)[1]) == 1
        for bad in (-1, "5", None, True, 1e9):
            with pytest.raises(RpcError, match="minutes"):
                await window.request("fimls/snooze", {"minutes": bad})


@pytest.mark.asyncio
async def test_switching_off_shows_and_the_remedy_is_named() -> None:
    async with window_on(says("answer\n"), capabilities=WATCHES) as (window, _):
        window.notify(
            "workspace/didChangeConfiguration", {"settings": {"fimls": {"enabled": False}}}
        )
        await until(lambda: window.statuses and window.statuses[-1]["state"] == "off")
        assert "fimls.enabled" in window.statuses[-1]["message"]
        assert await window.ask(0, 4, invoked=True)[1] == []


@pytest.mark.asyncio
async def test_what_is_wrong_is_a_state_for_who_shows_it_and_a_message_for_others(
    tmp_path: Path,
) -> None:
    wrong = {"model": str(tmp_path / "nowhere")}
    async with window_in_process(wrong, WATCHES) as window:
        await until(lambda: window.statuses and window.statuses[-1]["state"] == "failed")
        assert "nowhere" in window.statuses[-1]["message"]
        assert window.shown == []
    async with window_in_process(wrong) as window:
        await until(lambda: window.shown)
        assert (await window.request("fimls/status", {}))["state"] == "failed"
        assert window.statuses == []


@pytest.mark.asyncio
async def test_an_endpoint_that_is_down_shows_and_so_does_its_return() -> None:
    async with window_on(says("answer\n"), capabilities=WATCHES) as (window, endpoint):
        endpoint.answer = answers_with(503, "{}")
        assert await window.ask(0, 4)[1] == []
        await until(lambda: window.statuses and window.statuses[-1]["state"] == "failed")
        assert "503" in window.statuses[-1]["message"]
        endpoint.answer = says("answer\n")
        assert len(await window.ask(0, 4)[1]) == 1
        await until(lambda: window.statuses[-1]["state"] == "ready")
        assert window.shown == []


@pytest.mark.asyncio
async def test_another_language_for_a_document_shows() -> None:
    settings = {"disabledLanguages": ["markdown"]}
    async with window_on(says("answer\n"), settings, capabilities=WATCHES) as (window, _):
        window.notify("textDocument/didFocus", {"textDocument": {"uri": URI}})
        window.close_document()
        window.open("x = ", language="markdown")
        await until(lambda: window.statuses and window.statuses[-1]["state"] == "off")


def test_the_server_starts_without_what_only_requests_need() -> None:
    later = {"fim", "tree_sitter", "aiohttp", "torch", "tokenizers"}
    code = (
        f"import sys, lsp_server.protocol.app; print([name for name in {later} if name in "
        "sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.asyncio
async def test_loading_shows_how_far_it_is(home: Any, talkative_folder: Path) -> None:
    async with window_in_process({"model": str(talkative_folder)}, WATCHES) as window:
        await until(lambda: window.statuses and window.statuses[-1]["state"] == "ready")
    loading = [status for status in window.statuses if status["state"] == "loading"]
    assert loading and all(0 <= status["progress"] <= 1 for status in loading)
    assert window.statuses[-1]["progress"] is None


# ---- why ----


@pytest.mark.asyncio
async def test_why_tells_the_prompt_the_times_and_the_filters() -> None:
    async with window_on(says('"answer ```` of mine"\nnext line\n')) as (window, _):
        assert (
            await window.request("fimls/why", {"textDocument": {"uri": "file:///other.py"}}) is None
        )
        await window.suggestion(0, 4)
        text = (await window.request("fimls/why", {"textDocument": {"uri": URI}}))["markdown"]
        assert text.startswith("# Why this suggestion?")
        for part in (
            "cut at the end of the line",
            '`````text\n"answer ```` of mine"\n`````',
            "<fim_middle>x = ",
            "next line",
            "| confidence | 90%",
        ):
            assert part in text, part
        assert await window.request("fimls/why", {}) == {"markdown": text}
        window.change(2, '"', insertion(0, 4))
        await window.suggestion(0, 5)
        assert (
            "without asking the model again" in (await window.request("fimls/why", {}))["markdown"]
        )


@pytest.mark.asyncio
async def test_why_of_a_rest_tells_of_the_suggestion_that_it_is_of() -> None:
    async with window_on(says("alpha.one\n")) as (window, endpoint):
        await window.suggestion(0, 4)
        endpoint.answer = says("beta.two\n")
        window.change(2, "zz", insertion(0, 4))
        await window.suggestion(0, 6)
        assert "beta" in (await window.request("fimls/why", {}))["markdown"]
        window.change(3, "", span(0, 4, 6))
        assert (await window.suggestion(0, 4))["insertText"] == "alpha.one"
        assert "alpha" in (await window.request("fimls/why", {}))["markdown"]


def test_a_files_name_is_no_markdown() -> None:
    assert quoted("a`![x](http://x)|``.py") == "``` a`![x](http://x)\\|``.py ```"


def test_every_filter_can_be_told_of() -> None:
    assert set(get_args(Reason)) <= set(REASONS)
    assert set(get_args(Extent)) <= set(KINDS)


@pytest.mark.asyncio
async def test_why_tells_of_what_was_hidden() -> None:
    async with window_on(says("   \n")) as (window, _):
        assert await window.ask(0, 4)[1] == []
        text = (await window.request("fimls/why", {}))["markdown"]
        assert "Nothing was shown." in text and "nothing but blanks" in text
        assert json.dumps(text)
