"""What every way of fetching needs: progress, stopping, free disk, locks and checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.errors import ModelError
from model.private_files import make_private_folder
from model.regular_files import open_regular

Stage = Literal["asking", "waiting", "fetching", "checking"]
CHUNK = 2**18  # bytes
SPARE = 2**28  # bytes that a pull leaves free
LOCK_POLL_S = 0.1
SHA256 = re.compile(r"[0-9a-f]{64}")
GIT_SHA1 = re.compile(r"[0-9a-f]{40}")


class Stopped(ModelError):
    """The user stopped it. What was fetched is kept."""

    def __init__(self) -> None:
        super().__init__("Stopped. What was fetched is kept; run it again to go on from there.")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pull is. `waiting`: another one fetches the same; `checking`: checksums."""

    stage: Stage
    file: str = ""
    done: int = 0  # bytes
    total: int | None = None  # bytes


class Job:
    """What the thread that fetches shares with the one that waits for it."""

    def __init__(self) -> None:
        self.progress = Progress("asking")
        self._stop = threading.Event()

    def report(self, progress: Progress) -> None:
        """Raises Stopped."""
        self.progress = progress
        self.check()

    def check(self) -> None:
        """Raises Stopped."""
        if self._stop.is_set():
            raise Stopped

    def pause(self, seconds: float) -> None:
        """Raises Stopped."""
        self._stop.wait(seconds)
        self.check()

    def stop(self) -> None:
        self._stop.set()


@contextlib.contextmanager
def locked(path: Path, job: Job) -> Iterator[None]:
    """Holds a lock that one process has at a time; waits for it. Raises Stopped, OSError."""
    from filelock import FileLock, Timeout

    make_private_folder(path.parent)
    lock = FileLock(path, mode=0o600)
    while True:
        try:
            lock.acquire(timeout=LOCK_POLL_S)
            break
        except Timeout:
            job.report(Progress("waiting"))
    try:
        yield
    finally:
        lock.release()


def need_space(folder: Path, missing: int) -> None:
    """Raises ModelError where the disk has no room for so many bytes more."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if missing and free < missing + SPARE:
        raise ModelError(
            f"{folder} has {size(free)} free, and {size(missing)} have to be fetched. Make room, "
            "or name another disk: HF_HOME for the hub's cache, FIMLS_DATA_DIR for the rest."
        )


@contextlib.contextmanager
def explain_disk(path: Path) -> Iterator[None]:
    """Turns an error of the disk into a ModelError. What was written stays."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ModelError(
                f"The disk of {path.parent} is full. What was fetched is kept: make room and run "
                "it again, it goes on from there."
            ) from None
        if error.errno is None:  # of a connection, not of the disk
            raise
        raise ModelError(
            f"{path} cannot be written ({error.strerror}). See to the folder, or name another: "
            "HF_HOME for the hub's cache, FIMLS_DATA_DIR for the rest."
        ) from None


def has_checksum(path: Path, checksum: str, job: Job) -> bool:
    """Whether a file has a SHA-256, or git's SHA-1 of a blob. Raises Stopped, OSError."""
    total = path.stat().st_size
    digest = hashlib.sha256()
    if GIT_SHA1.fullmatch(checksum):
        digest = hashlib.sha1(b"blob %d\0" % total, usedforsecurity=False)
    done = 0
    with os.fdopen(open_regular(path), "rb") as raw:
        while chunk := raw.read(2**22):
            digest.update(chunk)
            done += len(chunk)
            job.report(Progress("checking", path.name, done, total))
    return digest.hexdigest() == checksum


def size(count: int) -> str:
    """Bytes for a person."""
    if count >= 10**9:
        return f"{count / 1e9:.1f} GB"
    if count >= 10**6:
        return f"{count / 1e6:.0f} MB"
    return f"{count / 1e3:.0f} kB"
