"""Commands keep to the rules for secrets, too, and print odd names so that they do no harm."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import typer

from lsp_server.commands.cli import expected_errors
from lsp_server.commands.complete import document_at, snapshot_at
from lsp_server.commands.evaluation import evaluate
from lsp_server.commands.evaluation.contestants import Plan, line_up
from lsp_server.commands.evaluation.rows import Row
from lsp_server.commands.source_files import read_packages, read_source
from lsp_server.completion.query import query_at
from lsp_server.session.prompter import Prompter
from lsp_server.settings import RemoteSettings, Settings


@pytest.mark.parametrize("name", [".env", "linked.py", "ignored.py"])
def test_a_secret_file_makes_no_prompt(tmp_path: Path, name: str) -> None:
    (tmp_path / ".env").write_text("NAME=")
    (tmp_path / "ignored.py").write_text("x = ")
    (tmp_path / "linked.py").symlink_to(".env")
    (tmp_path / ".fimlsignore").write_text("ignored.*")
    settings = Settings(remote=RemoteSettings("http://engine", format="starcoder2"))
    path = tmp_path / name
    snapshot = snapshot_at(document_at(path, 0, 4), path, 0, 4)
    query = query_at(snapshot, name, Prompter.for_settings(settings), settings, "cli")
    assert query.withheld == "secret file"
    assert "NAME" not in str(query.request)
    assert "x = " not in str(query.request)


def test_a_message_about_an_odd_name_is_safe_for_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a\x1b]0;owned\x07\u202e\nfimls: b.py"
    with pytest.raises(typer.Exit), expected_errors():
        read_source(path)
    said = capsys.readouterr().err
    assert "a\\x1b]0;owned\\x07\\u202e\\nfimls: b.py" in said
    assert said.removesuffix("\n").isprintable()


ODD = ("esc\x1b[2J", "new\nline", "turned\u202e", "half\udcff", "\u6f22\U0001f600")


@pytest.mark.asyncio
async def test_packages_of_odd_names_are_printed_as_json_of_ascii(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a character in a file's name ended `fimls eval --json` with a traceback where the
    locale is strict, and U+202E reached the terminal."""

    async def no_rows(*_: object) -> AsyncGenerator[Row]:
        for row in ():
            yield row

    for name in ODD:
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.py").write_text("x = 1\n")
    monkeypatch.setattr(evaluate, "evaluate", no_rows)
    packages = read_packages(tmp_path)
    assert set(packages) == set(ODD)
    contestants = line_up({"": Settings()}, Plan(layouts=["psm"]))
    for as_json in (True, False):
        await evaluate.print_samples(
            packages, contestants, Plan(), [], verbose=False, as_json=as_json
        )
        said = capsys.readouterr().out
        assert all(line.isascii() and line.isprintable() for line in said.splitlines())
        assert not as_json or json.loads(said)["packages"] == sorted(ODD)
