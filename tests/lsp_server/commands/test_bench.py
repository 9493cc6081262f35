"""`fimls bench`: figures of the model that ships, and estimates for others from two figures of the
machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lsp_server.commands import bench
from lsp_server.commands.bench import SIZES, estimates, recommendation
from lsp_server.commands.cli import app
from tests.lsp_server.helpers import Home

MACHINE: dict[str, Any] = {
    "device": "cpu",
    "precision": "int8",
    "bytes_a_weight": 1,
    "read_bytes_per_s": 200e9,
    "operations_per_s": 3e12,
    "available_memory": 10 * 10**9,
}


def test_an_estimate_is_the_weights_read_once_a_step() -> None:
    found = {one.name: one for one in estimates(MACHINE)}
    assert found.keys() == SIZES.keys()
    small = found["StarCoder2 3B"]
    assert small.line_ms == pytest.approx(13 * 3.03e9 / 200e9 * 1000)
    assert small.file_ms == pytest.approx(2 * 3.03e9 * 2000 / 3e12 * 1000)
    assert small.memory_bytes == round(1.25 * 3.03e9)
    assert {name: one.verdict for name, one in found.items()} == {
        "Stable Code 3B": "while you type",
        "StarCoder2 3B": "while you type",
        "StarCoder2 7B": "at a pause",
        "StarCoder2 15B": "does not fit",
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "StarCoder2 3B should keep up"),
        ({"read_bytes_per_s": 50e9}, "StarCoder2 3B should answer at a pause"),
        ({"read_bytes_per_s": 5e9}, "none is fast enough"),
        ({"available_memory": 10**9}, "none is fast enough"),
        ({"read_bytes_per_s": 2e12, "available_memory": None}, "StarCoder2 15B should keep up"),
    ],
)
def test_the_recommendation_follows_from_the_estimates(change: dict[str, Any], words: str) -> None:
    assert words in recommendation(estimates(MACHINE | change))


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
    assert [one["name"] for one in found["estimates"]] == list(SIZES)
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
    assert "next keys" in run.stdout and "StarCoder2 7B" in run.stdout


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
