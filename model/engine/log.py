"""Log files of this user alone that several processes append to, and that do not grow for ever."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model.private_files import is_mine, make_private_folder

FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"
MAX_BYTES = 2**20
MANY = 20  # records of one kind in
WINDOW_S = 60.0


def open_log(path: Path) -> int:
    """A descriptor that appends to a log of mode 0600; its folder is made. Raises OSError, also
    where the path is a link, a FIFO, a device or another user's."""
    make_private_folder(path.parent)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or not is_mine(info):
            raise PermissionError(f"{path} is no file of this user")
        if stat.S_IMODE(info.st_mode) & 0o077:
            path.chmod(0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def visible(text: str) -> str:
    r"""A text as one line of a log: a line end is written as \n, and so are other characters that
    cannot be seen, which names of files may hold."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


class OneLine(logging.Formatter):
    """A record is one line; those of a traceback, which may quote a path, are set in under it."""

    def __init__(self) -> None:
        super().__init__(FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = visible(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"    {visible(line)}" for line in lines)


class PrivateLog(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes records into a log; a large one is renamed to NAME.old.log, and a new one begun.

    Each process that writes into it notices that another one has renamed it. descriptors: of this
    process that lead to the log; they lead to the new one afterwards, with all that is printed.
    """

    def __init__(self, path: Path, descriptors: Iterable[int]) -> None:
        self._path = path
        self._descriptors = tuple(descriptors)
        super().__init__(os.fdopen(self._descriptors[0], "a", encoding="utf-8", closefd=False))
        self.setFormatter(OneLine())
        self.addFilter(Sparing())

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # then it goes where it went
            self._turn_over()
        super().emit(record)

    def _turn_over(self) -> None:
        info = os.fstat(self._descriptors[0])
        try:
            is_there = os.path.samestat(info, self._path.stat())
        except FileNotFoundError:
            is_there = False
        if is_there and info.st_size <= MAX_BYTES:
            return
        if is_there:
            try:
                self._path.replace(self._path.with_suffix(".old.log"))
            except PermissionError:  # Windows renames no file that somebody has open
                os.ftruncate(self._descriptors[0], 0)
                return
        fresh = open_log(self._path)
        for descriptor in self._descriptors:
            os.dup2(fresh, descriptor, inheritable=descriptor <= 2)
        os.close(fresh)


class Sparing(logging.Filter):
    """Lets through MANY records of one kind in WINDOW_S seconds; then one that counts the rest.

    A kind is a text before values are put into it. What is below a warning all goes through.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[tuple[str, str], tuple[float, int]] = {}  # since when, and how many

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        kind = (record.name, str(record.msg)[:200])
        now = time.monotonic()
        since, count = self._counts.get(kind, (now, 0))
        if now - since > WINDOW_S:
            if count > MANY:
                record.msg = f"{record.msg} (and {count - MANY} like this before)"
            since, count = now, 0
        if len(self._counts) > MANY**2:  # kinds are few, unless somebody puts values into texts
            self._counts.clear()
        self._counts[kind] = (since, count + 1)
        return count < MANY
