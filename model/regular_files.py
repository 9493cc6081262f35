"""Reading the files of a model without waiting: regular files of a limited size only."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from model.errors import ModelError

MAX_TEXT = 256 * 2**20  # bytes of config.json, tokenizer.json and other small files


def check_regular(path: Path, most: int | None = None) -> None:
    """Raises ModelError for anything else than a regular file of at most so many bytes.

    A FIFO would wait for a writer, and a device has no end. FileNotFoundError and other kinds of
    OSError pass through.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path} is not a regular file. Download the model again.")
    if most is not None and status.st_size > most:
        raise ModelError(
            f"{path} has {status.st_size:,} bytes, more than the {most:,} that such a file may "
            "have. Download the model again."
        )


def open_regular(path: Path, most: int | None = None) -> int:
    """A descriptor that reads a file for which `check_regular` raises nothing."""
    check_regular(path, most)
    # Opened without waiting, since the path may have become a FIFO after the check.
    return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))


def read_text(path: Path) -> str:
    """The text of a small file. Raises ModelError, OSError, UnicodeDecodeError."""
    with os.fdopen(open_regular(path, MAX_TEXT), encoding="utf-8") as file:
        return file.read(MAX_TEXT)
