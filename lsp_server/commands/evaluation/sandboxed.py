"""Runs one program that a model has written, and keeps it in. sandbox.py starts this file as a
process of its own: it must not import anything of fimls.

On Linux, where the kernel lets a user do so, the program gets namespaces of its own: a network
without devices, processes that see and end only each other, and a file system that is read-only
but for the working folder. Limits hold for CPU time, memory, the size of files and the number of
processes. What the system does not offer is replaced by a hook on Python's own functions, which
holds against code that is merely wrong, not against code that is made to get out; it is reported as
lacking.

A program has passed when it ran to its end: this process then writes the token that it was given.
One that ends the process before has not.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

NEW_MOUNTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NET = 0x20000, 0x8000000, 2**28, 2**29, 2**30
BIND, RECURSIVE, PRIVATE = 0x1000, 0x4000, 0x40000  # of mount(2)
MOUNT_SETATTR, HERE, AT_RECURSIVE, READ_ONLY = 442, -100, 0x8000, 1
SET_DEATH_SIGNAL, NO_NEW_PRIVILEGES, CAPABILITY_VERSION = 1, 38, 0x20080522
OWN_NETWORK = "a network of their own"
OWN_PROCESSES = "processes of their own"
READ_ONLY_FILES = "read-only files"
ISOLATION = (OWN_NETWORK, OWN_PROCESSES, READ_ONLY_FILES)
FROM_SIGNAL = 128  # an exit status beyond it stands for a signal
MOST_PROCESSES = 32  # also threads
MOST_REASON = 200  # characters

# Audit events: https://docs.python.org/3/library/audit_events.html
STARTS: tuple[str, ...] = (
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "os.system",
    "pty.spawn",
    "subprocess.Popen",
    "_winapi.CreateProcess",
)
SIGNALS = ("os.kill", "signal.pthread_kill")
CHANGES = (
    "os.chmod",
    "os.chown",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.truncate",
    "os.utime",
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    order = json.load(sys.stdin)
    result = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    lacks = isolate() if order["isolated"] else list(ISOLATION)
    sys.addaudithook(refusing(lacks))
    lacks += limit(order["seconds"], order["bytes"])
    write, end = os.write, os._exit  # the program may put others into their places
    write(result, json.dumps({"lacks": lacks}).encode() + b"\n")
    try:
        exec(compile(order["program"], "<program>", "exec"), {"__name__": "__main__"})
        told = {"token": order["token"]}
    except BaseException as error:
        told = {"reason": f"{type(error).__name__}: {error}"[:MOST_REASON].removesuffix(": ")}
    write(result, json.dumps(told).encode())
    end(0)


def isolate() -> list[str]:
    """Goes on in a new process within namespaces of its own, while this one only waits for its end.

    Returns what the system does not have of ISOLATION.
    """
    if sys.platform != "linux":
        return list(ISOLATION)
    libc = ctypes.CDLL(None, use_errno=True)
    ready, told = os.pipe()
    outer = os.fork()
    if outer:
        os.close(told)
        if os.read(ready, 1):
            wait_for(outer)
        os.waitpid(outer, 0)  # there are no namespaces
        os.close(ready)
        return list(ISOLATION)
    try:
        enter_namespaces(libc)
    except OSError:
        os._exit(1)
    inner = os.fork()  # the first process of the new ones: with it all of them end
    if inner:
        os.write(told, b"1")
        wait_for(inner)
    os.close(ready)
    os.close(told)
    libc.prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
    lacks = []
    try:
        make_read_only(libc, Path.cwd())
    except OSError:
        lacks.append(READ_ONLY_FILES)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    libc.capset(header, (ctypes.c_uint32 * 6)())  # none: what is mounted stays so
    return lacks


def wait_for(process: int) -> NoReturn:
    """Ends as a process ends."""
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    os._exit(code if code >= 0 else FROM_SIGNAL - code)


def enter_namespaces(libc: Any) -> None:
    """Of the user, the network, processes and mounts; the user keeps its number. Raises OSError."""
    if sys.platform != "linux":
        raise OSError("there are none")
    numbers = {"setgroups": "deny", "uid_map": f"{os.getuid()} {os.getuid()} 1"}
    numbers["gid_map"] = f"{os.getgid()} {os.getgid()} 1"
    check(libc.unshare(NEW_USER | NEW_NET | NEW_PIDS | NEW_IPC | NEW_MOUNTS))
    for file, text in numbers.items():
        Path(f"/proc/self/{file}").write_text(text)


def check(code: int) -> None:
    """Raises OSError for a failed call of the C library."""
    if code:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def make_read_only(libc: Any, folder: Path) -> None:
    """All files but those of a folder, which is the working folder. Raises OSError."""
    here = os.fsencode(folder)

    def set_flags(path: bytes, flags: int, added: int, removed: int) -> None:
        change = (ctypes.c_uint64 * 4)(added, removed, 0, 0)
        size = ctypes.sizeof(change)
        check(libc.syscall(MOUNT_SETATTR, HERE, path, flags, change, size))

    check(libc.mount(b"none", b"/", None, RECURSIVE | PRIVATE, None))
    check(libc.mount(here, here, None, BIND, None))
    set_flags(b"/", AT_RECURSIVE, READ_ONLY, 0)
    set_flags(here, 0, 0, READ_ONLY)
    os.chdir(folder)


def limit(seconds: int, memory: int) -> list[str]:
    """Sets the limits; returns those that the system does not have."""
    if sys.platform == "win32":
        return ["limits of memory, CPU time, file sizes and processes"]
    import resource

    wanted = {
        "CPU": ("a limit of CPU time", seconds),
        "AS": ("a limit of memory", memory),
        "FSIZE": ("a limit of file sizes", 2**20),
        "NPROC": ("a limit of processes", MOST_PROCESSES),
        "CORE": ("", 0),
    }
    lacks = []
    for name, (words, most) in wanted.items():
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
        except (AttributeError, ValueError, OSError):
            lacks.append(words)
    if sys.platform == "darwin":  # it takes the limit and does not keep to it
        lacks.append("a limit of memory")
    if os.getuid() == 0:  # the kernel lets root have as many as it likes
        lacks.append("a limit of processes (root has none)")
    return lacks


def refusing(lacks: Sequence[str]) -> Callable[[str, tuple[Any, ...]], None]:
    """The hook: no new processes; and in place of what lacks, no sockets, no signals, no changes
    outside of the working folder."""
    here = os.path.realpath(Path.cwd())
    banned = STARTS
    if OWN_NETWORK in lacks:
        banned += ("socket.",)
    if OWN_PROCESSES in lacks:
        banned += SIGNALS
    guarded = READ_ONLY_FILES in lacks

    def is_outside(path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # a descriptor, of a file that is open
        whole = os.path.realpath(os.fsdecode(path))
        return whole != os.devnull and os.path.commonpath((here, whole)) != here

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        refused = event.startswith(banned)
        if guarded and event == "open":
            refused = bool(arguments[2] & WRITES) and is_outside(arguments[0])
        elif guarded and event.startswith(CHANGES):
            relative = event != "os.truncate" and arguments[-1] >= 0  # to a folder that is open
            refused = relative or any(map(is_outside, arguments[:2]))
        if refused:
            raise PermissionError(f"{event} is not allowed here")

    return refuse


if __name__ == "__main__":
    main()
