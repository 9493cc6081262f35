"""How windows find an engine on this machine: by a name in a private folder.

NAME.sock is a Unix socket, private by its permissions. Where there are none, as on Windows, the
engine listens on a loopback port, which every user of the machine can reach: NAME.port is a private
file with the number of the port and a key that is new each time. Standard library and filelock.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from model.private_files import is_private_file, read_private_file, write_private_file

SOCKET = ".sock"
PORT = ".port"
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Address:
    port: int
    key: str


def suffix() -> str:
    """Of the names here. FIMLS_TRANSPORT=loopback chooses ports where there are sockets, too."""
    if sys.platform == "win32" or os.environ.get("FIMLS_TRANSPORT") == "loopback":
        return PORT
    return SOCKET


def engines_in(folder: Path) -> list[Path]:
    """The names that engines have in a folder; some may have ended."""
    return sorted([*folder.glob(f"*{SOCKET}"), *folder.glob(f"*{PORT}")])


def lock_of(path: Path) -> FileLock:
    """What an engine holds for its lifetime."""
    return FileLock(path.with_suffix(".lock"), mode=0o600)


def write_address(path: Path, address: Address) -> None:
    """Raises OSError."""
    content = {"port": address.port, "key": address.key}
    write_private_file(path, json.dumps(content).encode())


def read_address(path: Path) -> Address:
    """Raises OSError where no engine lives there, ValueError for what is no address.

    The lock is looked at because the port of an engine that was killed may be another user's
    program by now, which would be sent the text around the cursor.
    """
    if not is_private_file(path):
        raise PermissionError(f"{path} is open to other users")
    try:
        content = json.loads(read_private_file(path))
        address = Address(int(content["port"]), str(content["key"]))
    except (KeyError, TypeError, RecursionError):
        raise ValueError(f"{path} holds no address") from None
    lock = lock_of(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return address
    lock.release()
    raise ConnectionRefusedError(f"the engine of {path} has ended")
