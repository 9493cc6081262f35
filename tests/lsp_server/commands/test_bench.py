"""`fimls bench`: figures of the model that ships, and estimates for others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lsp_server.commands import bench
from lsp_server.commands.cli import app
from tests.lsp_server.helpers import Home


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"JUMPS": 2, "KEYS": 3, "PREFILL_S": 0.05, "REPEATS": 1}.items():
        monkeypatch.setattr(bench, name, value)


@pytest.mark.slow
def test_the_shipped_model_is_measured(home: Home, short: None) -> None:
    run = CliRunner().invoke(app, ["bench", "--json"])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    measured = found["measured"]
    assert measured["model"] == "bundled" and measured["keys"] == 6
    assert measured["prefill_per_s"] > 0 and measured["key_ms"] > 0 and measured["decode_per_s"] > 0
    assert [one["name"] for one in found["estimates"]] == [
        one["name"] for one in sorted(found["estimates"], key=lambda one: one["parameters"])
    ]
    assert found["probe"]["read_bytes_per_s"] > 0 and found["recommendation"]


@pytest.mark.slow
def test_the_table_can_be_read(home: Home, short: None, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "".join(
            f"def method_{n}(self, value):\n    return self.total_{n} + value\n" for n in range(30)
        )
    )
    run = CliRunner().invoke(app, ["bench", str(file)])
    assert run.exit_code == 0, run.output
    assert f"bundled, measured in {file}" in run.stdout and "An estimate." in run.stdout
    assert "next keys" in run.stdout and "starcoder2-7b" in run.stdout


def test_what_cannot_be_measured_is_refused(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.py").write_text("")
    empty = CliRunner().invoke(app, ["bench", str(tmp_path / "empty.py")])
    assert (empty.exit_code, empty.stdout) == (
        2,
        "",
    ) and "there are no lines of code" in empty.stderr
    assert home.engines() == []
    missing = CliRunner().invoke(app, ["bench", str(tmp_path / "no.py")])
    assert (missing.exit_code, missing.stdout) == (2, "") and "there is no file" in missing.stderr
    monkeypatch.setenv("FIMLS_REMOTE_URL", "http://127.0.0.1:1")
    remote = CliRunner().invoke(app, ["bench"])
    assert remote.exit_code == 2 and "remote.url" in remote.stderr
