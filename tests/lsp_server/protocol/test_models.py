"""Models in an editor: the list, the choice and who may overrule it, fetching from a hub on
loopback, the doctor's page, and the note."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from lsp_server.daemon import in_daemon
from lsp_server.protocol.models import measuring, note, pulling
from tests.lsp_server.helpers import (
    INLINE,
    PATIENCE_S,
    Home,
    RpcError,
    Window,
    until,
    window_in_process,
)
from tests.lsp_server.played import Played
from tests.model.catalogue.hub_server import Hub, serving
from tests.model.export.exports import exported, toy

PYTHON = sys.executable
LARGE = b"GGUF" + random.Random(0).randbytes(400_000)
FILE = "toy.gguf"
NAME = f"org/repo:{FILE}"
ASKS = INLINE | {"window": {"showMessage": {}, "workDoneProgress": True}}
FAILED = -32803
BEST = "qwen2.5-coder-0.5b"
ESTIMATE = {"name": BEST, "memory_bytes": 600_000_000, "line_ms": 250.0, "verdict": "at a pause"}
REPORT = {"estimates": [ESTIMATE], "recommendation": {"model": BEST}}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("toy")
    (file,) = exported(toy(folder), folder, "gguf").glob("*.gguf")
    return file.read_bytes()


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the developer's is on the disk."""
    monkeypatch.setenv("FIMLS_DATA_DIR", str(tmp_path / "data"))
    for variable in ("HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    return tmp_path / "hub"


@pytest.fixture
def hub(gguf: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving(Hub({FILE: gguf})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def put_in_cache(caches: Path, name: str, content: bytes, repository: str = "org/repo") -> Path:
    folder = caches / f"models--{repository.replace('/', '--')}" / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name


def stored(tmp_path: Path) -> Any:
    path = tmp_path / "config" / "settings.json"
    return json.loads(path.read_text()) if path.exists() else None


async def status(window: Window) -> dict[str, Any]:
    return await window.request("fimls/status", {})


async def chosen(window: Window) -> list[str]:
    return [row["name"] for row in await window.command("fimls.listModels") if row["chosen"]]


# ---- the list ----


@pytest.mark.asyncio
async def test_the_list_has_what_is_here_and_what_can_be_had(
    engine: Played, caches: Path, gguf: bytes, tmp_path: Path
) -> None:
    put_in_cache(caches, FILE, gguf)
    put_in_cache(caches, "other.gguf", b"GGUF and no more", "org/damaged")
    measuring.keep(REPORT)
    async with window_in_process() as window:
        rows = {row["name"]: row for row in await window.command("fimls.listModels")}
    assert list(rows)[:2] == ["bundled", NAME]
    assert "org/damaged:other.gguf" not in rows
    assert [name for name, row in rows.items() if row["here"]] == ["bundled", NAME]
    assert [name for name, row in rows.items() if row["chosen"]] == ["bundled"]
    assert rows[NAME]["bytes"] == len(gguf)
    assert (rows["starcoder2-3b"]["asksLicence"], rows[BEST]["asksLicence"]) == (True, False)
    assert rows[BEST]["licence"] == "Apache-2.0" and rows[BEST]["bytes"] > 4e8
    assert rows[BEST]["suggestionMs"] == 250.0 and rows[BEST]["verdict"] == "at a pause"
    assert rows[BEST]["memoryBytes"] == 600_000_000
    assert rows["starcoder2-3b"]["suggestionMs"] is None and rows["starcoder2-3b"]["verdict"] == ""
    assert rows["bundled"]["languages"] == "python" and 1e6 < rows["bundled"]["bytes"] < 30e6
    assert 1e6 < rows["bundled"]["memoryBytes"] < 30e6 and rows[NAME]["memoryBytes"] > 1000
    assert {frozenset(row) for row in rows.values()} == {frozenset(rows["bundled"])}


@pytest.mark.asyncio
async def test_the_list_tells_the_time_of_models_that_the_catalogue_does_not_have(
    engine: Played, caches: Path, gguf: bytes
) -> None:
    put_in_cache(caches, FILE, gguf)
    machine = {
        "bytes_a_weight": 1,
        "precision": "int8",
        "read_bytes_per_s": 10**9,
        "operations_per_s": 10**11,
        "available_memory": None,
    }
    measuring.keep(REPORT | {"machine": machine})
    async with window_in_process() as window:
        rows = {row["name"]: row for row in await window.command("fimls.listModels")}
    assert 0 < rows[NAME]["suggestionMs"] < rows["bundled"]["suggestionMs"] < 1000
    assert rows["bundled"]["verdict"] == "while you type"
    assert rows["bundled"]["licence"] == "Apache-2.0" and rows[NAME]["licence"] == ""
    assert rows[BEST]["suggestionMs"] == 250.0, "as the doctor said"


@pytest.mark.asyncio
@pytest.mark.parametrize("kept", [b"", b"[]", b'{"estimates": [{}]}', b"[" * 100_000])
async def test_a_damaged_file_of_measurements_is_none(
    engine: Played, kept: bytes, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "doctor.json").write_bytes(kept)
    async with window_in_process() as window:
        assert len(await window.command("fimls.listModels")) > 5


@pytest.mark.asyncio
async def test_the_chosen_model_is_in_the_list_wherever_it_is(
    engine: Played, talkative_folder: Path, caches: Path, gguf: bytes
) -> None:
    path = put_in_cache(caches, FILE, gguf)
    async with window_in_process({"model": str(talkative_folder)}) as window:
        rows = await window.command("fimls.listModels")
        assert [r["name"] for r in rows if r["chosen"]] == [str(talkative_folder)]
        assert rows[1]["here"]
    async with window_in_process({"model": str(path)}) as window:
        assert await chosen(window) == [NAME]
    async with window_in_process({"model": BEST}) as window:  # it is not here
        assert await chosen(window) == [BEST]


# ---- the choice ----


@pytest.mark.asyncio
async def test_a_choice_is_kept_for_the_next_start(
    engine: Played, talkative_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "config" / "settings.json"
    file.parent.mkdir()
    file.write_text('{"maxTokens": 7}')
    async with window_in_process({"model": ""}) as window:  # "": not set
        assert await window.command("fimls.chooseModel", {"name": str(talkative_folder)}) is None
        await until(lambda: engine.starts == 2)
        assert (await status(window))["model"] == str(talkative_folder)
    assert stored(tmp_path) == {"maxTokens": 7, "model": str(talkative_folder)}
    assert file.stat().st_mode & 0o077 == 0
    async with window_in_process() as window:
        assert (await status(window))["model"] == str(talkative_folder)
        assert await chosen(window) == [str(talkative_folder)]
        await window.command("fimls.chooseModel", {"name": "bundled"})
        assert (await status(window))["model"] == "bundled"
    assert stored(tmp_path)["model"] == "bundled"


@pytest.mark.asyncio
async def test_environment_and_editor_are_stronger_than_the_choice(
    engine: Played, talkative_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"name": "bundled"}
    async with window_in_process({"model": str(talkative_folder)}) as window:
        with pytest.raises(RpcError, match=r"model names a model\. Remove") as error:
            await window.command("fimls.chooseModel", other)
        assert error.value.code == FAILED
    monkeypatch.setenv("FIMLS_MODEL", str(talkative_folder))
    async with window_in_process() as window:
        with pytest.raises(RpcError, match=r"FIMLS_MODEL chooses '.*talkative.*'\. Unset"):
            await window.command("fimls.chooseModel", other)
        assert (await status(window))["model"] == str(talkative_folder)
    monkeypatch.delenv("FIMLS_MODEL")
    async with window_in_process({"remote": {"url": "http://127.0.0.1:9"}}) as window:
        with pytest.raises(RpcError, match=r"Remove the setting fimls\.remote\.url"):
            await window.command("fimls.chooseModel", other)
        assert await chosen(window) == []
    assert stored(tmp_path) is None


@pytest.mark.asyncio
async def test_what_is_no_model_is_not_chosen(engine: Played, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.gguf")
    async with window_in_process() as window:
        for name, message in {
            "/no/such//folder": "There is no model folder /no/such//folder",
            BEST: f"`fimls pull {BEST}` fetches it",
            str(tmp_path): "config.json is missing",
            str(tmp_path / "fifo.gguf"): "no whole GGUF file",
        }.items():
            with pytest.raises(RpcError, match=message) as error:
                await window.command("fimls.chooseModel", {"name": name})
            assert error.value.code == FAILED
        for bad in ((), ({},), ({"name": 5},), ({"name": ""},), ({"name": "a\0b"},), (None,)):
            for command in ("fimls.chooseModel", "fimls.pullModel"):
                with pytest.raises(RpcError, match=r"takes {name: string}"):
                    await window.command(command, *bad)
        assert (await status(window))["state"] == "ready"
    assert stored(tmp_path) is None


@pytest.mark.asyncio
@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
async def test_a_damaged_settings_file_is_told_and_set_aside(
    engine: Played, content: str, talkative_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "config" / "settings.json"
    file.parent.mkdir()
    file.write_text(content)
    async with window_in_process() as window:
        await until(lambda: window.shown)
        assert "settings.json is ignored" in window.shown[0]
        assert (await status(window))["model"] == "bundled"
        await window.command("fimls.chooseModel", {"name": str(talkative_folder)})
    assert stored(tmp_path) == {"model": str(talkative_folder)}
    assert file.with_name("settings.bad.json").read_text() == content


@pytest.mark.asyncio
async def test_a_settings_file_that_is_a_fifo_stops_nothing(engine: Played, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    os.mkfifo(tmp_path / "config" / "settings.json")
    async with window_in_process() as window:
        await until(lambda: window.shown)
        assert (await status(window))["model"] == "bundled"


# ---- fetching ----


@pytest.mark.asyncio
async def test_a_model_is_fetched_with_progress(
    engine: Played, hub: Hub, gguf: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulling, "POLL_S", 0.01)
    hub.slow_s = 0.005
    async with window_in_process(capabilities=ASKS) as window:
        await until(lambda: not window.progress or window.progress[-1] == "end")
        window.reports.clear()
        done = await window.command("fimls.pullModel", {"name": NAME})
        assert Path(done["path"]).read_bytes() == gguf
        await until(lambda: window.progress[-1] == "end")
        begin, *reports, _ = window.reports
        assert begin["cancellable"] and begin["title"] == f"fimls: getting {NAME}"
        shares = [report["percentage"] for report in reports]
        assert shares and shares == sorted(shares) and shares[-1] <= 100
        assert any(report["message"].startswith("fetching") for report in reports)
        assert window.questions == []
        await window.command("fimls.chooseModel", {"name": NAME})
        assert (await status(window))["model"] == NAME
    assert stored(tmp_path) == {"model": NAME}


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["the progress's button", "the request", "the end"])
async def test_fetching_can_be_cancelled_and_goes_on_later(
    engine: Played, hub: Hub, caches: Path, how: str
) -> None:
    hub.files[FILE] = LARGE
    hub.faults = [("GET", FILE, ["stall", 200_000])]
    async with window_in_process(capabilities=ASKS) as window:
        arguments = {"command": "fimls.pullModel", "arguments": [{"name": NAME}]}
        number, answer = window.send("workspace/executeCommand", arguments)
        await until(lambda: any(f.stat().st_size for f in caches.rglob("*.incomplete")))
        await until(lambda: any(token.startswith("fimls-pull") for token in window.tokens))
        if how == "the request":
            window.cancel(number)
        elif how == "the progress's button":
            window.notify("window/workDoneProgress/cancel", {"token": window.tokens[-1]})
        if how != "the end":
            with pytest.raises(RpcError):
                await asyncio.wait_for(answer, PATIENCE_S)
            await until(lambda: window.progress[-1] == "end")
    if how == "the end":
        assert isinstance(answer.exception(), RpcError)
    hub.released.set()
    hub.released.clear()
    async with window_in_process(capabilities=ASKS) as window:
        done = await window.command("fimls.pullModel", {"name": NAME})
    assert Path(done["path"]).read_bytes() == LARGE
    assert hub.asked("GET", FILE)[-1]["range"].startswith("bytes=")


@pytest.mark.asyncio
async def test_a_licence_with_conditions_is_asked_about(engine: Played, hub: Hub) -> None:
    hub.licence = "gemma"
    conditions = "which has conditions of its own"
    async with window_in_process(capabilities=ASKS) as window:
        for window.choice in (None, "Cancel"):
            with pytest.raises(RpcError, match=conditions) as error:
                await window.command("fimls.pullModel", {"name": NAME})
            assert error.value.code == FAILED
        assert hub.asked("GET", FILE) == []
        text, answers = window.questions[-1]
        assert f"{NAME} comes under the licence gemma ({hub.endpoint}/org/repo)" in text
        assert answers == ["Accept the licence", "Cancel"]
        window.choice = "Accept"
        assert await window.command("fimls.pullModel", {"name": NAME})
        assert len(window.questions) == 3


@pytest.mark.asyncio
async def test_a_client_that_asks_itself_says_so(engine: Played, hub: Hub) -> None:
    hub.licence = "gemma"
    async with window_in_process() as window:  # it cannot be asked
        with pytest.raises(RpcError, match="--accept-licence 'gemma'"):
            await window.command("fimls.pullModel", {"name": NAME})
        accepted = {"name": NAME, "licenceAccepted": True}
        assert await window.command("fimls.pullModel", accepted)
        assert window.questions == []


@pytest.mark.asyncio
async def test_what_cannot_be_fetched_is_said(engine: Played, hub: Hub) -> None:
    async with window_in_process() as window:
        for name, message in {
            "org/none": "There is no model org/none",
            "qwen": "did you mean",
        }.items():
            with pytest.raises(RpcError, match=message) as error:
                await window.command("fimls.pullModel", {"name": name})
            assert error.value.code == FAILED
        assert window.shown == []


# ---- the doctor ----


@pytest.mark.slow
@pytest.mark.asyncio
async def test_the_real_doctor_has_a_page_and_what_it_measured_is_in_the_list(
    engine: Played, home: Home
) -> None:
    file = home.path / "notes.go"
    file.write_text("")
    async with window_in_process() as window:
        page = await window.command("fimls.doctor", {"textDocument": {"uri": file.as_uri()}})
        assert page["markdown"].startswith("# fimls doctor\n")
        assert "## This machine" in page["markdown"] and "bundled (chosen)" in page["markdown"]
        assert "and this file is go" in page["markdown"]
        rows = {row["name"]: row for row in await window.command("fimls.listModels")}
        assert rows[BEST]["suggestionMs"] > 0 and rows[BEST]["verdict"]


def program(folder: Path, code: str) -> str:
    path = folder / "doctor"
    path.write_text(f"#!{PYTHON}\n{code}")
    path.chmod(0o700)
    return str(path)


@pytest.mark.asyncio
async def test_the_doctor_is_asked_about_the_windows_settings_and_the_file(
    engine: Played, talkative_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "' '.join(sys.argv) + sys.stdin.read()"
    code = f"import json, sys; print(json.dumps({REPORT!r} | {{'markdown': {told}}}))"
    monkeypatch.setattr(measuring.sys, "executable", program(tmp_path, code))
    async with window_in_process({"model": str(talkative_folder)}) as window:
        page = (await window.command("fimls.doctor"))["markdown"]
        sent = json.dumps({"editor": {"model": str(talkative_folder)}, "workspace": None})
        assert page.endswith(" doctor --window --json --" + sent)
        document = {"textDocument": {"uri": "file:///a%20b.py"}}
        page = (await window.command("fimls.doctor", document))["markdown"]
        assert page.endswith(" --json -- /a b.py" + sent)
        rows = {row["name"]: row for row in await window.command("fimls.listModels")}
        assert rows[BEST]["suggestionMs"] == 250.0


@pytest.mark.asyncio
async def test_the_page_comes_also_where_nothing_can_be_kept(
    engine: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"import json; print(json.dumps({REPORT!r} | {{'markdown': 'all'}}))"
    monkeypatch.setattr(measuring.sys, "executable", program(tmp_path, code))
    async with window_in_process() as window:
        monkeypatch.setenv("FIMLS_STATE_DIR", "/dev/null")
        assert await window.command("fimls.doctor") == {"markdown": "all"}


@pytest.mark.asyncio
async def test_a_doctor_without_a_report_is_told(
    engine: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with window_in_process() as window:
        for code in ("print('[')", "print('[]')", "import os; os.abort()"):
            monkeypatch.setattr(measuring.sys, "executable", program(tmp_path, code))
            with pytest.raises(RpcError, match="Run `fimls doctor` in a terminal"):
                await window.command("fimls.doctor")


@pytest.mark.asyncio
async def test_a_cancelled_doctor_ends_with_all_that_it_started(
    engine: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    code = (
        "import os, time\n"
        f"if os.fork() == 0: open({str(pid)!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(300)"
    )
    monkeypatch.setattr(measuring.sys, "executable", program(tmp_path, code))
    async with window_in_process() as window:
        params = {"command": "fimls.doctor", "arguments": []}
        number, answer = window.send("workspace/executeCommand", params)
        await until(lambda: pid.exists() and pid.read_text())
        window.cancel(number)
        with pytest.raises(RpcError):
            await answer
        inner = Path("/proc") / pid.read_text() / "stat"
        await until(lambda: not inner.exists() or inner.read_text().split()[2] == "Z")


# ---- the note ----


@pytest.fixture
def offers(engine: Played, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The note comes at once; the doctor is a played one. How often it was called."""
    calls: list[str] = []

    async def run_doctor(*options: str) -> bytes:
        calls.append(options[0])
        return json.dumps(REPORT).encode()

    monkeypatch.setattr(note, "run_doctor", run_doctor)
    monkeypatch.setattr(note, "PAUSE_S", 0.0)
    monkeypatch.setattr(note, "READY_POLL_S", 0.01)
    return calls


async def is_quiet(window: Window) -> bool:
    """Whether nothing is asked within the time in which a note came."""
    await status(window)
    await asyncio.sleep(0.5)
    return not window.questions and not window.offers


@pytest.mark.asyncio
@pytest.mark.parametrize("answer", [None, "Not now", "Never"])
async def test_the_note_comes_once_and_never_after_a_no(
    offers: list[str], tmp_path: Path, answer: str | None
) -> None:
    async with window_in_process(capabilities=ASKS) as window:
        window.choice = answer
        await until(lambda: window.questions)
        text, answers = window.questions[0]
        assert f"The model {BEST} suits this machine" in text
        assert answers == [f"Get {BEST} (491 MB)", "Not now", "Never"]
    async with window_in_process(capabilities=ASKS) as window:
        assert await is_quiet(window)
    assert offers == ["--model=bundled"]  # measured once
    assert stored(tmp_path) is None
    long_ago = time.time() - 31 * 24 * 3600
    os.utime(tmp_path / "state" / "asked", (long_ago, long_ago))
    async with window_in_process(capabilities=ASKS) as window:
        if answer == "Not now":
            await until(lambda: window.questions)
        else:
            assert await is_quiet(window)


@pytest.mark.asyncio
async def test_a_note_without_an_answer_was_one_all_the_same(offers: list[str]) -> None:
    async with window_in_process(capabilities=ASKS) as window:
        window.choice = ...
        await until(lambda: window.questions)
    async with window_in_process(capabilities=ASKS) as window:
        assert await is_quiet(window)


def test_of_two_windows_one_asks() -> None:
    assert [note.claim(), note.claim()] == [True, False]


@pytest.mark.asyncio
async def test_a_note_that_could_not_be_shown_comes_again(
    offers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(note, "ask", broken)
        async with window_in_process(capabilities=ASKS) as window:
            await until(lambda: window.shown)
    async with window_in_process(capabilities=ASKS) as window:
        await until(lambda: window.questions)


@pytest.mark.asyncio
async def test_a_yes_fetches_and_chooses(
    offers: list[str], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REPORT, "recommendation", {"model": NAME})
    async with window_in_process(capabilities=ASKS) as window:
        window.choice = "Get"
        await until(lambda: stored(tmp_path) == {"model": NAME})
        await until(lambda: window.progress[-1] == "end")
        assert window.questions[0][1][0] == f"Get {NAME}"

        async def is_it() -> bool:
            return (await status(window))["model"] == NAME

        await until(is_it)
        assert window.shown == []


@pytest.mark.asyncio
async def test_a_yes_that_fails_is_told(
    offers: list[str], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REPORT, "recommendation", {"model": "org/none"})
    async with window_in_process(capabilities=ASKS) as window:
        window.choice = "Get"
        await until(lambda: window.shown)
        assert "There is no model org/none" in window.shown[0]
        assert (await status(window))["state"] == "ready"


@pytest.mark.asyncio
async def test_an_editor_may_take_the_offer_as_a_notification(offers: list[str]) -> None:
    capabilities = INLINE | {"experimental": {"fimls": {"offers": True}}}
    async with window_in_process(capabilities=capabilities) as window:
        await until(lambda: window.offers)
        assert window.offers == [{"name": BEST}]
    async with window_in_process(capabilities=capabilities) as window:
        assert await is_quiet(window)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "case", ["cannot ask", "chosen", "set", "no note", "off", "remote files", "nothing better"]
)
async def test_there_is_no_note(
    offers: list[str],
    case: str,
    tmp_path: Path,
    talkative_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings: dict[str, Any] = {}
    capabilities = ASKS
    more: dict[str, Any] = {}
    if case == "cannot ask":
        capabilities = INLINE
    elif case == "chosen":
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "settings.json").write_text('{"model": "bundled"}')
    elif case == "set":
        settings["model"] = str(talkative_folder)
    elif case == "no note":
        monkeypatch.setenv("FIMLS_NO_NOTE", "1")
    elif case == "off":
        settings["enabled"] = False
    elif case == "remote files":
        more["rootUri"] = "vscode-vfs://github/org/repo"
    else:
        monkeypatch.setitem(REPORT, "recommendation", None)
    for _ in range(2):
        async with window_in_process(settings, capabilities, **more) as window:
            assert await is_quiet(window)
    assert offers == (["--model=bundled"] if case == "nothing better" else [])


# ---- threads ----


@pytest.mark.asyncio
async def test_a_thread_that_never_ends_is_given_up() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        await in_daemon(lambda: time.sleep(5), 0.05)
    assert time.monotonic() - started < 4
    with pytest.raises(KeyError):
        await in_daemon(lambda: {}["a"])
    assert await in_daemon(lambda: 7) == 7
