"""Runs programs that a model has written, each in a process of its own that is kept in.

sandboxed.py is that process. Around it there are a limit of time by the clock, a working folder
that goes with it, and an empty environment; what it prints goes nowhere.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("sandboxed.py")
RUN_S = 10  # seconds, of the clock and of CPU
RUN_BYTES = 2**31
MOST_RESULT = 2**16  # bytes
FROM_SIGNAL = 128  # an exit status beyond it stands for a signal
OUT_OF_TIME = "out of time"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a program ran to its end, else why not; and the protections that were not there."""

    passed: bool
    reason: str = ""
    lacks: tuple[str, ...] = ()


def execute(
    program: str, *, seconds: int = RUN_S, memory: int = RUN_BYTES, isolated: bool = True
) -> Verdict:
    """Runs a Python program. isolated False: as on a system without namespaces. Raises OSError
    where no process can be started."""
    token = secrets.token_hex(16)
    order = {
        "program": program,
        "token": token,
        "seconds": seconds,
        "bytes": memory,
        "isolated": isolated,
    }
    with (
        tempfile.TemporaryDirectory(prefix="fimls-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as orders,
        tempfile.TemporaryFile() as result,
    ):
        orders.write(json.dumps(order).encode())
        orders.seek(0)
        environment = {"OPENBLAS_NUM_THREADS": "1"}  # numpy's threads would take the memory
        if sys.platform == "win32":  # Python does not start without
            environment["SYSTEMROOT"] = os.environ["SYSTEMROOT"]
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(CHILD)],
            cwd=folder,
            env=environment,
            stdin=orders,
            stdout=result,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
        result.seek(0)
        found: dict[str, Any] = {}
        for message in _messages(result.read(MOST_RESULT)):
            found |= message
    lacks = tuple(found.get("lacks", ()))
    if found.get("token") == token and code == 0:
        return Verdict(True, "", lacks)
    return Verdict(False, _reason(code, found), lacks)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started in its session."""
    try:
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        process.wait()


def _messages(written: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects of the result; the program may have written to it, too."""
    for line in written.splitlines():
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if isinstance(message, dict):
            yield message


def _reason(code: int | None, found: dict[str, Any]) -> str:
    if code is None:
        return OUT_OF_TIME
    if "reason" in found:
        return str(found["reason"])
    number = -code if code < 0 else code - FROM_SIGNAL
    if sys.platform != "win32" and number == signal.SIGXCPU:
        return OUT_OF_TIME
    if number > 0:
        return f"ended by signal {number}"
    return f"ended the process with status {code}"
