"""Text, positions, models and code that are not as they should be: an answer comes, and the server
lives on."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from lsprotocol import types as lsp

from tests.conftest import SENTINELS, write_tokenizer
from tests.lsp_server.helpers import (
    INLINE,
    URI,
    Home,
    RpcError,
    Window,
    answers_with,
    front_folder,
    says,
    until,
    window_in_process,
    window_on,
)

FAR = 2**31 - 1
CANARY = "kanarienvogel"


# ---- documents ----


async def check_survives(
    tmp_path: Path, text: str, line: int, character: int, expected: str
) -> None:
    """A request at this place gets this suggestion, nobody is told of trouble, and the next one is
    answered too."""
    settings = {"remote.format": "", "model": str(front_folder(tmp_path))}
    async with window_on(says("z\n", "z\n"), settings) as (window, endpoint):
        window.open(text, "file:///odd.py")
        (item,) = await window.ask(line, character, "file:///odd.py")[1]
        assert item["insertText"] == expected
        assert len(endpoint.bodies[-1]["prompt"]) + endpoint.bodies[-1]["max_tokens"] <= 4096
        assert len(await window.ask(0, 4)[1]) == 1
        assert window.shown == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("text", "line", "character", "expected"),
    [
        ("", 0, 0, "z\nz"),
        ("", FAR, FAR, "z\nz"),
        ("a = ", 0, FAR, "z"),
        ("a = ", FAR, 0, "z"),
        ("a = \r\n\r\n", 1, 0, "z\r\nz"),
        ("a = \rb = ", 1, 4, "z"),
        ("\ud800 = ", 0, 4, "z"),
        ("a\udc00\ud800 = \n\ud83d", 0, 6, "z"),
        ("\ufeffa = \n\0 \f\v\x85\u2028", 0, 5, "z"),
        ("# <fim_prefix><|endoftext|><fim_suffix> ", 0, 40, "z"),
        ("x" * 2_000_000, 0, 1_000_000, "z"),
        ("😀" * 2_000_000, 0, 4_000_000, "z"),
        ("\n" * 1_000_000, 500_000, 0, "z\nz"),
    ],
    ids=[
        "empty",
        "empty, far",
        "beyond the line",
        "beyond the text",
        "crlf",
        "cr",
        "lone surrogate",
        "surrogates",
        "controls",
        "sentinels",
        "long line",
        "long line of pairs",
        "many lines",
    ],
)
async def test_odd_texts_and_places_get_a_suggestion(
    tmp_path: Path, text: str, line: int, character: int, expected: str
) -> None:
    await check_survives(tmp_path, text, line, character, expected)


@pytest.mark.asyncio
async def test_a_document_of_50_megabytes_gets_a_suggestion(tmp_path: Path) -> None:
    line = "value = compute(value, 17)  # é\n"
    await check_survives(tmp_path, line * (50 * 2**20 // len(line.encode())), 800_000, 31, "z")


@pytest.mark.asyncio
async def test_typing_in_a_line_of_two_million_characters_goes_on() -> None:
    async with window_on(says("z\n")) as (window, _):
        window.change(2, "x" * 2_000_000)
        for version in range(3, 8):
            here = {"line": 0, "character": 1_000_000 + version}
            window.change(version, "y", {"start": here, "end": here})
            (item,) = await window.ask(0, 1_000_001 + version)[1]
            assert item["range"]["start"] == {"line": 0, "character": 1_000_001 + version}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "uri",
    [
        "untitled:Untitled-1",
        "",
        "file://[",
        "file:///%00%ff",
        "\ud800",
        "vscode-notebook-cell:/a#b",
        "x" * 100_000,
    ],
    ids=lambda uri: ascii(uri[:20]),
)
async def test_odd_names_get_a_suggestion(uri: str) -> None:
    async with window_on(says("z\n"), workspaceFolders=[{"uri": uri, "name": uri}]) as (window, _):
        window.open("x = ", uri)
        assert len(await window.ask(0, 4, uri)[1]) == 1
        assert window.shown == []


@pytest.mark.asyncio
async def test_a_document_that_is_not_open_has_no_suggestion() -> None:
    async with window_on(says("z\n")) as (window, endpoint):
        window.change(2, "y = ", uri="file:///never.py")
        window.close_document("file:///never.py")
        window.close_document()
        assert await window.ask(0, 4, "file:///never.py")[1] == []
        assert await window.ask(0, 4)[1] == []
        assert (endpoint.bodies, window.shown) == ([], [])


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "position", [{"line": -1, "character": 0}, {"line": 2**40, "character": 0}, {}, None, [0, 0]]
)
async def test_a_request_that_makes_no_sense_gets_an_error(position: Any) -> None:
    async with window_on(says("z\n")) as (window, _):
        params = {"textDocument": {"uri": URI}, "position": position, "context": {"triggerKind": 1}}
        with pytest.raises(RpcError) as caught:
            await window.request("textDocument/inlineCompletion", params)
        assert caught.value.code == lsp.ErrorCodes.InvalidParams
        assert len(await window.ask(0, 4)[1]) == 1
        assert window.shown == []


# ---- models ----


def without_a_type(folder: Path) -> None:
    front_folder(folder, model_type="bert")


def without_a_tokenizer(folder: Path) -> None:
    front_folder(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").touch()


def with_code(folder: Path) -> None:
    front_folder(folder, auto_map={"AutoModel": "evil.Model"})


def with_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def with_pickles(folder: Path) -> None:
    front_folder(folder)
    (folder / "pytorch_model.bin").touch()


async def check_reported(folder: Path, message: str, capabilities: dict[str, Any] = INLINE) -> None:
    """The user is told once, with the remedy; answers are empty; the server lives on."""
    async with window_in_process({"model": str(folder)}, capabilities) as window:
        window.open("x = ")
        await until(lambda: window.shown)
        for _ in range(5):
            assert await window.ask(0, 4)[1] == []
        assert len(window.shown) == 1
        assert message.replace("FOLDER", str(folder)) in window.shown[0]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: folder.rmdir(),
            "There is no model folder FOLDER. Use 'bundled', a name that `fimls models` lists, or "
            "the path of a",
        ),
        (lambda folder: None, "The model folder FOLDER is empty. Download the model into it."),
        (
            without_a_type,
            # It might run through transformers, if it had weights.
            "FOLDER has no *.safetensors. Download the model again.",
        ),
        (
            with_code,
            "FOLDER/config.json asks to run code of its own (auto_map), which fimls never does. "
            "Use",
        ),
        (with_broken_config, "FOLDER/config.json cannot be read"),
        (without_a_tokenizer, "FOLDER/tokenizer.json is missing. Download the model again."),
        (
            with_pickles,
            "FOLDER has only pickled weights (pytorch_model.bin), which could run code when "
            "loaded. Use",
        ),
    ],
    ids=["absent", "empty", "unknown type", "auto_map", "broken config", "no tokenizer", "pickles"],
)
async def test_a_folder_that_is_no_model_is_reported_once(
    home: Home, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    spoil(folder)
    await check_reported(folder, message)
    await until(lambda: not home.engines())  # nor the bundled model's any more, which stood in


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def with_an_unknown_rope(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    rope = {"rope_type": "spiral", "rope_theta": 10000.0}
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))


def without_sentinels(folder: Path) -> None:
    write_tokenizer(folder, [name.replace("fim", "f") for name in SENTINELS])


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncated, "FOLDER/model.safetensors cannot be read"),
        (with_an_unknown_rope, "rope"),
        (without_sentinels, "use a model trained to fill in the middle"),
    ],
    ids=["truncated", "unknown rope type", "no sentinels"],
)
async def test_a_model_that_cannot_complete_is_reported_once(
    home: Home,
    tmp_path: Path,
    talkative_folder: Path,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(talkative_folder, folder)
    spoil(folder)
    await check_reported(folder, message)
    assert [record.levelname for record in caplog.records if record.levelno >= logging.WARNING] == [
        "ERROR"
    ]


# ---- faults in our own code ----


def fault_in(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Puts a fault into a function of ours: "module:name" or "module:Class.name"."""
    module, _, name = place.partition(":")
    *outer, last = name.split(".")
    target: Any = import_module(f"lsp_server.{module}")
    for part in outer:
        target = getattr(target, part)

    def fail(*_: object, **__: object) -> Any:
        raise RuntimeError(f"a fault with {CANARY}")

    monkeypatch.setattr(target, last, fail)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "place",
    [
        "documents:Document.snapshot",
        "protocol.server:FimlsServer.relative_path",
        "completion.suggestions:Suggestions.suggest",
        "completion.offers:Offers.rest_at",
        "session.prompter:Prompter.contexts",
        "session.prompter:around_cursor",
        "session.prompter:render_text",
        "completion.query:Shaper.at",
        "session.prompter:CompletionRequest",
        "engines.remote:RemoteEngine.complete",
        "engines.http:HttpClient.stream",
        "engines.http:_piece",
        "completion.query:Shaper.done",
        "completion.query:Shaper.shape",
        "completion.query:Trace",
        "completion.trace:Trace.to_json",
        "documents:Document.offset_to_position",
        "protocol.completion:to_position",
    ],
)
async def test_a_fault_at_any_stage_is_an_empty_answer_and_one_line_in_the_log(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lsp_server")
    async with window_on(says("z\n")) as (window, _):
        window.change(2, f"{CANARY} = ")
        await window.request(
            "fimls/status", {}
        )  # the edit is behind us: the fault is for the request
        with monkeypatch.context() as patch:
            caplog.clear()
            fault_in(patch, place)
            assert await window.ask(0, 16)[1] == []
            errors = [
                record.getMessage()
                for record in caplog.records
                if record.levelno >= logging.WARNING
            ]
            assert len(errors) == 1
            assert errors[0].startswith("RuntimeError at ")
            assert CANARY not in caplog.text
        assert len(await window.ask(0, 16)[1]) == 1
        assert window.shown == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "place", ["documents:Document.snapshot", "completion.offers:Offers.edited"]
)
async def test_a_fault_in_counting_does_no_harm_to_the_mirror(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with window_on(says("z\n")) as (window, _):
        with monkeypatch.context() as patch:
            fault_in(patch, place)
            window.change(2, f"{CANARY} = ")
            await window.request("fimls/status", {})
        warnings = [
            record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
        ]
        assert len(warnings) == 1 and warnings[0].startswith("RuntimeError at ")
        cursor = len(CANARY) + len(" = ")
        assert (await window.suggestion(0, cursor))["range"]["start"] == {
            "line": 0,
            "character": cursor,
        }
        assert CANARY not in caplog.text and window.shown == []


@pytest.mark.asyncio
async def test_a_fault_in_the_mirror_gives_no_suggestion_for_a_stale_text(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with window_on(says("z\n")) as (window, _):
        with monkeypatch.context() as patch:
            fault_in(patch, "documents:Document.change")
            window.change(2, f"{CANARY} = ")
            assert await window.ask(0, 4)[1] == []
            assert f"RuntimeError at {__file__}" in caplog.text
        assert await window.ask(0, 4)[1] == []
        window.open("x = ")
        assert len(await window.ask(0, 4)[1]) == 1
        assert CANARY not in caplog.text
        assert window.shown == []


@pytest.mark.asyncio
async def test_a_fault_while_loading_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fault_in(monkeypatch, "session.prompter:Prompter.for_settings")
    async with window_in_process(
        {"remote.url": "http://127.0.0.1:9", "remote.format": "starcoder2"}
    ) as window:
        window.open("x = ")
        await until(lambda: window.shown)
        assert await window.ask(0, 4)[1] == []
        assert window.shown == [
            "fimls: The model could not be used (RuntimeError). Choose another, or 'bundled'."
        ]
        assert CANARY not in caplog.text


# ---- what the logs hold ----


@pytest.mark.asyncio
async def test_the_logs_never_hold_text_names_or_keys_of_the_user(
    home: Home, talkative_folder: Path
) -> None:
    uri = f"file:///{CANARY}/{CANARY}.py"
    settings = {
        "model": str(talkative_folder),
        "maxTokens": CANARY,
        CANARY: 1,
        "remote.apiKey": f"{CANARY} with blanks",
        "temperature": 1.0,
        "log.level": "debug",
    }
    async with Window.spawn(home) as window:
        await window.start(settings, rootUri=f"file:///{CANARY}")
        window.open(f"{CANARY} = ", uri, language=CANARY)
        await window.suggestion(0, 16, uri)
        window.change(2, f"print('{CANARY}', ", uri=uri)
        number, items = window.ask(0, 23, uri)
        window.cancel(number)
        with pytest.raises(RpcError):
            await items
        for odd in (f"file:///{CANARY}/never.py", f"file://[{CANARY}"):
            window.change(2, CANARY, uri=odd)
            assert await window.ask(0, 0, odd)[1] == []
        window.notify(f"{CANARY}/unknown", {"text": CANARY})
        window.notify("textDocument/didOpen", {"text": CANARY})
        for method in (
            f"{CANARY}/unknown",
            "textDocument/inlineCompletion",
            "workspace/executeCommand",
        ):
            with pytest.raises(RpcError):
                await window.request(method, {"command": CANARY})
        assert any(CANARY in message for message in window.shown)
    for log in ("lsp.log", "engine.log", "stderr"):
        assert CANARY not in home.log(log)
    assert "showed the user 3 problems with the settings" in home.log("lsp.log")


@pytest.mark.asyncio
async def test_what_an_endpoint_says_is_shown_and_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "lsp_server")
    refusal = f'{{"error": {{"message": "cannot read {CANARY}"}}}}'
    async with window_on(answers_with(400, refusal)) as (window, _):
        assert await window.ask(0, 4)[1] == []
        assert CANARY in window.shown[0]
        assert CANARY not in caplog.text
