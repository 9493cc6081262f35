"""What this machine and its processes are, as far as the engine asks."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """Physical cores that this process may run on: a second thread on a core slows both."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text().strip() if siblings.exists() else str(cpu))
    return max(1, len(cores))


def memory_bytes(process: int | str = "self") -> int | None:
    """Memory that is a process's own (RssAnon + VmSwap); None where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        return sum(int(lines[name].split()[0]) for name in ("RssAnon", "VmSwap")) * 1024
    except (OSError, KeyError, ValueError):
        return None
