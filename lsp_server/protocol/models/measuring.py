"""The doctor, in a process of its own because it measures with torch; and what it found, kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from lsp_server.folders import state_folder
from model.errors import ModelError
from model.private_files import write_private_file
from model.regular_files import read_text

DOCTOR_TIMEOUT_S = 180.0
MAX_BYTES = 2**24


async def run_doctor(*options: str, window: str = "") -> bytes:
    """What `fimls doctor` prints. window: a window's settings (SettingsLayers.to_json), by way of
    standard input, because there may be a key among them. Raises OSError, TimeoutError."""
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "lsp_server", "doctor", *options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    )
    try:
        process = await asyncio.shield(starting)  # one that is cancelled meanwhile would live on
        output, _ = await asyncio.wait_for(process.communicate(window.encode()), DOCTOR_TIMEOUT_S)
    except (TimeoutError, asyncio.CancelledError):
        process = await starting
        with contextlib.suppress(ProcessLookupError):
            end(process)
        await process.wait()
        raise
    return output


def parse(output: bytes) -> dict[str, Any]:
    """The report in what `fimls doctor --json` prints. Raises ModelError."""
    with contextlib.suppress(ValueError):
        report = json.loads(output)
        if isinstance(report, dict):
            return report
    raise ModelError("The doctor could not look at everything. Run `fimls doctor` in a terminal.")


def end(process: asyncio.subprocess.Process) -> None:
    """With the process in which it measures. Raises ProcessLookupError."""
    if sys.platform == "win32":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)


def keep(report: dict[str, Any]) -> None:
    """Keeps what was measured, for the list of models and the note. Raises OSError."""
    write_private_file(_file(), json.dumps(report).encode())


def measured() -> dict[str, Any]:
    """The last report that was kept; {} without one, and where it holds no measurements."""
    try:
        report = json.loads(read_text(_file(), MAX_BYTES))
        for each in report["estimates"]:
            each["name"], each["memory_bytes"], each["line_ms"], each["verdict"]
        report["recommendation"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return report if report["estimates"] else {}


def _file() -> Path:
    return state_folder() / "doctor.json"
