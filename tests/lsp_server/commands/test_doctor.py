"""`fimls doctor` finds what is wrong, each thing provoked for real in a home of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lsp_server.commands.cli import app
from lsp_server.commands.doctor import examine as examining
from lsp_server.commands.doctor.examine import Report, examine
from lsp_server.commands.doctor.machine import measure_machine
from lsp_server.commands.errors import CommandError
from lsp_server.settings import Settings, parse
from model.engine.options import EngineOptions
from model.weights.files import BUNDLED
from tests.lsp_server.helpers import Home

FIGURES: dict[str, Any] = {
    "device": "cpu",
    "processor": "x86_64 avx2",
    "threads": 2,
    "torch": "2.9",
    "precision": "int8",
    "bytes_a_weight": 1,
    "read_bytes_per_s": 30e9,
    "operations_per_s": 1e12,
    "float_operations_per_s": 1e11,
    "available_memory": 10 * 10**9,
}


@pytest.fixture(autouse=True)
def quick(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of the test's own, and a machine that need not be measured again."""
    monkeypatch.setenv("FIMLS_DATA_DIR", str(home.path / "data"))
    monkeypatch.setattr(examining, "measure_machine", lambda options: dict(FIGURES))


def settings(**values: object) -> Settings:
    found, problems = parse(values)
    assert not problems
    return found


def told(report: Report, kind: str = "wrong") -> list[str]:
    return [str(finding) for finding in report.findings if finding.kind == kind]


def test_a_healthy_home_is_well_and_gets_a_recommendation(home: Home) -> None:
    report = examine(settings())
    assert told(report) == [] and report.is_well
    assert report.recommendation is not None
    assert report.recommendation.model == "qwen2.5-coder-0.5b"
    page = report.to_markdown()
    for words in ("`fimls pull qwen2.5-coder-0.5b`", "bundled (chosen)", "30.0 GB/s", "avx2"):
        assert words in page
    assert "## Wrong" not in page
    assert json.loads(json.dumps(report.to_json()))["well"] is True


def open_cache(home: Home) -> None:
    (home.path / "cache").mkdir()
    (home.path / "cache").chmod(0o777)


def file_for_cache(home: Home) -> None:
    (home.path / "cache").write_text("")


def file_for_runtime(home: Home) -> None:
    home.runtime.write_text("")


def dead_socket(home: Home) -> None:
    home.runtime.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home.runtime / "0123456789ab.sock"))


FAULTS: list[tuple[Callable[[Home], None], str, str]] = [
    (open_cache, "cache folder", "chmod 700"),
    (file_for_cache, "cache folder cannot be written", "FIMLS_CACHE_DIR"),
    (file_for_runtime, "runtime folder cannot be written", "FIMLS_RUNTIME_DIR"),
    (dead_socket, "Nobody answers on the socket", "rm '"),
]


@pytest.mark.parametrize(("provoke", "fault", "mend"), FAULTS)
def test_a_fault_of_the_home_is_named_with_its_mend(
    provoke: Callable[[Home], None], fault: str, mend: str, home: Home
) -> None:
    provoke(home)
    report = examine(settings())
    (line,) = told(report)
    assert fault in line and mend in line
    assert not report.is_well and f"- {line}" in report.to_markdown()


def test_a_full_disk_is_told_before_the_cache_fills_it() -> None:
    (line,) = told(examine(settings(engine={"cacheDisk": 2**20})))
    assert "of the disk are free" in line and "fimls.engine.cacheDisk" in line


def test_a_model_that_is_missing_or_damaged_is_told(tmp_path: Path) -> None:
    (line,) = told(examine(settings(model=str(tmp_path / "nothing"))))
    assert "nothing" in line
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{")
    (line,) = told(examine(settings(model=str(damaged))))
    assert "cannot be read" in line and "Download" in line


def test_a_model_without_fim_is_told_and_gets_no_estimate(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(BUNDLED, plain)
    tokenizer = plain / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<fim_", "<no_"))
    report = examine(settings(model=str(plain)))
    (line,) = told(report)
    assert "sentinels of no FIM format" in line and "qwen2.5-coder-0.5b" in line
    assert report.chosen is None and "(chosen)" not in report.to_markdown()


def test_a_model_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    small = FIGURES | {"available_memory": 10**6}
    monkeypatch.setattr(examining, "measure_machine", lambda options: dict(small))
    report = examine(settings())
    (line,) = told(report)
    assert "0.0 GB of memory are free" in line and "smaller model" in line
    assert report.recommendation is None


@pytest.mark.parametrize(
    ("requirement", "fault"),
    [
        ("surely-not-installed>=1", "surely-not-installed is not installed"),
        ("tokenizers>=999", "but fimls needs >=999"),
        ("surely-not-installed; extra == 'hf'", None),
    ],
)
def test_a_package_that_is_missing_or_old_is_told(
    requirement: str, fault: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "fimls-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: fimls\nVersion: 0\nRequires-Dist: {requirement}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = told(examine(settings()))
    assert len(lines) == (fault is not None)
    if fault is not None:
        assert fault in lines[0] and "Install fimls again" in lines[0]


def test_why_no_suggestion_comes_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.zig"
    file.write_text("const a = 1;\n")
    off = examine(settings(enabled=False, disabledLanguages=["zig"]), str(file))
    assert ["switched off" in told(off)[0], "Suggestions are off for zig" in told(off)[1]] == [
        True,
        True,
    ]
    untrained = examine(settings(), str(file))
    assert untrained.is_well
    assert any("was trained on" in line and "zig" in line for line in told(untrained, "note"))
    (missing,) = told(examine(settings(), str(tmp_path / "no.py")))
    assert "There is no file" in missing
    (tmp_path / "binary.py").write_bytes(b"\x7fELF\x00")
    (binary,) = told(examine(settings(), str(tmp_path / "binary.py")))
    assert "binary file" in binary


def test_the_command_says_by_its_status_whether_all_is_well(tmp_path: Path) -> None:
    well = CliRunner().invoke(app, ["doctor", "--json"])
    assert well.exit_code == 0 and json.loads(well.stdout)["well"] is True
    ill = CliRunner().invoke(app, ["doctor", "--model", str(tmp_path / "nothing")])
    assert ill.exit_code == 1 and "## Wrong" in ill.stdout


def test_a_bad_setting_is_among_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIMLS_MAX_TOKENS", "many")
    run = CliRunner().invoke(app, ["doctor"])
    assert run.exit_code == 1 and "fimls.maxTokens is" in run.stdout


def test_a_probe_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(CommandError, match=r"no torch here.*install fimls again"):
        measure_machine(EngineOptions())
