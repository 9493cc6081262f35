"""Commands keep to the rules for secrets, too."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from lsp_server.commands.cli import expected_errors
from lsp_server.commands.complete import document_at, snapshot_at
from lsp_server.commands.source_files import read_source
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
    path = tmp_path / "a\x1b]0;owned\x07\u202e.py"
    with pytest.raises(typer.Exit), expected_errors():
        read_source(path)
    said = capsys.readouterr().err
    assert "a\\x1b]0;owned\\x07\\u202e.py" in said
    assert said.removesuffix("\n").isprintable()
