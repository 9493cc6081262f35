"""No secret in a prompt, in a suggestion, in the log or in "Why?": with an engine that a test
plays. It has idle time, as one on this machine has, and its prompts are text, as those for an
endpoint are."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fim.secrets.masking import MASK
from lsp_server.context import secret_files
from lsp_server.context.secret_files import is_secret_file
from tests.lsp_server.helpers import RpcError, Window, until, window_in_process
from tests.lsp_server.played import PATIENT, Played, settle
from tests.salt import FORMS, Salt, leaks

pytestmark = pytest.mark.asyncio


class Reader:
    """Opens a document and asks at its end."""

    def __init__(self, window: Window, uri: str, text: str, language: str) -> None:
        self.window, self.uri = window, uri
        line = text.count("\n")
        self.position = {"line": line, "character": len(text.rpartition("\n")[2])}
        window.open(text, uri, language)

    def look(self) -> None:
        at = {"textDocument": {"uri": self.uri}, "position": self.position}
        self.window.notify("textDocument/didFocus", at)

    def ask(self, *, invoked: bool = True) -> asyncio.Future[list[str]]:
        _, items = self.window.ask(**self.position, uri=self.uri, invoked=invoked)

        async def texts() -> list[str]:
            return [item["insertText"] for item in await items]

        return asyncio.ensure_future(texts())

    async def fill(self) -> Any:
        where = {"start": {"line": 0, "character": 0}, "end": self.position}
        at = {"textDocument": {"uri": self.uri}, "range": where, "kind": "selection"}
        return await self.window.request("fimls/fill", at)

    async def why(self) -> str:
        return str((await self.window.request("fimls/why", {}))["markdown"])


@contextlib.asynccontextmanager
async def reader_of(text: str, uri: str, language: str = "python") -> AsyncIterator[Reader]:
    async with window_in_process(PATIENT) as window:
        reader = Reader(window, uri, text, language)

        async def is_ready() -> bool:
            status = await window.request("fimls/status", {})
            return status["state"] in ("ready", "busy")

        await until(is_ready)
        yield reader


@pytest.mark.parametrize(
    ("uri", "language"),
    [
        ("file:///work/place/.env", "plaintext"),
        ("file:///work/place/%2Eenv.local", "plaintext"),
        ("file:///home/me/.aws/config", "ini"),
        ("untitled:/work/.netrc", "plaintext"),
        ("untitled:Untitled-1", "dotenv"),
        ("vscode-vfs://github/me/repository/id_ed25519", "plaintext"),
        ("git:/work/prod.tfvars?ref=HEAD", "terraform"),
    ],
)
async def test_the_engine_never_hears_of_a_secret_file(
    engine: Played, uri: str, language: str
) -> None:
    async with reader_of("DEBUG=1\nNAME=", uri, language) as reader:
        reader.look()
        assert await reader.ask() == []
        assert await reader.ask(invoked=False) == []
        with pytest.raises(RpcError, match="one of those that hold secrets"):
            await reader.fill()
        reader.look()
        await settle()
        assert engine.asked == []
        assert engine.prefilled == []
        assert "the name of this file is one of those that hold secrets" in await reader.why()


@pytest.mark.parametrize("form", FORMS)
async def test_no_prompt_holds_a_secret(engine: Played, form: str) -> None:
    salt = Salt(1)
    text = f"{FORMS[form](salt)}\n\ndef area(width, height):\n    return "
    async with reader_of(text, "file:///work/place/shop.py") as reader:
        reader.look()
        await until(lambda: engine.prefilled)
        items = reader.ask(invoked=False)
        assert await engine.answers(0, "width * height", items) == ["width * height"]
        prompts = [stream.request for stream in engine.asked] + engine.prefilled
        for request in prompts:
            assert "def area(width, height)" in str(request.prompt)
            assert leaks(salt.keys, str(request)) == []
        assert leaks(salt.keys, await reader.why()) == []


async def test_where_a_secret_is_being_typed_nothing_is_asked(engine: Played) -> None:
    async with reader_of(f'API_KEY = "{Salt(1).word(20)}', "file:///work/a.py") as reader:
        reader.look()
        assert await reader.ask(invoked=False) == []
        await settle()
        assert engine.asked == []
        assert engine.prefilled == []
        assert "what stands at the cursor looks like a key" in await reader.why()


async def test_what_is_left_of_a_secret_stays_secret(engine: Played) -> None:
    salt = Salt(6)
    text = f'API_KEY = "{salt.word()}"\nx = '
    async with reader_of(text, "file:///work/a.py") as reader:
        assert await engine.answers(0, "1", reader.ask()) == ["1"]
        middle = {"line": 0, "character": 25}
        reader.window.change(2, "\n", {"start": middle, "end": middle}, uri=reader.uri)
        reader.position["line"] += 1
        assert await engine.answers(1, "1", reader.ask()) == ["1"]
        assert leaks(salt.keys, str([stream.request for stream in engine.asked])) == []


@pytest.mark.parametrize("copied", [True, False], ids=["a mask", "a key"])
async def test_a_suggestion_with_a_secret_is_hidden(engine: Played, copied: bool) -> None:
    salt = Salt(2)
    text = f'API_KEY = "{salt.word()}"\nTOKEN = '
    answer = f'"{MASK * 20 if copied else salt.word()}"'
    async with reader_of(text, "file:///work/a.py") as reader:
        assert await engine.answers(0, answer, reader.ask(invoked=False)) == []
        why = await reader.why()
        assert "it has something that looks like a key" in why
        assert leaks(salt.keys, why) == []


async def test_the_log_holds_no_secret(engine: Played, caplog: pytest.LogCaptureFixture) -> None:
    salt = Salt(4)
    caplog.set_level("DEBUG", "lsp_server")
    async with reader_of(f"{FORMS['a string'](salt)}\nx = ", "file:///work/a.py") as reader:
        await engine.answers(0, f'"{salt.word()}"', reader.ask(invoked=False))
    said = [each.getMessage() for each in caplog.records if each.name.startswith("lsp_server")]
    assert said
    assert leaks(salt.keys, "".join(said)) == []


# ---- what the disk says ----


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in (".env", "notes.txt", "lib/a.py", "lib/deep/b.py", "private/c.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x = 1\n")
    (tmp_path / "innocent.py").symlink_to(".env")
    (tmp_path / "linked").symlink_to("private")
    (tmp_path / ".fimlsignore").write_text("/private/\n!.env\n")
    (tmp_path / "lib" / ".fimlsignore").write_text("deep/*.py\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("notes.txt", False),
        ("lib/a.py", False),
        (".env", True),  # no .fimlsignore takes it back
        ("innocent.py", True),
        ("private/c.py", True),
        ("linked/c.py", True),
        ("lib/deep/b.py", True),
        ("private/new.py", True),
        ("lib/new.py", False),
    ],
)
async def test_links_and_ignore_files(place: Path, name: str, secret: bool) -> None:
    assert is_secret_file(place / name) == secret


async def test_what_cannot_be_read_counts_as_secret(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    ignore = tmp_path / ".fimlsignore"
    assert not is_secret_file(file)
    os.mkfifo(ignore)
    assert is_secret_file(file)
    ignore.unlink()
    ignore.write_bytes(b"\xff\xfe")
    assert is_secret_file(file)
    ignore.unlink()
    ignore.symlink_to("/dev/zero")
    assert is_secret_file(file)
    ignore.unlink()
    (tmp_path / "b.py").symlink_to("b.py")
    assert is_secret_file(tmp_path / "b.py")
    assert not is_secret_file(file)


@pytest.mark.parametrize("name", ["innocent.py", "private/c.py"])
async def test_the_engine_never_hears_of_an_ignored_file(
    engine: Played, place: Path, name: str
) -> None:
    async with reader_of("x = ", (place / name).as_uri()) as reader:
        reader.look()
        assert await reader.ask(invoked=False) == []
        with pytest.raises(RpcError, match="names it"):
            await reader.fill()
        await settle()
        assert engine.asked == []
        assert engine.prefilled == []


async def test_a_new_ignore_file_counts_soon(
    engine: Played, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secret_files, "KEPT_S", 0.0)
    async with reader_of("x = ", (place / "notes.txt").as_uri()) as reader:
        assert await engine.answers(0, "1", reader.ask()) == ["1"]
        (place / ".fimlsignore").write_text("notes.*\n")
        assert await reader.ask() == []
        assert len(engine.asked) == 1


async def test_a_disk_that_does_not_answer_is_asked_once(
    engine: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = threading.Event()
    asked = []

    def wait(path: Path) -> bool:
        asked.append(path)
        hold.wait(30)
        return False

    monkeypatch.setattr(secret_files, "PATIENCE_S", 0.05)
    monkeypatch.setattr(secret_files, "is_secret_file", wait)
    async with reader_of("x = ", "file:///mnt/dead/a.py") as reader:
        assert await reader.ask() == []
        assert await reader.ask() == []
        assert len(asked) == 1
        assert engine.asked == []
        hold.set()
        await settle()
        assert await engine.answers(0, "1", reader.ask()) == ["1"]
