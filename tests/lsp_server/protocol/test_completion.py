"""Sessions of an editor with the server, over LSP: what is asked, what is answered, and what no
longer matters."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from lsprotocol import types as lsp
from pytest_lsp import LanguageClient, make_test_lsp_client

from lsp_server.scheduler import Scheduler
from lsp_server.session.prompter import Prompter
from lsp_server.settings import Settings
from tests.lsp_server.helpers import (
    INLINE,
    URI,
    Endpoint,
    Home,
    RpcError,
    Window,
    says,
    talks,
    until,
    window_in_process,
    window_on,
)

SHOWS_PROGRESS = INLINE | {"window": {"workDoneProgress": True}}
CODECS = {"utf-8": ("utf-8", 1), "utf-16": ("utf-16-le", 2), "utf-32": ("utf-32-le", 4)}


def to_position(text: str, offset: int, encoding: str) -> lsp.Position:
    before, (codec, width) = text[:offset], CODECS[encoding]
    return lsp.Position(before.count("\n"), len(before.rpartition("\n")[2].encode(codec)) // width)


def to_offset(text: str, position: lsp.Position, encoding: str) -> int:
    lines, (codec, width) = text.split("\n"), CODECS[encoding]
    before = lines[position.line].encode(codec)[: position.character * width].decode(codec)
    return len("\n".join([*lines[: position.line], before]))


def talking(folder: Path, tokens: int) -> dict[str, Any]:
    """Settings with which the talkative model gives so many letters; by the highest odds it would
    go round in loops."""
    return {"model": str(folder), "maxTokens": tokens, "temperature": 1.0}


# ---- a whole session ----


class Editor:
    """A document in an editor and, through pytest-lsp, in the server."""

    def __init__(self, client: LanguageClient, encoding: str, text: str) -> None:
        self.client, self.encoding, self.text, self.version = client, encoding, text, 1
        client.text_document_did_open(
            lsp.DidOpenTextDocumentParams(lsp.TextDocumentItem(URI, "python", 1, text))
        )

    def position(self, offset: int) -> lsp.Position:
        return to_position(self.text, offset, self.encoding)

    def edit(self, where: lsp.Range, new: str) -> None:
        start, end = (
            to_offset(self.text, place, self.encoding) for place in (where.start, where.end)
        )
        self.text = self.text[:start] + new + self.text[end:]
        self.version += 1
        document = lsp.VersionedTextDocumentIdentifier(self.version, URI)
        change = lsp.TextDocumentContentChangePartial(where, new)
        self.client.text_document_did_change(lsp.DidChangeTextDocumentParams(document, [change]))

    def type(self, offset: int, text: str) -> int:
        """Key by key; returns where the cursor is then."""
        for key in text:
            self.edit(lsp.Range(self.position(offset), self.position(offset)), key)
            offset += 1
        return offset

    async def suggestion(self, offset: int) -> lsp.InlineCompletionItem:
        params = lsp.InlineCompletionParams(
            context=lsp.InlineCompletionContext(lsp.InlineCompletionTriggerKind.Automatic),
            text_document=lsp.TextDocumentIdentifier(URI),
            position=self.position(offset),
        )

        async def items() -> Any:
            return (await self.client.text_document_inline_completion_async(params)).items

        (item,) = await until(items)
        return item


@pytest.mark.asyncio
@pytest.mark.parametrize("encoding", CODECS)
async def test_accepting_a_suggestion_gives_prefix_suggestion_suffix(
    shared_home: Home, talkative_folder: Path, encoding: str
) -> None:
    """open, type, complete, accept by editing; and again, which shows that the server's mirror is
    in step."""
    client = make_test_lsp_client()
    environment = os.environ | shared_home.environment
    await client.start_io(
        sys.executable, "-P", "-m", "lsp_server", "lsp", "--stdio", env=environment
    )
    capabilities = lsp.ClientCapabilities(
        general=lsp.GeneralClientCapabilities(
            position_encodings=[lsp.PositionEncodingKind(encoding)]
        ),
        text_document=lsp.TextDocumentClientCapabilities(
            inline_completion=lsp.InlineCompletionClientCapabilities()
        ),
    )
    options = talking(talkative_folder, 8)
    result = await client.initialize_session(
        lsp.InitializeParams(capabilities=capabilities, initialization_options=options)
    )
    assert result.capabilities.position_encoding == encoding

    editor = Editor(client, encoding, "def naïve():\n    '日本 🎉' + '\n    return 1\n")
    cursor = editor.type(editor.text.index("'\n") + 1, "é🦀' + ")
    for _ in range(2):
        prefix, suffix = editor.text[:cursor], editor.text[cursor:]
        item = await editor.suggestion(cursor)
        assert re.fullmatch("[a-z]{8}", item.insert_text)
        assert item.range == lsp.Range(editor.position(cursor), editor.position(cursor))
        editor.edit(item.range, item.insert_text)
        assert editor.text == prefix + item.insert_text + suffix
        cursor += len(item.insert_text)
    assert client.messages == []
    await client.shutdown_session()
    await client.stop()


@pytest.mark.asyncio
@pytest.mark.parametrize("encoding", CODECS)
async def test_what_a_suggestion_replaces_is_in_its_range(encoding: str) -> None:
    """The bracket right of the cursor, which an editor put there, stands once in the end."""
    text, answer = "'🎉é', f(a[)\n", "1], b)\n"
    cursor = text.index("[") + 1
    capabilities = INLINE | {"general": {"positionEncodings": [encoding]}}
    async with window_on(says(answer), capabilities=capabilities) as (window, _):
        window.change(2, text)
        place = to_position(text, cursor, encoding)
        item = await window.suggestion(place.line, place.character)
    start, end = (lsp.Position(**item["range"][name]) for name in ("start", "end"))
    accepted = (
        text[: to_offset(text, start, encoding)]
        + item["insertText"]
        + text[to_offset(text, end, encoding) :]
    )
    assert accepted == "'🎉é', f(a[1], b)\n"


@pytest.mark.asyncio
async def test_windows_share_an_engine_and_hold_no_torch_themselves(
    shared_home: Home, talkative_folder: Path
) -> None:
    async with Window.spawn(shared_home) as first, Window.spawn(shared_home) as second:
        for window in (first, second):
            await window.start(talking(talkative_folder, 8))
            window.open("x = ")
            assert len((await window.suggestion(0, 4))["insertText"]) == 8
            assert "libtorch" not in Path(f"/proc/{window.process.pid}/maps").read_text()
        await until(lambda: len(shared_home.engines()) == 1)  # and no spare waits any more


# ---- what is offered ----


@pytest.mark.asyncio
async def test_a_client_with_inline_completion_gets_no_menu() -> None:
    async with window_in_process() as window:
        assert window.capabilities["inlineCompletionProvider"] == {}
        assert "completionProvider" not in window.capabilities
        assert window.capabilities["positionEncoding"] == "utf-16"


@pytest.mark.asyncio
async def test_a_client_without_inline_completion_gets_the_same_suggestion_in_its_menu() -> None:
    async with window_on(says("one\n", "two\n"), capabilities={}) as (window, _):
        assert window.capabilities["completionProvider"] == {}
        inline = await window.suggestion(0, 4)
        entry = await window.suggestion(0, 4, menu=True)
    place = {"line": 0, "character": 4}
    assert (inline["insertText"], inline["range"]) == ("one", {"start": place, "end": place})
    assert entry["command"] == inline["command"]
    assert entry["textEdit"] == {"newText": "one", "range": {"start": place, "end": place}}
    assert (entry["label"], entry["filterText"], entry["documentation"]) == ("one", "one", "one")


@pytest.mark.asyncio
@pytest.mark.parametrize("encoding", CODECS)
async def test_a_menus_entry_begins_with_the_word_before_the_cursor(encoding: str) -> None:
    """Clients compare the two, and would not show it otherwise."""
    capabilities = {"general": {"positionEncodings": [encoding]}}
    async with window_on(says("ces[0]\n"), capabilities=capabilities) as (window, _):
        window.reopen("'🎉', é_pri")
        cursor, start = (to_position("'🎉', é_pri", offset, encoding) for offset in (10, 5))
        entry = await window.suggestion(cursor.line, cursor.character, menu=True)
    assert entry["label"] == entry["filterText"] == entry["textEdit"]["newText"] == "é_prices[0]"
    where = entry["textEdit"]["range"]
    assert (where["start"]["character"], where["end"]["character"]) == (
        start.character,
        cursor.character,
    )


# ---- what no longer matters ----


async def in_flight(window: Window, endpoint: Endpoint) -> tuple[int, asyncio.Future[Any]]:
    """A request that the endpoint is answering without an end."""
    asked = window.ask(0, 4)
    await until(lambda: endpoint.streams == 1)
    return asked


@pytest.mark.asyncio
async def test_a_newer_request_supersedes_the_older() -> None:
    async with window_on(talks) as (window, endpoint):
        older, no_items = await in_flight(window, endpoint)
        endpoint.answer = says("new\n")
        newer, items = window.ask(0, 4)
        assert await no_items == []
        assert [item["insertText"] for item in await items] == ["new"]
        await until(lambda: endpoint.streams == 0)
        assert (window.answers[older], window.answers[newer]) == (1, 1)


@pytest.mark.asyncio
async def test_of_many_requests_at_once_the_last_one_counts() -> None:
    async def slowly(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.2)  # else the first is answered before the last is asked
        return await says("new\n")(request)

    async with window_on(slowly) as (window, endpoint):
        asked = [window.ask(0, 4) for _ in range(20)]
        answers = [await items for _, items in asked]
        assert [len(items) for items in answers] == [0] * 19 + [1]
        assert len(endpoint.bodies) <= 2  # dead work is not begun
        assert {window.answers[number] for number, _ in asked} == {1}


@pytest.mark.asyncio
async def test_a_cancelled_request_is_answered_once_and_its_work_ends() -> None:
    async with window_on(talks) as (window, endpoint):
        number, items = await in_flight(window, endpoint)
        window.cancel(number)
        with pytest.raises(RpcError) as caught:
            await items
        assert caught.value.code == lsp.LSPErrorCodes.RequestCancelled
        await until(lambda: endpoint.streams == 0)
        window.cancel(number)  # too late, and no harm
        endpoint.answer = says("on\n")
        assert (await window.suggestion(0, 4))["insertText"] == "on"
        assert window.answers[number] == 1


@pytest.mark.asyncio
async def test_a_closed_document_ends_its_request() -> None:
    async with window_on(talks) as (window, endpoint):
        _, items = await in_flight(window, endpoint)
        window.close_document()
        assert await items == []
        await until(lambda: endpoint.streams == 0)


@pytest.mark.asyncio
@pytest.mark.parametrize("version", [2, 1])
async def test_a_text_that_changes_meanwhile_ends_its_request(version: int) -> None:
    """Also where a client forgets to count on."""
    async with window_on(talks) as (window, endpoint):
        _, items = await in_flight(window, endpoint)
        window.change(version, "y = ")
        assert await items == []
        await until(lambda: endpoint.streams == 0)


@pytest.mark.asyncio
async def test_a_suggestion_is_never_given_for_another_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even if its work could not be ended any more."""
    changed = asyncio.Event()

    async def says_late(request: web.Request) -> web.StreamResponse:
        await changed.wait()
        return await says("z\n")(request)

    async with window_on(says_late) as (window, endpoint):
        _, items = await in_flight(window, endpoint)
        monkeypatch.setattr(Scheduler, "close", lambda *_: None)
        window.change(2, "y = ")
        await window.ask(0, 0, "file:///never.py")[1]  # once this is answered, the change is in
        changed.set()
        assert await items == []


