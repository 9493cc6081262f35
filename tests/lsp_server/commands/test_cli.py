"""`fimls complete` and `fimls engine` as a user runs them: one clear line and exit code 2 for
each mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

TIMEOUT_S = 120


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Folders of the test's own; a short path, because a socket's has to be."""
    folder = tempfile.mkdtemp(dir="/tmp")
    folders = {"RUNTIME": "run", "LOG": "log", "STATE": "state"}
    env = os.environ | {f"FIMLS_{name}_DIR": f"{folder}/{at}" for name, at in folders.items()}
    yield env
    fimls(env, "engine", "stop")
    shutil.rmtree(folder)


def fimls(
    env: dict[str, str], *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lsp_server", *arguments],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


BAD_FILES: dict[str, bytes | None] = {
    "missing.py": None,
    "three.py": b"a = 1\nb = 2\nc = 3\n",
    "binary.py": b"\x7fELF\x00\x00\x01",
    "latin.py": "name = 'é'".encode("latin-1"),
}
BAD_PLACES = [
    ("missing.py:1:1", "there is no file", "check the path"),
    (".:1:1", "not a file", "name a source file"),
    ("three.py", "is not FILE:LINE:COL", "counted from 1"),
    ("three.py:0:1", "is not FILE:LINE:COL", "counted from 1"),
    ("three.py:5:1", "line 5 is beyond the end", "4 lines"),
    ("three.py:1:7", "column 7 is beyond the end of line 1", "5 characters"),
    ("binary.py:1:1", "binary file", "name a text file"),
    ("latin.py:1:1", "not UTF-8 (byte 8)", "convert it"),
]


@pytest.mark.parametrize(("place", "problem", "remedy"), BAD_PLACES)
def test_a_bad_place_is_one_clear_line(
    place: str, problem: str, remedy: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    for name, content in BAD_FILES.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    done = fimls(environment, "complete", place, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr and remedy in done.stderr
    assert done.stderr.startswith("fimls: ") and done.stderr.count("\n") == 1


BAD_MODELS = [
    ({}, "is empty", "Download"),
    ({"config.json": "{"}, "cannot be read", "Download"),
    ({"config.json": '{"model_type": "gpt2"}'}, "tokenizer.json is missing", "Use a model"),
    ({"config.json": '{"model_type": "starcoder2", "auto_map": {}}'}, "auto_map", "native"),
    (
        {"config.json": '{"model_type": "starcoder2"}'},
        "tokenizer.json is missing",
        "Use a model folder",
    ),
]


@pytest.mark.parametrize(("files", "problem", "remedy"), BAD_MODELS)
def test_a_bad_model_folder_is_one_clear_line(
    files: dict[str, str], problem: str, remedy: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name, content in files.items():
        (model / name).write_text(content)
    (tmp_path / "a.py").write_text("x = ")
    done = fimls(environment, "complete", "a.py:1:5", "--model", str(model), cwd=tmp_path)
    assert done.returncode == 2
    assert problem in done.stderr and remedy in done.stderr
    assert done.stderr.startswith("fimls: ") and done.stderr.count("\n") == 1


def test_truncated_weights_are_reported_by_the_engine(
    starcoder2_folder: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    model = shutil.copytree(starcoder2_folder, tmp_path / "model")
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (tmp_path / "a.py").write_text("x = ")
    done = fimls(environment, "complete", "a.py:1:5", "--model", str(model), cwd=tmp_path)
    assert done.returncode == 2
    assert (
        "model.safetensors" in done.stderr
        and "Download it again" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_a_completion_as_json(
    talkative_folder: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    text = "# 😀é\nx = \n"
    (tmp_path / "a.py").write_text(text)
    environment = environment | {
        "FIMLS_TEMPERATURE": "1"
    }  # at 0 it may go round in loops, which are hidden
    done = fimls(
        environment,
        "complete",
        "a.py:2:5",
        "--model",
        str(talkative_folder),
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert set(answer) == {"text", "range", "attribution", "model", "timings"}
    assert answer["range"]["start"] == {"line": 2, "column": 5}
    assert answer["text"].isalpha() and answer["text"].islower()
    assert answer["timings"]["prompt_tokens"] > len("x = ") and answer["timings"]["total_ms"] > 0


@pytest.mark.parametrize(
    "text",
    ["", "\ufeff", "x" * 2_000_000, "é" * 3 + "\f\u2028\r", "pass\n" * 1_000_000],
    ids=[
        "empty",
        "byte order mark",
        "a line of two million characters",
        "odd line ends",
        "a million lines",
    ],
)
def test_any_text_file_gets_an_answer(
    text: str, talkative_folder: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "a.py").write_text(text, newline="")
    done = fimls(
        environment,
        "complete",
        "a.py:1:1",
        "--model",
        str(talkative_folder),
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["range"]["start"] == {"line": 1, "column": 1}


def test_engine_start_status_stop(talkative_folder: Path, environment: dict[str, str]) -> None:
    assert fimls(environment, "engine", "start", "--model", str(talkative_folder)).returncode == 0
    found = json.loads(fimls(environment, "engine", "status", "--json").stdout)
    assert [s["state"] for s in found if s["model"] == str(talkative_folder)] == ["ready"]
    assert found[0]["packages"] == ["torch"]  # and never transformers, accelerate or bitsandbytes
    shown = fimls(environment, "engine", "status").stdout
    assert "ready" in shown and "  weights: int8, which need 0.0 GB of the " in shown
    assert fimls(environment, "engine", "stop").stdout.startswith("stopped")


def test_status_tells_what_runs_and_what_was_shown(environment: dict[str, str]) -> None:
    environment = environment | {"FIMLS_STATE_DIR": environment["FIMLS_STATE_DIR"] + "2"}
    folder = Path(environment["FIMLS_STATE_DIR"]) / "sessions"
    done = fimls(environment, "status")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "nothing was suggested yet")
    folder.mkdir(parents=True)
    counts = {"shown": 8, "accepted": 2, "partlyAccepted": 1, "typedThrough": 3}
    for number, pid in enumerate(
        (os.getpid(), 2**22 + 1)
    ):  # a window that is there, and one that is not
        session = {
            "started": 1.8e9 + number,
            "pid": pid,
            "client": "Test",
            "model": "bundled",
            "counts": counts,
        }
        (folder / f"{session['started']:.3f}-{pid}.json").write_text(json.dumps(session))
    (folder / "0.json").write_bytes(b"\xff")
    done = fimls(environment, "status")
    assert (done.returncode, done.stderr) == (0, "")
    here, total = done.stdout.splitlines()[-2:]
    assert here.startswith("Test since ") and here.endswith(
        "8 shown, 2 accepted (25%), 1 in part, 3 typed through"
    )
    assert (
        total.startswith("2 sessions since 20") and "16 shown, 4 accepted (25%), 2 in part" in total
    )
    answer = json.loads(fimls(environment, "status", "--json").stdout)
    assert [session["open"] for session in answer["sessions"]] == [True, False]


def test_the_version(environment: dict[str, str]) -> None:
    assert fimls(environment, "--version").stdout.startswith("fimls 0.")
