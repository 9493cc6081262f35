"""This machine and its processes, as the engine asks about them: cores, CPU, memory."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
CGROUPS = Path("/sys/fs/cgroup")
EXTENSIONS = ("avx", "amx", "fma", "f16c", "asimd", "sve", "i8mm", "bf16")  # how their names begin


def usable_cores() -> int:
    """Physical cores that this process may run on, within the CPU time that its control groups
    allow.

    A second thread on a core slows both, and threads beyond a quota are stopped for the rest of
    each period.
    """
    allowed = set(range(os.cpu_count() or 1))
    if hasattr(os, "sched_getaffinity"):  # on Linux
        allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        try:
            cores.add((CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, math.floor(min(len(cores), _least("cpu", _quota_v1, _quota_v2))))


def _quota_v2(group: Path) -> float:
    """The CPUs' worth of time that a control group allows."""
    limit, period = (group / "cpu.max").read_text().split()
    if limit == "max":
        return math.inf
    return int(limit) / int(period)


def _quota_v1(group: Path) -> float:
    limit = int((group / "cpu.cfs_quota_us").read_text())
    if limit < 0:
        return math.inf
    return limit / int((group / "cpu.cfs_period_us").read_text())


def _least(controller: str, v1: Callable[[Path], float], v2: Callable[[Path], float]) -> float:
    """The least that a control group of this process allows; infinite without any.

    v1 and v2 read the limit in a group's folder, in either version of control groups.
    """
    least = math.inf
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return least
    for line in groups:
        _, controllers, own = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controllers
        read_limit = v1 if controllers else v2
        folder = root / own.lstrip("/")
        # Limits of the groups above hold, too. In a container the own path may not be there, but
        # the root is.
        for level in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):
                least = min(least, read_limit(level))
            if level == root:
                break
    return least


def processor() -> str:
    """The kind of CPU and its extensions. Times measured on one CPU hold on another of the same
    description."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".strip()
    first: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            first.setdefault(name.strip(), value.strip())
    model = first.get("model name") or first.get("CPU part", "")
    extensions = (first.get("flags") or first.get("Features") or "").split()
    known = sorted(name for name in extensions if name.startswith(EXTENSIONS))
    return " ".join((platform.machine(), model, *known))


def memory_bytes(process: int | str = "self") -> int | None:
    """Memory of a process's own (RssAnon + VmSwap); None where the system does not tell."""
    return _sum_of(Path(f"/proc/{process}/status"), "RssAnon", "VmSwap")


def give_back_memory() -> None:
    """Returns free memory of this process's heap to the system. The C library keeps it otherwise,
    in pieces."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # only glibc has the call
        ctypes.CDLL(None).malloc_trim(0)


def available_memory() -> int | None:
    """Bytes that this process could still get without swapping, by the system and by its control
    groups; None where the system does not tell."""
    system = _sum_of(Path("/proc/meminfo"), "MemAvailable")
    if system is None:
        return None
    return int(min(system, _least("memory", _left_v1, _left_v2)))


def _left_v2(group: Path) -> float:
    limit = (group / "memory.max").read_text().strip()
    if limit == "max":
        return math.inf
    return int(limit) - int((group / "memory.current").read_text()) + _droppable(group)


def _left_v1(group: Path) -> float:
    limit = int((group / "memory.limit_in_bytes").read_text())
    return limit - int((group / "memory.usage_in_bytes").read_text()) + _droppable(group)


def _droppable(group: Path) -> int:
    """Bytes of files in memory that the group counts as its own, and that can be dropped."""
    entries = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(entries.get("inactive_file", 0))


def _sum_of(file: Path, *names: str) -> int | None:
    """The sum of some of a /proc file's entries, which are in kB, in bytes."""
    try:
        lines = dict(line.split(":", 1) for line in file.read_text().splitlines())
        return sum(int(lines[name].split()[0]) for name in names) * 1024
    except (OSError, KeyError, ValueError):
        return None
