"""`fimls pull` and `fimls models remove` as a user runs them, against a hub on loopback: one clear
line and exit code 2 for what goes wrong, and never a traceback."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.private_files import write_private_file
from tests.model.catalogue.hub_server import Hub, serving

LARGE = b"GGUF" + random.Random(0).randbytes(400_000)
FILE = "m-q4_k_m.gguf"
NAME = f"org/repo:{FILE}"
TIMEOUT_S = 60


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving(Hub({FILE: LARGE})) as served:
        yield served


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env.pop("TRANSFORMERS_OFFLINE", None)
    return env | {
        "FIMLS_DATA_DIR": str(tmp_path / "data"),
        "FIMLS_CACHE_DIR": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": hub.endpoint,
        "OLLAMA_MODELS": str(tmp_path / "ollama"),
        "NO_PROXY": "127.0.0.1,localhost",
    }


def fimls(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lsp_server", *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def write_prepared(cache_dir: Path, model: Path) -> Path:
    """A file of 100 kB, as far as its listing goes."""
    header = json.dumps({"__metadata__": {"model": str(model)}}).encode()
    path = cache_dir / "weights" / "x.safetensors"
    write_private_file(path, len(header).to_bytes(8, "little") + header.ljust(100_000 - 8))
    return path


def test_pull_list_remove(environment: dict[str, str], hub: Hub) -> None:
    done = fimls(environment, "pull", NAME)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.read_bytes() == LARGE and f"`fimls models use {NAME}`" in done.stderr
    assert fimls(environment, "pull", NAME, "--offline").stdout.strip() == str(path)
    listed = fimls(environment, "models")
    assert listed.returncode == 0 and NAME not in listed.stdout  # nothing that could be run

    refused = fimls(environment, "models", "remove", NAME)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "say --yes to remove" in refused.stderr and path.exists()
    prepared = write_prepared(Path(environment["FIMLS_CACHE_DIR"]), path)
    assert f"Prepared for a fast start: {path.name} (10" in fimls(environment, "models").stdout
    removed = fimls(environment, "models", "remove", NAME, "--yes")
    assert (removed.returncode, removed.stderr) == (0, "")
    assert removed.stdout == f"removed {NAME}: 500 kB are free\n" and not path.exists()
    assert not prepared.exists()
    again = fimls(environment, "models", "remove", NAME, "--yes")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "There is no model" in again.stderr


def test_what_others_put_there_is_not_removed(environment: dict[str, str], tmp_path: Path) -> None:
    snapshot = tmp_path / "hf" / "hub" / "models--org--repo" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / FILE).write_bytes(LARGE)
    done = fimls(environment, "models", "remove", NAME, "--yes")
    assert done.returncode == 2 and "`hf cache rm`" in done.stderr
    assert (snapshot / FILE).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pull", "qwen"), "did you mean qwen2.5-coder"),
        (("pull", "org/repo:none"), "Name one as org/repo:FILE"),
        (("pull", "org/other"), "There is no model org/other"),
        (("pull", "org/other", "--offline"), "--offline fetches nothing"),
        (("pull", "starcoder2-3b"), "--accept-licence 'BigCode OpenRAIL-M'"),
    ],
)
def test_what_cannot_be_pulled_is_one_clear_line(
    environment: dict[str, str], arguments: tuple[str, ...], message: str
) -> None:
    done = fimls(environment, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fimls: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


def test_interrupting_keeps_what_is_there(environment: dict[str, str], hub: Hub) -> None:
    hub.faults = [("GET", FILE, ["stall", 200_000])]
    process = subprocess.Popen(
        [sys.executable, "-m", "lsp_server", "pull", NAME],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not any(
        path.stat().st_size for path in Path(environment["HF_HOME"]).rglob("*.incomplete")
    ):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, stdout) == (2, "")
    assert stderr == "fimls: Stopped. What was fetched is kept; run it again to go on from there.\n"
    hub.released.set()
    done = fimls(environment, "pull", NAME)
    assert done.returncode == 0 and Path(done.stdout.strip()).read_bytes() == LARGE
    assert hub.asked("GET", FILE)[-1]["range"].startswith("bytes=")


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2), ("\n", 2)])
def test_on_a_terminal_the_licence_is_asked_about(
    environment: dict[str, str], hub: Hub, answer: str, code: int
) -> None:
    hub.licence = "gemma"
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "lsp_server", "pull", NAME],
        env=environment | {"TERM": "xterm", "COLUMNS": "200"},
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    seen = bytearray()

    def read() -> None:
        try:
            while part := os.read(ours, 4096):
                seen.extend(part)
        except OSError:  # the other end is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    deadline = time.monotonic() + TIMEOUT_S
    while b"do you accept it?" not in seen and time.monotonic() < deadline:
        time.sleep(0.02)
    os.write(ours, answer.encode())
    stdout, _ = process.communicate(timeout=TIMEOUT_S)
    reader.join(TIMEOUT_S)
    os.close(ours)
    assert process.returncode == code, bytes(seen)
    assert b"under the licence gemma (http" in seen and b"Traceback" not in seen
    if code:
        assert b"Nothing was fetched" in seen and not hub.asked("GET", FILE)
    else:
        assert Path(stdout.decode().strip()).read_bytes() == LARGE
