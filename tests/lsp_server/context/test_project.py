"""Pieces of other files in prompts: what is shown, and what never is. With an engine that a test
plays; its prompts are text."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lsp_server.context import project
from lsp_server.context.project_files import ProjectFiles
from tests.lsp_server.helpers import Window, until, window_in_process
from tests.lsp_server.played import PATIENT, Played
from tests.salt import FORMS, Salt, leaks

pytestmark = pytest.mark.asyncio
SHOP = '''"""A shop."""


class Basket:
    def add_article(self, number: int, amount: int = 1) -> None:
        self.articles[number] = amount

    def total_price(self) -> float:
        return sum(self.articles.values())


def open_shop(name: str) -> Basket:
    return Basket()
'''
MAIN = """from shop import open_shop

basket = open_shop("corner")
basket.add_"""
SIGNATURE = "def add_article(self, number: int, amount: int = 1) -> None: ..."


class Reader:
    """A window on a workspace, with one document at whose end it asks."""

    def __init__(self, window: Window, engine: Played, path: Path, text: str) -> None:
        self.window, self.engine, self.uri, self.text = window, engine, path.as_uri(), text
        window.open(text, self.uri)

    async def prompt(self, more: str = "") -> str:
        """Types so much and asks; the prompt that the engine gets."""
        self.text += more
        if more:
            self.window.change(len(self.text), self.text, uri=self.uri)
        count = len(self.engine.asked)
        line = self.text.count("\n")
        column = len(self.text.rpartition("\n")[2])
        _, items = self.window.ask(line, column, uri=self.uri)
        stream = await self.engine.stream(count)
        stream.finish("x")
        await items
        return str(stream.request.prompt)

    async def prompt_with_snippets(self, pause_s: float = 0.05) -> str:
        """Asks at one new line after another until there are some."""
        for _ in range(40):
            if "<file_sep>" in (prompt := await self.prompt("\nbasket.add_")):
                return prompt
            await asyncio.sleep(pause_s)  # a key ends a search
        raise AssertionError("there are no snippets")

    async def why(self) -> str:
        return str((await self.window.request("fimls/why", {}))["markdown"])


@contextlib.asynccontextmanager
async def reader_in(
    folder: Path, engine: Played, text: str = MAIN, name: str = "main.py", **settings: object
) -> AsyncIterator[Reader]:
    settings = PATIENT | {"projectContext": "on"} | settings
    async with window_in_process(settings, rootUri=folder.as_uri()) as window:
        reader = Reader(window, engine, folder / name, text)

        async def is_ready() -> bool:
            return (await window.request("fimls/status", {}))["state"] in ("ready", "busy")

        await until(is_ready)
        yield reader


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAUSE_S", "QUIET_S", "AGAIN_S"):
        monkeypatch.setattr(project, name, 0.0)


async def test_an_imported_file_is_shown_by_its_signatures(engine: Played, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    async with reader_in(tmp_path, engine) as reader:
        assert "<file_sep>" not in await reader.prompt()  # the first one does not wait
        prompt = await reader.prompt_with_snippets()
        assert f"<repo_name>{tmp_path.name}<file_sep>shop.py\nclass Basket:\n" in prompt
        assert SIGNATURE in prompt
        assert "<fim_middle>main.py\n" in prompt
        assert "self.articles[number]" not in prompt
        assert re.search(r"` shop.py `: imported, score \d", await reader.why())


async def test_an_open_document_counts_as_it_is_in_the_editor(
    engine: Played, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    async with reader_in(tmp_path, engine) as reader:
        renamed = SHOP.replace("add_article", "add_many")
        reader.window.open(renamed, (tmp_path / "shop.py").as_uri())
        prompt = await reader.prompt_with_snippets()
        assert "def add_many(" in prompt
        assert "add_article" not in prompt
        assert "imported, and open" in await reader.why()


async def test_cells_of_a_notebook_know_each_other(engine: Played, tmp_path: Path) -> None:
    cell = f"vscode-notebook-cell:{tmp_path}/book.ipynb#"
    async with reader_in(tmp_path, engine, "rows = load_ro") as reader:
        reader.window.open("def load_rows(path):\n    return []\n", cell + "a1")
        reader.window.open("def load_others():\n    pass\n", f"{cell[:-7]}x.ipynb#a1")
        reader.uri = cell + "a2"
        reader.window.open(reader.text, reader.uri)
        prompt = await reader.prompt_with_snippets()
        assert "def load_rows(path):" in prompt
        assert "load_others" not in prompt


@pytest.mark.parametrize("settings", [{"projectContext": "off"}, {"projectContext": "auto"}])
async def test_switched_off_or_for_a_model_elsewhere_there_is_none(
    engine: Played, tmp_path: Path, settings: dict[str, str]
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    async with reader_in(tmp_path, engine, **settings) as reader:
        for _ in range(4):
            assert "<file_sep>" not in await reader.prompt("\nbasket.add_")
            await asyncio.sleep(0.05)
        assert "Nothing: only this file was read." in await reader.why()


async def test_what_is_shown_stays_while_a_line_is_typed(
    engine: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project, "QUIET_S", 60.0)
    (tmp_path / "shop.py").write_text(SHOP)
    async with reader_in(tmp_path, engine) as reader:
        before = (await reader.prompt_with_snippets()).partition("<fim_prefix>")[0]
        (tmp_path / "shop.py").write_text(SHOP.replace("add_article", "add_much_more_of_it"))
        for key in "article(total_price":
            assert (await reader.prompt(key)).startswith(before)
            await asyncio.sleep(0.005)


async def test_a_disk_that_does_not_answer_holds_nobody_up(
    engine: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project, "PATIENCE_S", 0.05)
    dead = threading.Event()
    monkeypatch.setattr(ProjectFiles, "relative", lambda self, path: dead.wait(5) and None)
    async with reader_in(tmp_path, engine) as reader:
        for _ in range(5):
            assert "<file_sep>" not in await reader.prompt("\nbasket.add_")
            await asyncio.sleep(0.05)
        alive = [each for each in threading.enumerate() if each.name == "fimls-files"]
        assert len(alive) == 1  # and it is asked once
    dead.set()


# ---- what is never shown ----

HIDDEN = {
    "a link out of the workspace": lambda top, root: link(top / "else.py", root / "shop.py"),
    "a link to a folder outside": lambda top, root: link(top, root / "inner"),
    "a name of .gitignore": lambda top, root: ignore(root, ".gitignore", "sh*.py"),
    "a folder of .gitignore": lambda top, root: ignore(root, ".gitignore", "part/"),
    "a name of .fimlsignore": lambda top, root: ignore(root, ".fimlsignore", "shop.py"),
    "a .gitignore above": lambda top, root: ignore(top, ".gitignore", "shop.py"),
    "a .fimlsignore above what is no repository": lambda top, root: (
        (top / ".git").rmdir(),
        ignore(top, ".fimlsignore", "shop.py"),
    ),
    "a .gitignore that is a FIFO": lambda top, root: os.mkfifo(root / ".gitignore"),
    "a FIFO": lambda top, root: os.mkfifo(root / "shop.py"),
    "a file of 100 MB": lambda top, root: large(root / "shop.py"),
    "a hidden folder": lambda top, root: None,
    "a secret name": lambda top, root: None,
}


def link(to: Path, at: Path) -> None:
    at.symlink_to(to)


def ignore(folder: Path, name: str, rule: str) -> None:
    (folder / name).write_text(f"{rule}\n" + "*a" * 40 + "*b\n")


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.write(SHOP.encode())
        file.truncate(100 * 2**20)


def hide(top: Path, kind: str) -> tuple[Path, Path]:
    """The workspace, and a file in it that is not to be shown."""
    (top / ".git").mkdir()
    (top / "else.py").write_text(SHOP)
    root = top / "work"
    places = {"a folder of .gitignore": "part", "a hidden folder": ".x", "a secret name": ".aws"}
    folder = root / places.get(kind, "")
    folder.mkdir(parents=True)
    HIDDEN[kind](top, root)
    if "folder outside" not in kind and not os.path.lexists(folder / "shop.py"):
        (folder / "shop.py").write_text(SHOP)
    if kind != "a .gitignore that is a FIFO":
        (root / "other.py").write_text("def add_nothing():\n    pass\n")
    return root, folder / "shop.py"


@pytest.mark.parametrize("kind", HIDDEN)
async def test_what_is_not_to_be_read_is_not_read(tmp_path: Path, kind: str) -> None:
    root, hidden = hide(tmp_path, kind)
    files = ProjectFiles(root)
    names = [part.name for _, parts in files.read(files.paths("python")) for part in parts]
    assert names == ([] if kind == "a .gitignore that is a FIFO" else ["add_nothing"])
    path = files.relative(hidden)
    if all(word not in kind for word in ("hidden", "FIFO", "MB", "link")):
        assert path is not None
        assert not files.may_show(path)  # nor where it is open
    if kind == "a link out of the workspace":
        assert path is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", HIDDEN)
async def test_what_is_not_to_be_read_is_never_shown(
    engine: Played, tmp_path: Path, kind: str
) -> None:
    root, opened = hide(tmp_path, kind)
    async with reader_in(root, engine) as reader:
        if opened.is_file() and opened.stat().st_size < 10_000 and "hidden" not in kind:
            reader.window.open(SHOP, opened.as_uri())  # nor where it is open
        prompts = []
        for _ in range(6):
            prompts.append(await reader.prompt("\nbasket.add_"))
            await asyncio.sleep(0.05)
        assert "add_article" not in "".join(prompts)
        assert ("add_nothing" in prompts[-1]) == (kind != "a .gitignore that is a FIFO")


async def test_no_secret_of_another_file_is_shown(engine: Played, tmp_path: Path) -> None:
    salt = Salt(3)
    for number, form in enumerate(FORMS.values()):
        inner = f"def add_more_{number}(a):\n    pass\n\n\n{form(salt)}\n"
        (tmp_path / f"shop_{number}.py").write_text(f"{form(salt)}\n\n\n{inner}")
    imports = "".join(f"from shop_{n} import add_more_{n}\n" for n in range(len(FORMS)))
    async with reader_in(tmp_path, engine, imports) as reader:
        prompts = [await reader.prompt_with_snippets(0.5)]
        assert prompts[0].count("def add_more_") > 5
        assert leaks(salt.keys, prompts[0]) == []
        assert leaks(salt.keys, await reader.why()) == []
