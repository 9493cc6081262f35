"""Log files: private, of a limited size whoever writes them, and sparing with what comes often."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lsp_server import logs
from model.engine import log
from model.engine.log import MANY, PrivateLog, Sparing, open_log


def record(text: str, *values: object, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("test", level, __file__, 1, text, values, None)


@pytest.fixture(autouse=True)
def open_to_all() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


def test_a_log_is_private_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "a.log"
    os.close(open_log(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o666)  # of an earlier version
    os.close(open_log(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "device", "fifo with a reader"])
def test_what_is_no_file_is_no_log_and_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.log"
    reader = None
    if kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/null")
    else:
        os.mkfifo(path)
        if "reader" in kind:
            reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OSError):
        open_log(path)
    if reader is not None:
        os.close(reader)
    assert not (tmp_path / "elsewhere").exists()


def test_a_window_begins_although_its_log_is_a_fifo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited for a reader."""
    os.mkfifo(tmp_path / "lsp.log")
    monkeypatch.setenv("FIMLS_LOG_DIR", str(tmp_path))
    logger = logging.getLogger("lsp_server")
    before = list(logger.handlers)
    thread = threading.Thread(target=logs.log_to_file, args=("lsp.log",), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    for handler in set(logger.handlers) - set(before):
        logger.removeHandler(handler)


def test_a_record_is_one_line_whatever_a_path_in_it_holds(tmp_path: Path) -> None:
    """Also where no log can be written, and it goes to stderr; a traceback is set in."""
    odd = "a\x1b[2Jb\r\n2026 ERROR: forged\u202e\u2028\udcff\x9b.py"
    error = ValueError(f"{odd} is bad")
    path = tmp_path / "a.log"
    handler = PrivateLog(path, [open_log(path)])
    stderr = logs.handler_for(Path(os.devnull) / "a.log")
    shown = ""
    for each in (handler, stderr):
        told = record("%s cannot be read", odd)
        told.exc_info = (ValueError, error, None)
        shown = each.format(told)
        first, *rest = shown.split("\n")
        escaped = r"a\x1b[2Jb\r\n2026 ERROR: forged\u202e\u2028\udcff\x9b.py cannot be read"
        assert first.endswith(escaped)
        assert all(line.isprintable() for line in (first, *rest))
        assert rest and all(line.startswith("    ") for line in rest)
    handler.emit(told)
    assert path.read_text() == shown + "\n"


def test_a_log_is_renamed_when_it_is_large_by_whoever_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes write into one; what is printed to their descriptors follows."""
    monkeypatch.setattr(log, "MAX_BYTES", 1000)
    path = tmp_path / "a.log"
    descriptors = [open_log(path), open_log(path)]
    first, second = (PrivateLog(path, [descriptor]) for descriptor in descriptors)
    for number in range(100):
        first.handle(record("first", level=logging.INFO))
        second.handle(record("second", level=logging.INFO))
        os.write(descriptors[1], b"printed %d\n" % number)
    logs = list(tmp_path.iterdir())
    assert {each.name for each in logs} == {"a.log", "a.old.log"}
    assert all(each.stat().st_size < 1300 for each in logs)
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o600 for each in logs)
    assert "printed 99" in path.read_text() and " second" in path.read_text()
    path.unlink()  # as a user does
    first.handle(record("third"))
    assert path.read_text().endswith(" WARNING test: third\n")
    for descriptor in descriptors:
        os.close(descriptor)


def test_what_comes_often_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    sparing = Sparing()
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    passed = [sparing.filter(record("a %d", number)) for number in range(1000)]
    assert passed.count(True) == MANY and passed[0]
    assert sparing.filter(record("another"))
    assert all(sparing.filter(record("c", level=logging.INFO)) for _ in range(100))
    now[0] = 61.0
    last = record("a %d", 7)
    assert sparing.filter(last)
    assert last.getMessage() == "a 7 (and 980 like this before)"


def test_an_engine_writes_private_files_and_turns_its_log_over(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    script = f"""
import logging, os
from pathlib import Path
from model.engine import log, process
process.set_up()
process.log_to({str(path)!r})
log.MAX_BYTES = 1000
for number in range(100):
    logging.info("some words %d", number)
    print("printed", number, flush=True)
Path("file").touch()
"""
    with os.fdopen(open_log(path), "ab") as output:
        command = [sys.executable, "-c", script]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
        subprocess.run(
            command, check=True, cwd=tmp_path, stdout=output, stderr=output, env=environment
        )
    assert "some words 99" in path.read_text() and "printed 99" in path.read_text()
    assert {each.name for each in tmp_path.iterdir()} == {"engine.log", "engine.old.log", "file"}
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o600 for each in tmp_path.iterdir())


def test_where_an_open_file_cannot_be_renamed_the_log_is_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where it grew for ever."""

    def held(path: Path, target: Path) -> Path:
        raise PermissionError(13, "The process cannot access the file")

    monkeypatch.setattr(log, "MAX_BYTES", 500)
    monkeypatch.setattr(Path, "replace", held)
    path = tmp_path / "a.log"
    handler = PrivateLog(path, [open_log(path)])
    for number in range(50):
        handler.emit(record("%d", number, level=logging.INFO))
    assert path.stat().st_size < 700
    assert path.read_text().endswith(": 49\n")
