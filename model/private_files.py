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
SYSTEM = (0, 65534)  # root; whom a container's user does not know


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
    number = 0  # on Windows the folder for temporary files is not shared by users
    if sys.platform != "win32":
        number = os.getuid()
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


def read_private_file(path: Path) -> bytes:
    """The content of a file that nobody else can have written: a regular one of this user's, under
    one name, and no link. It is opened once. Raises NotOwned and other kinds of OSError."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a FIFO would wait
    with os.fdopen(os.open(path, flags), "rb") as file:
        info = os.fstat(file.fileno())
        if sys.platform != "win32" and not (
            stat.S_ISREG(info.st_mode)
            and is_mine(info)
            and info.st_nlink == 1
            and not info.st_mode & OTHERS_MAY_WRITE
        ):
            raise NotOwned(f"{path} is not a file that only this user can have written")
        return file.read()


def check_way(folder: Path) -> None:
    """Looks at every folder above one, also above what links on the way lead to. Raises NotOwned,
    with the remedy, where somebody else could put another folder in its place, and other kinds of
    OSError."""
    if sys.platform == "win32":
        return
    absolute = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() follows links
    for place in {*absolute.parents, *folder.resolve().parents}:
        info = place.lstat()
        # A link can be changed by whoever can write to its folder, which is looked at, too.
        if stat.S_ISLNK(info.st_mode):
            continue
        if not is_mine(info) and info.st_uid not in SYSTEM:
            raise NotOwned(f"{place} belongs to another user, who could exchange {folder}")
        others_write = info.st_mode & OTHERS_MAY_WRITE
        if others_write == stat.S_IWGRP and _is_own_group(info.st_gid):
            continue
        if others_write and not info.st_mode & stat.S_ISVTX:
            raise NotOwned(
                f"others can write to {place}, and so exchange {folder}. Close it: "
                f"chmod go-w '{place}'"
            )


def _is_own_group(number: int) -> bool:
    """Whether a group is the one that many systems make for each user, with the same name."""
    if sys.platform == "win32":
        return True
    import grp
    import pwd

    try:
        return grp.getgrgid(number).gr_name == pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return False


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
