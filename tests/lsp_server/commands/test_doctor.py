"""`fimls doctor` finds what is wrong, each thing provoked for real in a home of the test's own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import socketserver
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from lsp_server import __version__
from lsp_server.commands import engine as engines
from lsp_server.commands.cli import app
from lsp_server.commands.doctor import examine as examining
from lsp_server.commands.doctor.examine import Report, examine
from lsp_server.commands.doctor.machine import measure_machine
from lsp_server.commands.errors import CommandError
from lsp_server.engines.interface import CompletionRequest, EngineState, Piece
from lsp_server.session.layers import SettingsLayers
from lsp_server.settings import Settings, parse
from model.engine.options import EngineOptions
from model.weights.files import BUNDLED
from tests.lsp_server.helpers import Home
from tests.lsp_server.played import Played

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


def test_folders_of_another_user_are_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks is now another one than the owner of all folders."""
    for folder in ("cache", "state", "log", "run", "data"):
        (home.path / folder).mkdir(mode=0o700)
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    report = examine(settings())
    monkeypatch.undo()
    lines = [line for line in told(report) if "folder" in line]
    for name, line in zip(("cache", "state", "log", "runtime", "data"), lines, strict=True):
        assert line == (
            f"The {name} folder belongs to another user. "
            f"Set FIMLS_{name.upper()}_DIR to a folder of your own."
        )


class Answers(BaseHTTPRequestHandler):
    """One engine's side of the socket."""

    status: ClassVar[bytes] = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(self.status)))
        self.end_headers()
        self.wfile.write(self.status)

    def address_string(self) -> str:
        return "a socket"

    def log_message(self, *args: object) -> None: ...


@contextlib.contextmanager
def engine_that_says(home: Home, status: object) -> Iterator[None]:
    home.runtime.mkdir(mode=0o700)
    answers = type("These", (Answers,), {"status": json.dumps(status).encode()})
    with socketserver.UnixStreamServer(str(home.runtime / "0123456789ab.sock"), answers) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


READY = {
    "model": "bundled",
    "pid": 4711,
    "version": __version__,
    "state": "ready",
    "device": "cpu",
    "dtype": "int8",
    "prefill_per_s": 1234.5,
}


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        ({}, "fine", ["for bundled (process 4711) is ready: cpu int8; it reads 1,234 tokens/s"]),
        ({"prefill_per_s": None}, "fine", ["is ready: cpu int8."]),
        ({"version": "0.0.1"}, "wrong", ["is of version 0.0.1", f"{__version__}", "engine stop"]),
        ({"version": "0 | <b>"}, "wrong", ["is of version 0b,"]),
        ({"version": None}, "wrong", ["is of version None"]),
        ({"state": "loading"}, "note", ["is loading."]),
        ({"state": "failed", "message": "No room."}, "wrong", ["has failed: No room."]),
    ],
)
def test_what_an_engine_says_of_itself_is_told(
    status: dict[str, object], kind: str, words: list[str], home: Home
) -> None:
    with engine_that_says(home, READY | status):
        lines = told(examine(settings()), kind)
    assert any(all(word in line for word in words) for line in lines), lines


def test_a_program_that_is_no_engine_is_told(home: Home) -> None:
    with engine_that_says(home, ["no engine"]):
        (line,) = told(examine(settings()))
    assert "Nobody answers on the socket" in line


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


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], None]:
    """Has an engine answer with a text, whose tokens have this log-probability."""

    def answer(text: str, logprob: float) -> None:
        class Answering(Played):
            async def complete(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
                yield Piece(text, (logprob,))

        monkeypatch.setattr(engines, "make_engine", lambda settings: Answering())

    return answer


@pytest.mark.parametrize(
    ("text", "logprob", "setting", "kind", "words"),
    [
        ("return a + b", -0.1, {}, "fine", ["There is a suggestion at line 2, column 5."]),
        (
            "return a + b",
            -3.0,
            {"minConfidence": 0.5},
            "note",
            [
                "line 2, column 5: cut where the model became less sure",
                "(0.05 of 0.5)",
                "Lower fimls.minConfidence",
            ],
        ),
        ("  \n", -0.1, {}, "note", ["line 2, column 5: ", "hidden: nothing but", "Type a few"]),
    ],
)
def test_why_no_suggestion_comes_at_a_place(
    text: str,
    logprob: float,
    setting: dict[str, object],
    kind: str,
    words: list[str],
    tmp_path: Path,
    answered: Callable[[str, float], None],
) -> None:
    file = tmp_path / "sum.py"
    file.write_text("def add(a, b):\n    \n")
    answered(text, logprob)
    report = examine(settings(**setting), f"{file}:2:5")
    assert report.is_well
    assert any(all(word in line for word in words) for line in told(report, kind))
    assert "# Why this suggestion?" in report.page and "def add(a, b):" in report.page
    assert report.page.strip() in report.to_markdown()


@pytest.mark.parametrize(
    ("place", "setting", "fault"),
    [
        ("9:1", {}, "line 9 is beyond the end"),
        ("2:9", {}, "column 9 is beyond the end of line 2"),
        ("0:1", {}, "is not FILE:LINE:COL with line and column counted from 1"),
        ("2", {}, "is not FILE:LINE:COL"),
        ("2:5", {"enabled": False}, "Suggestions are switched off"),
        ("2:5", {"disabledLanguages": ["python"]}, "Suggestions are off for python"),
    ],
)
def test_a_place_where_nothing_can_be_asked_is_told(
    place: str,
    setting: dict[str, object],
    fault: str,
    tmp_path: Path,
    answered: Callable[[str, float], None],
) -> None:
    file = tmp_path / "sum.py"
    file.write_text("def add(a, b):\n    \n")
    answered("return a + b", -0.1)
    report = examine(settings(**setting), f"{file}:{place}")
    (line,) = told(report)
    assert fault in line and ".." not in line
    assert report.page == "" and not any("There is a suggestion" in x for x in told(report, "fine"))


def test_an_engine_that_does_not_come_up_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Played()
    failed.state = EngineState("failed", message="The engine ended with status 1.")
    monkeypatch.setattr(engines, "make_engine", lambda settings: failed)
    (tmp_path / "a.py").write_text("a = \n")
    (line,) = told(examine(settings(), f"{tmp_path / 'a.py'}:1:5"))
    assert line == "No suggestion could be asked for: The engine ended with status 1."


@pytest.mark.slow
def test_the_real_engine_tells_why_at_a_place(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def add(a, b):\n    \n\n\nprint(add(1, 2))\n")
    report = examine(settings(), f"{tmp_path / 'a.py'}:2:5")
    assert report.is_well
    assert any("line 2, column 5" in line for line in told(report, "fine") + told(report, "note"))
    assert "tokens written" in report.page


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


def test_the_settings_of_a_window_are_those_of_its_editor(tmp_path: Path) -> None:
    """As the server sends them, and a workspace's own ones without what it may not set."""
    layers = SettingsLayers()
    layers.take({"disabledLanguages": ["go"], "engine": {"threads": 2}}, trusted=True)
    layers.take({"maxTokens": 7, "engine": {"threads": 3}}, trusted=False)
    again, problems = SettingsLayers.from_json(layers.to_json())
    assert again.settings == layers.settings
    assert again.settings.disabled_languages == ("go",)
    assert (again.settings.max_tokens, again.settings.engine.threads) == (7, 2)
    assert len(problems) == 1 and "threads" in problems[0]
