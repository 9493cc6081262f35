"""Whether a process runs, here and as Windows tells it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from lsp_server.engines.process import is_alive, is_alive_on_windows

GONE, DENIED = 87, 5


class Kernel:
    """What kernel32.dll answers. closed: how many handles were given back."""

    def __init__(self, handle: int | None, waited: int = 0, error: int = 0) -> None:
        self._handle, self._waited, self._error = handle, waited, error
        self.OpenProcess: Any = self._open_process
        self.asked: list[tuple[int, bool, int]] = []
        self.closed = 0

    class _Function:
        restype: Any = None

        def __init__(self, answer: Any) -> None:
            self._answer = answer

        def __call__(self, *values: Any) -> Any:
            return self._answer(*values)

    def _open(self, access: int, inherit: bool, pid: int) -> int | None:
        self.asked.append((access, inherit, pid))
        return self._handle

    @property
    def _open_process(self) -> Any:
        return self._Function(self._open)

    def WaitForSingleObject(self, handle: Any, ms: int) -> int:
        assert (handle.value, ms) == (self._handle, 0)
        return self._waited

    def GetLastError(self) -> int:
        return self._error

    def CloseHandle(self, handle: Any) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("kernel", "alive"),
    [
        (Kernel(2**40 + 8, waited=0x102), True),
        (Kernel(2**40 + 8, waited=0), False),  # it has ended, and somebody still holds it
        (Kernel(None, error=GONE), False),
        (Kernel(None, error=DENIED), True),
    ],
)
def test_a_process_on_windows(kernel: Kernel, alive: bool) -> None:
    """All counted as running, so that a server stayed when its editor had died."""
    assert is_alive_on_windows(77, kernel) is alive
    assert kernel.asked == [(0x100000, False, 77)]
    assert kernel.closed == (kernel._handle is not None)


def test_a_process_here() -> None:
    assert is_alive(os.getpid())
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(process.pid)  # a zombie
    assert not is_alive(process.pid)
