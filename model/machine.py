"""What this machine and its processes are, as far as the engine asks."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import tempfile
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Physical cores that this process may run on, and no more than its control group may use in time.

    A second thread on a core slows both, and threads beyond a quota are stopped for the rest of each period.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in allowed:
        siblings = CPUS / f"cpu{cpu}/topology/thread_siblings_list"
        cores.add(siblings.read_text().strip() if siblings.exists() else str(cpu))
    return max(1, math.floor(min(len(cores), cpu_quota())))


def cpu_quota() -> float:
    """CPUs' worth of time that the control groups of this process allow (cgroup v2 or v1); infinite without any."""
    quota = math.inf
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return quota
    for line in groups:
        _, controllers, own = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / controllers if controllers else CGROUPS
        folder = root / own.lstrip("/")
        # Limits of the groups above hold, too. In a container the own path may not be there, but the root is.
        for at in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):
                quota = min(quota, _quota_v1(at) if controllers else _quota_v2(at))
            if at == root:
                break
    return quota


def _quota_v2(group: Path) -> float:
    limit, period = (group / "cpu.max").read_text().split()
    return math.inf if limit == "max" else int(limit) / int(period)


def _quota_v1(group: Path) -> float:
    limit = int((group / "cpu.cfs_quota_us").read_text())
    return math.inf if limit < 0 else limit / int((group / "cpu.cfs_period_us").read_text())


def processor() -> str:
    """The kind of CPU, with what it can do: figures measured on one hold on another that says the same."""
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
    known = [x for x in extensions if x.startswith(("avx", "amx", "fma", "f16c", "asimd", "sve", "i8mm", "bf16"))]
    return " ".join((platform.machine(), model, *sorted(known)))


def memory_bytes(process: int | str = "self") -> int | None:
    """Memory that is a process's own (RssAnon + VmSwap); None where the system does not tell."""
    return _sum_of(Path(f"/proc/{process}/status"), "RssAnon", "VmSwap")


def available_memory() -> int | None:
    """Bytes that the system could still give without swapping; None where it does not tell."""
    return _sum_of(Path("/proc/meminfo"), "MemAvailable")


def _sum_of(file: Path, *names: str) -> int | None:
    """The sum of some of a /proc file's entries, which are in kB, in bytes."""
    try:
        lines = dict(line.split(":", 1) for line in file.read_text().splitlines())
        return sum(int(lines[name].split()[0]) for name in names) * 1024
    except (OSError, KeyError, ValueError):
        return None


def write_whole(path: Path, content: bytes) -> None:
    """Writes a private file, in a private folder, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent)  # 0600
    written = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        written.replace(path)
    except BaseException:
        written.unlink(missing_ok=True)
        raise
