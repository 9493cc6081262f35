"""Which errors mean that memory is lacking, and what processes say then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.engine.process import in_trouble
from model.errors import NO_MEMORY, NO_MEMORY_STATUS, lacks_memory


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


LACKING = [
    MemoryError(),
    OSError(12, "Cannot allocate memory"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    RuntimeError("can't start new thread"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    SystemError("error return without exception set"),
    caused(OSError("Could not find/load shared object file"), MemoryError()),
]


@pytest.mark.parametrize("error", LACKING, ids=repr)
def test_what_means_that_memory_is_lacking(error: Exception) -> None:
    assert lacks_memory(error)


@pytest.mark.parametrize(
    "error", [OSError(13, "Permission denied"), ImportError("No module named 'x'"), KeyError(1)]
)
def test_what_does_not(error: Exception) -> None:
    assert not lacks_memory(error)


@pytest.mark.skipif(sys.platform == "win32", reason="limits")
@pytest.mark.parametrize("command", [["lsp_server", "models"], ["model.engine", "{}"]])
def test_a_process_without_memory_says_so(tmp_path: Path, command: list[str]) -> None:
    limited = "import resource, sys, runpy; resource.setrlimit(resource.RLIMIT_AS, "
    limited += f"(30 * 2**20,) * 2); sys.argv = {command!r}; "
    limited += f"runpy.run_module({command[0]!r}, run_name='__main__', alter_sys=True)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", limited],
        env=os.environ | {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert NO_MEMORY in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == (2 if command[0] == "lsp_server" else NO_MEMORY_STATUS)


def test_an_engine_whose_connections_get_no_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    told: list[object] = []

    class Loop:
        default_exception_handler = staticmethod(told.append)

    monkeypatch.setattr(os, "_exit", ended.append)
    in_trouble(Loop(), {"exception": MemoryError()})  # type: ignore[arg-type]
    assert ended == [NO_MEMORY_STATUS]
    ended.clear()
    told.clear()
    in_trouble(Loop(), {"exception": OSError(104, "reset")})  # type: ignore[arg-type]
    assert ended == [] and len(told) == 1
