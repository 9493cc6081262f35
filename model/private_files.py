"""Folders and files that belong to this user alone.

On Linux and macOS the owner and the mode of a file say who may use it. Windows keeps neither: there
every file counts as the user's own, because the folders of a user's profile are closed to others.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

OTHERS_MAY_WRITE = 0o022
OTHERS_MAY_ANYTHING = 0o077


class NotOwned(PermissionError):
    """Something else than a folder of this user has the path."""


def make_private_folder(path: Path) -> None:
    """Makes a folder, and each parent that is missing, with mode 0700. An existing one keeps its
    mode. Raises OSError."""
    # The `parents` of Path.mkdir would be open to others.
    for folder in reversed((path, *path.parents)):
        folder.mkdir(mode=0o700, exist_ok=True)


def own_private_folder(path: Path) -> None:
    """Makes a folder, or closes an existing one to others (mode 0700).

    Raises NotOwned where the path is a link or another user's folder, and other kinds of OSError.
    """
    make_private_folder(path)
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or not is_mine(info):
        raise NotOwned(f"{path} is not a folder of this user")
    if info.st_mode & OTHERS_MAY_ANYTHING:
        path.chmod(0o700)


def temporary_folder() -> Path:
    """This user's own folder below the one for temporary files, which is made: in place of a home.
    Raises NotOwned and other kinds of OSError, which name the remedy."""
    # On Windows the folder for temporary files is not shared by users.
    number = 0 if sys.platform == "win32" else os.getuid()
    try:
        folder = Path(tempfile.gettempdir()) / f"fimls-{number}"
        own_private_folder(folder)
    except NotOwned as error:
        raise NotOwned(f"{error}; set HOME or TMPDIR to a folder of your own") from None
    except OSError as error:
        raise OSError(
            f"no folder for temporary files can be used ({error.strerror}); set HOME or TMPDIR to "
            "a folder of your own"
        ) from None
    return folder


def is_private_folder(path: Path) -> bool:
    """Whether the path is a folder of this user in which nobody else can have written. Raises
    OSError where nothing has the path."""
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or not is_mine(info):
        return False
    return sys.platform == "win32" or not info.st_mode & OTHERS_MAY_WRITE


def is_private_file(path: Path) -> bool:
    """Whether the path is a file that only this user may read or write, and no link. Raises OSError
    where nothing has the path."""
    info = path.lstat()
    if not stat.S_ISREG(info.st_mode) or not is_mine(info):
        return False
    return sys.platform == "win32" or not info.st_mode & OTHERS_MAY_ANYTHING


def is_mine(info: os.stat_result) -> bool:
    """Whether a file belongs to this user; always true on Windows."""
    if sys.platform == "win32":
        return True
    return info.st_uid == os.getuid()


def write_private_file(path: Path, content: bytes) -> None:
    """Writes a private file as a whole. Raises OSError, and then leaves the old file as it was."""
    with new_private_file(path) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def new_private_file(path: Path) -> Iterator[Path]:
    """An empty file of mode 0600 to write to. It takes the path's place at the end, so a reader
    sees the old content or all of the new; after an error the old file stays.

    Makes the folder if it is missing. Raises OSError.
    """
    make_private_folder(path.parent)
    descriptor, name = tempfile.mkstemp(".tmp", dir=path.parent)  # its mode is 0600
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
