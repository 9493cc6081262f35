"""An engine's prefixes outlive it: written when it is idle or ends, read by the next."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model import LoadedModel
from model.engine import worker
from model.engine.options import EngineOptions, Launch
from model.engine.request import Finished, Request, Started
from model.engine.worker import Engine
from model.prefix_cache.disk import PrefixStore, open_store
from tests.conftest import ROOT
from tests.model.toys import ask

PROMPT = tuple(random.Random(5).randrange(8, 260) for _ in range(1300))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "prefixes"


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@contextlib.contextmanager
def running_on(model: LoadedModel, folder: Path, **options: int) -> Iterator[Engine]:
    engine = Engine(
        model, store=open_store(folder, 2**30, model.folder, model.decoder.new_cache()), **options
    )
    engine.start()
    try:
        yield engine
    finally:
        engine.close()
        engine.join(60)


def test_an_engine_that_ends_leaves_its_prefixes_to_the_next(
    talkative: LoadedModel, folder: Path
) -> None:
    with running_on(talkative, folder) as first:
        fresh = ask(first, Request(PROMPT, max_new_tokens=6))
        assert fresh[0] == Started(len(PROMPT), 0)
    with running_on(talkative, folder) as second:
        again = ask(second, Request(PROMPT, max_new_tokens=6))
        assert again[0] == Started(len(PROMPT), len(PROMPT) - 1)
        assert second.prefixes.restored == 1
        ask(second, Request((*PROMPT, 50), max_new_tokens=6))  # from memory
        assert second.prefixes.restored == 1
    assert [e.id for e in again[1:-1]] == [e.id for e in fresh[1:-1]]
    assert len(files(folder)) == 1


def test_an_engine_that_is_stopped_writes_nothing_more(
    talkative: LoadedModel, folder: Path
) -> None:
    with running_on(talkative, folder) as running:
        ask(running, Request(PROMPT, max_new_tokens=0))
        running.close(save=False)
        running.join(60)
    assert files(folder) == []


def test_an_engine_writes_when_it_has_been_idle(
    talkative: LoadedModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SAVE_AFTER_S", 0.05)
    with running_on(talkative, folder) as running:
        ask(running, Request(PROMPT, max_new_tokens=0))
        deadline = time.monotonic() + 60
        while running.prefixes.unsaved and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(files(folder)) == 1
        assert ask(running, Request((*PROMPT, 50), max_new_tokens=0))[0] == Started(
            len(PROMPT) + 1, len(PROMPT)
        )


def test_an_engine_with_no_memory_for_prefixes_works(talkative: LoadedModel, folder: Path) -> None:
    with running_on(talkative, folder, cache_bytes=0) as running:
        for _ in range(2):
            started, *_, end = ask(running, Request(PROMPT, max_new_tokens=2))
            assert started == Started(len(PROMPT), 0) and isinstance(end, Finished)
    assert files(folder) == []


def test_a_store_that_fails_fails_no_request(
    talkative: LoadedModel,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(PrefixStore, "save", no_memory)
    with running_on(talkative, folder) as running:
        monkeypatch.setattr(worker, "SAVE_AFTER_S", 0.01)
        ask(running, Request(PROMPT, max_new_tokens=2))
        time.sleep(0.1)
        assert isinstance(ask(running, Request(PROMPT, max_new_tokens=2))[-1], Finished)
    assert "nothing was written to disk" in caplog.text


# Through the engine process.


class Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("engine", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self._path)


def call(path: Path, method: str, address: str, body: object = None) -> dict[str, Any]:
    connection = Connection(path)
    with contextlib.closing(connection):
        connection.request(method, address, json.dumps(body), {"Content-Type": "application/json"})
        return json.load(connection.getresponse())


@contextlib.contextmanager
def engine_process(model: Path, folder: Path, cache_disk: int) -> Iterator[Path]:
    """The socket of an engine that is ready; it is told to go by SIGTERM."""
    with tempfile.TemporaryDirectory(prefix="fimls-", dir="/tmp") as name:
        path = Path(name) / "sock"
        options = EngineOptions(dtype="float32", quantization="none", cache_disk=cache_disk)
        launch = Launch(
            f"unix:{path}", str(model), cache_folder=str(folder.parent), options=options
        )
        command = [sys.executable, "-m", "model.engine", launch.to_json()]
        process = subprocess.Popen(command, cwd=ROOT)
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError):
                    if call(path, "GET", "/fimls/status")["state"] == "ready":
                        break
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.05)
            yield path
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize(("cache_disk", "restored"), [(1024, 1), (0, 0)])
def test_a_process_that_ends_leaves_its_prefixes_to_the_next(
    talkative_folder: Path, folder: Path, cache_disk: int, restored: int
) -> None:
    for number in range(2):
        with engine_process(talkative_folder, folder, cache_disk) as path:
            call(path, "POST", "/fimls/prefill", {"prompt": PROMPT})
            status = call(path, "GET", "/fimls/status")
            assert (status["cache_sequences"], status["cache_restored"]) == (1, number * restored)
            assert status["cache_bytes"] > 0
    assert folder.exists() == bool(restored)


def test_a_process_that_is_told_to_stop_writes_nothing_more(
    talkative_folder: Path, folder: Path
) -> None:
    with engine_process(talkative_folder, folder, 1024) as path:
        call(path, "POST", "/fimls/prefill", {"prompt": PROMPT})
        call(path, "POST", "/fimls/stop")
    assert files(folder) == []
