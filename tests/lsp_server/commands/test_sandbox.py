"""Programs that a model has written: a good one passes, and the others do no harm."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lsp_server.commands.evaluation import sandbox
from lsp_server.commands.evaluation.sandbox import OUT_OF_TIME, execute
from lsp_server.commands.evaluation.sandboxed import ISOLATION, READ_ONLY_FILES

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has no such limits")

HAS_NAMESPACES = set(ISOLATION).isdisjoint(execute("").lacks)
BOTH = pytest.mark.parametrize(
    "isolated",
    [
        pytest.param(
            True,
            marks=pytest.mark.skipif(not HAS_NAMESPACES, reason="the kernel gives no namespaces"),
        ),
        False,
    ],
    ids=["namespaces", "hook"],
)
GOOD = {
    "simple": "assert sorted([2, 1]) == [1, 2]",
    "main": "assert __name__ == '__main__'",
    "own files": "with open('f', 'w') as f: f.write('x')\nassert open('f').read() == 'x'\n"
    "import os; os.mkdir('d'); os.rename('f', 'd/f'); os.remove('d/f'); os.rmdir('d')",
    "temporary files": "import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'x')",
    "output": "import sys\nfor _ in range(10**5): print('x' * 99); sys.stderr.write('x' * 99)",
    "no input": "import sys; assert sys.stdin.read() == ''",
    "no environment": "import os; assert not {'HOME', 'PATH', 'FIMLS_MODEL'} & set(os.environ)",
    "numpy": "import numpy; assert (numpy.ones((9, 9)) @ numpy.ones(9)).sum() == 81",
    "thread": "import threading; t = threading.Thread(target=print); t.start(); t.join()",
}
BAD = {
    "wrong": ("assert 1 + 1 == 3, 'sum'", "AssertionError: sum"),
    "syntax": ("return (", "SyntaxError: "),
    "memory": ("x = bytearray(2**33)", "MemoryError"),
    "file size": ("open('f', 'wb').write(bytes(2**22))", "OSError: "),
    "recursion": ("def f(): f()\nf()", "RecursionError: "),
    "exit": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "hard exit": ("import os; os._exit(0)", "ended the process with status 0"),
    "forged": ('import os; os.write(3, b\'{"token": ""}\\n\'); os._exit(0)', "ended the process"),
    "crash": ("import ctypes; ctypes.string_at(0)", "ended by signal 11"),
    "fork": ("import os\nwhile True: os.fork()", "PermissionError: os.fork"),
    "process": ("import subprocess; subprocess.run(['true'])", "PermissionError: subprocess.Popen"),
    "shell": ("import os; os.system('true')", "PermissionError: os.system"),
}


@BOTH
@pytest.mark.parametrize("program", GOOD.values(), ids=GOOD)
def test_what_is_good_passes(program: str, isolated: bool) -> None:
    verdict = execute(program, isolated=isolated)
    assert (verdict.passed, verdict.reason) == (True, "")


@BOTH
@pytest.mark.parametrize(("program", "reason"), BAD.values(), ids=BAD)
def test_what_is_bad_does_not(program: str, reason: str, isolated: bool) -> None:
    verdict = execute(program, isolated=isolated)
    assert not verdict.passed and verdict.reason.startswith(reason)


@BOTH
@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        # In a session of its own, by way of the C library, of which the hook sees nothing.
        "import ctypes, time\nc = ctypes.CDLL(None)\nc.fork()\nc.setsid()\ntime.sleep(60)",
    ],
    ids=["busy", "asleep", "stubborn", "escaped"],
)
def test_what_does_not_end_is_ended(
    program: str, isolated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isolated and "setsid" in program:
        pytest.skip("without namespaces a process can leave its group")
    child = Path(shutil.copy(sandbox.CHILD, tmp_path))
    monkeypatch.setattr(sandbox, "CHILD", child)
    started = time.monotonic()
    verdict = execute(program, seconds=1, isolated=isolated)
    assert (verdict.passed, verdict.reason) == (False, OUT_OF_TIME)
    while running := processes_of(child):
        assert time.monotonic() - started < 10, running


def processes_of(file: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(file).encode() in (process / "cmdline").read_bytes():
                found.append(process.name)
    return found


@BOTH
def test_there_is_no_network(isolated: bool) -> None:
    """Nor are other programs on this machine within reach, which a real socket shows."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        verdict = execute(
            f"import socket; socket.create_connection(('127.0.0.1', {port}), 3)", isolated=isolated
        )
        assert not verdict.passed and "Error" in verdict.reason
        with pytest.raises(BlockingIOError):
            server.accept()


@BOTH
def test_files_and_processes_of_others_stay(isolated: bool, tmp_path: Path) -> None:
    kept = tmp_path / "folder" / "kept"
    kept.parent.mkdir()
    kept.write_text("text")
    changes = (
        f"open({str(kept)!r}, 'w')",
        f"open({str(kept)!r}, 'a').write('more')",
        f"import os; os.remove({str(kept)!r})",
        f"import os; os.rename({str(kept)!r}, 'mine')",
        f"import shutil; shutil.rmtree({str(kept.parent)!r})",
        f"import pathlib; pathlib.Path({str(kept)!r}).chmod(0)",
        f"import os; os.kill({os.getpid()}, 0)",
    )
    for change in changes:
        verdict = execute(change, isolated=isolated)
        assert not verdict.passed and "Error" in verdict.reason, change
    assert kept.read_text() == "text"


def test_what_is_not_there_is_said() -> None:
    assert set(ISOLATION) <= set(execute("", isolated=False).lacks)
    lacks = execute("").lacks
    assert any("processes" in each for each in lacks) == (os.getuid() == 0)
    assert execute("assert False").lacks == lacks


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has namespaces")
@pytest.mark.parametrize("refused", ["unshare", "mount"])
def test_what_the_kernel_refuses_is_gone_without(refused: str, tmp_path: Path) -> None:
    if refused == "mount" and not HAS_NAMESPACES:
        pytest.skip("the kernel gives no namespaces")
    code = f"""
import ctypes, sys
real = ctypes.CDLL(None)
class Refusing:
    def __getattr__(self, name):
        return (lambda *arguments: -1) if name == {refused!r} else getattr(real, name)
ctypes.CDLL = lambda *arguments, **options: Refusing()
sys.path.insert(0, {str(sandbox.CHILD.parent)!r})
import sandboxed
print(sandboxed.isolate(), flush=True)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    lacks = list(ISOLATION) if refused == "unshare" else [READ_ONLY_FILES]
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{lacks}\n", "")


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert execute("open('f', 'w').write('x')").passed
    assert execute("import os; os.mkdir('d'); os.chmod('d', 0)").passed
    execute("open('f', 'w'); import time; time.sleep(9)", seconds=1)
    assert list(tmp_path.iterdir()) == []
