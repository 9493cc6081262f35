"""What this machine can do: the figures of model/probe.py, and the speed of the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lsp_server.commands.errors import CommandError
from lsp_server.folders import cache_folder
from model.engine.options import EngineOptions

TIMEOUT_S = 120.0
WRITTEN = 32 * 2**20  # bytes, to measure the disk


def measure_machine(options: EngineOptions) -> dict[str, Any]:
    """The figures of model/probe.py, which loads torch in its own process. Raises CommandError."""
    command = [sys.executable, "-P", "-m", "model.probe", "--device", options.device]
    command += ["--threads", str(options.threads or 0)]
    command += ["--cache", str(cache_folder())]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise CommandError(
            f"the machine's speed could not be measured within {TIMEOUT_S:.0f} s; close what else "
            "uses its cores"
        ) from None
    try:
        figures: dict[str, Any] = json.loads(run.stdout)
    except ValueError:
        lines = run.stderr.strip().splitlines() or [f"status {run.returncode}"]
        raise CommandError(
            f"the machine's speed could not be measured ({lines[-1][:200]}); free memory, or "
            "install fimls again if a package is missing"
        ) from None
    return figures


def disk_bytes_per_s(folder: Path) -> float:
    """How fast a file is written to the folder, to the disk itself. Raises OSError."""
    content = os.urandom(2**20)
    with tempfile.TemporaryFile(dir=folder) as file:
        started = time.perf_counter()
        for _ in range(WRITTEN // len(content)):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return WRITTEN / (time.perf_counter() - started)
