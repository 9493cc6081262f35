"""Reading files that others may have made, without waiting: regular files of a limited size only.

A FIFO would wait for a writer, and a device has no end.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

CHUNK = 2**20  # bytes; as much memory is taken, however small the file
MAX_TEXT = 2**26  # bytes of tokenizer.json and smaller ones; the largest known has 2**25


class NotRegular(OSError):
    """Something else than a regular file has the path, or one that is too large."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EINVAL, reason, str(path))

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


def check_regular(path: Path, most: int | None = None) -> None:
    """Raises NotRegular for anything else than a regular file of at most so many bytes, and other
    kinds of OSError."""
    _check(path, path.stat(), most)


def open_regular(path: Path, most: int | None = None) -> int:
    """A descriptor that reads a file for which `check_regular` raises nothing. Raises OSError."""
    check_regular(path, most)  # first: to open a device may do something
    # Without waiting, and looked at again, since something else may have the path by now.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        _check(path, os.fstat(descriptor), most)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a file of at most so many bytes. Raises OSError."""
    chunks = []
    left = most
    with os.fdopen(open_regular(path, most), "rb") as file:
        while chunk := file.read(min(CHUNK, left + 1)):
            chunks.append(chunk)
            left -= len(chunk)
            if left < 0:  # it grows meanwhile
                raise _too_large(path, most - left, most)
    return b"".join(chunks)


def read_text(path: Path, most: int = MAX_TEXT) -> str:
    """The text of a small file, line ends as they are. Raises OSError, UnicodeDecodeError."""
    return read_bytes(path, most).decode("utf-8")


def reason(error: Exception) -> str:
    """What an error says, without the path that it may name: for messages that begin with it."""
    return str(getattr(error, "strerror", None) or error)


def _check(path: Path, status: os.stat_result, most: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotRegular(path, "it is not a regular file")
    if most is not None and status.st_size > most:
        raise _too_large(path, status.st_size, most)


def _too_large(path: Path, size: int, most: int) -> NotRegular:
    text = f"it has {size:,} bytes, more than the {most:,} that such a file may have"
    return NotRegular(path, text)