@pytest.mark.asyncio
async def test_messages_that_come_together_are_taken_in_their_order() -> None:
    async with window_on(says("1\n")) as (window, endpoint):
        with window.together():
            _, items = window.ask(0, 4)
            window.change(2, "y = ")  # the request was not made for this text
        assert (await items, endpoint.bodies) == ([], [])
        window.change(3, "z = ")
        _, items = window.ask(0, 4)
        assert len(await items) == 1
        assert "z = " in endpoint.bodies[-1]["prompt"]


@pytest.mark.asyncio
async def test_shutdown_answers_what_is_in_flight_and_refuses_what_comes_after() -> None:
    async with window_on(talks) as (window, endpoint):
        number, items = await in_flight(window, endpoint)
        await window.request("shutdown")
        with pytest.raises(RpcError):
            await items
        with pytest.raises(RpcError) as caught:
            await window.ask(0, 4)[1]
        assert caught.value.code == lsp.ErrorCodes.InvalidRequest
        assert window.answers[number] == 1
        await until(lambda: endpoint.streams == 0)
        window.notify("exit")
        await window.ended()


# ---- the engine behind it ----


@pytest.mark.asyncio
async def test_a_cancelled_request_stops_the_engine(
    shared_home: Home, talkative_folder: Path
) -> None:
    async with Window.spawn(shared_home) as window:
        await window.start(talking(talkative_folder, 1024))
        window.open("x = ")
        await window.suggestion(0, 4)
        window.reopen("x = ")
        started = time.monotonic()
        await window.suggestion(0, 4)
        whole = time.monotonic() - started

        window.reopen("x = ")
        number, items = window.ask(0, 4)
        await until(shared_home.is_busy)
        started = time.monotonic()
        window.cancel(number)
        with pytest.raises(RpcError):
            await items
        while await shared_home.is_busy():
            assert time.monotonic() - started < whole / 2
        assert window.answers[number] == 1


