"""Starts engine processes, and tells whether a process runs.

It imports little, because starting the spare engine is the first thing that `fimls lsp` does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

from lsp_server.folders import runtime_folder
from lsp_server.logs import engine_log
from model.engine.log import open_log
from model.engine.options import Launch
from model.engine.rendezvous import engines_in

# On Windows: no window, and the console's Ctrl-C is not for it.
OWN_CONSOLE = sum(
    getattr(subprocess, name, 0) for name in ("CREATE_NO_WINDOW", "CREATE_NEW_PROCESS_GROUP")
)
SYNCHRONIZE, WAIT_TIMEOUT, INVALID_PARAMETER = 0x100000, 0x102, 87  # winnt.h, winerror.h
_spare: subprocess.Popen[bytes] | None = None
"""An engine process that loads torch and waits on its stdin to be told what to serve."""


def start_spare() -> None:
    """Starts the spare process, which imports torch while this window starts.

    Not where an engine runs already or completions come from elsewhere. The spare ends by itself
    when this process does.
    """
    global _spare
    if os.environ.get("FIMLS_REMOTE_URL"):
        return
    with contextlib.suppress(OSError):
        if not engines_in(runtime_folder()):
            _spare = _start("--spare", subprocess.PIPE)


def start_engine(launch: Launch) -> subprocess.Popen[bytes]:
    """Starts an engine that outlives this process, from the spare if possible. Raises OSError."""
    global _spare
    spare = _spare
    _spare = None
    if spare is not None and spare.stdin is not None:
        with contextlib.suppress(OSError):  # the spare has died: start another process
            with spare.stdin:
                spare.stdin.write(launch.to_json().encode() + b"\n")
            return spare
    return _start(launch.to_json(), subprocess.DEVNULL)


def end_spare() -> None:
    """Lets the spare end if no engine was made of it."""
    global _spare
    if _spare is not None and _spare.stdin is not None:
        with contextlib.suppress(OSError):
            _spare.stdin.close()
    _spare = None


def _start(argument: str, stdin: int) -> subprocess.Popen[bytes]:
    with open_engine_log() as log:
        process = subprocess.Popen(
            # -P: the working folder, which may be anyone's repository, is no place to import from
            [sys.executable, "-P", "-m", "model.engine", argument],
            stdin=stdin,
            stdout=log,
            stderr=log,
            cwd=runtime_folder(),
            start_new_session=True,
            creationflags=OWN_CONSOLE,
        )
    # Asks for its status when it ends; otherwise a dead engine would stay a zombie for as long as
    # this window lives.
    threading.Thread(target=process.wait, name="engine-status", daemon=True).start()
    return process


def open_engine_log() -> BinaryIO:
    """The engines' log, to append to; the null device where none can be written."""
    try:
        return os.fdopen(open_log(engine_log()), "ab")
    except OSError:
        return Path(os.devnull).open("ab")


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    if sys.platform == "win32":
        return is_alive_on_windows(pid, ctypes.windll.kernel32)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # not ours
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return True  # no Linux, or it has just gone: the next look tells
    return state not in (b"Z", b"X")


def is_alive_on_windows(pid: int, kernel: Any) -> bool:
    """As `is_alive`, by kernel32.dll: os.kill would end the process there."""
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(kernel.OpenProcess(SYNCHRONIZE, False, pid))
    if not handle:
        return bool(kernel.GetLastError() != INVALID_PARAMETER)  # else it is there, another user's
    try:
        return bool(kernel.WaitForSingleObject(handle, 0) == WAIT_TIMEOUT)
    finally:
        kernel.CloseHandle(handle)