@pytest.mark.asyncio
async def test_an_engine_killed_in_mid_answer_costs_one_answer(
    home: Home, talkative_folder: Path
) -> None:
    async with Window.spawn(home) as window:
        await window.start(talking(talkative_folder, 400))
        window.open("x = ")
        await window.suggestion(0, 4)
        window.reopen("x = ")
        _, items = window.ask(0, 4)
        await until(home.is_busy)
        for pid in home.engines():
            os.kill(pid, signal.SIGKILL)
        assert await items == []
        assert await window.suggestion(0, 4)
        assert window.shown == []


@pytest.mark.asyncio
async def test_while_the_model_loads_answers_are_empty_and_afterwards_not(
    home: Home, talkative_folder: Path
) -> None:
    async with Window.spawn(home) as window:
        await window.start(talking(talkative_folder, 64), SHOWS_PROGRESS)
        window.open("x = ")
        assert await window.ask(0, 4)[1] == []
        assert "end" not in window.progress  # so that answer came at once
        await until(lambda: "end" in window.progress)
        assert len(await window.ask(0, 4)[1]) == 1
        assert (window.progress[0], window.progress[-1]) == ("begin", "end")
        assert set(window.progress[1:-1]) <= {"report"}
        assert window.shown == []


@pytest.mark.asyncio
async def test_loading_does_not_end_before_prompts_can_be_made(
    shared_home: Home, talkative_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that runs already is ready at once; the tokenizer still has to be loaded."""
    for name, value in shared_home.environment.items():
        monkeypatch.setenv(name, value)
    make, seen = Prompter.for_settings, threading.Event()

    def make_late(settings: Settings) -> Prompter:
        seen.wait()
        return make(settings)

    monkeypatch.setattr(Prompter, "for_settings", make_late)
    async with window_in_process(talking(talkative_folder, 8), SHOWS_PROGRESS) as window:
        window.open("x = ")
        try:
            await until(lambda: "report" in window.progress)  # of an engine that is ready
            assert "end" not in window.progress
        finally:
            seen.set()
        await until(lambda: "end" in window.progress)
        assert len(await window.ask(0, 4)[1]) == 1
