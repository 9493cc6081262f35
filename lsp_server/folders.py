"""The folders of fimls: settings, caches, counts, logs and sockets.

Each is platformdirs' folder unless an environment variable names another; for a user without a home
it lies below the folder for temporary files. platformdirs is imported only where it is needed,
because this module is among the first that `fimls lsp` loads.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from model.private_files import NotOwned, own_private_folder, temporary_folder

MAX_SOCKET_PATH = 100  # bytes; the system's limit is 104 to 108
NO_FOLDER = Path(os.devnull)  # in which no file can be made


def cache_folder() -> Path:
    """Compiled code, computed prompts, and how fast kernels are; FIMLS_CACHE_DIR. Raises OSError
    for a user without a home whose folder for temporary files is someone else's."""
    return _chosen("cache") or _usual("cache")


def config_folder() -> Path:
    """The user's settings file; FIMLS_CONFIG_DIR. Raises OSError as `cache_folder`."""
    return _chosen("config") or _usual("config")


def state_folder() -> Path:
    """The counts of sessions, and what was asked once; FIMLS_STATE_DIR. Raises OSError as
    `cache_folder`."""
    return _chosen("state") or _usual("state")


def log_folder() -> Path:
    """The logs; FIMLS_LOG_DIR. Raises nothing: a log is not worth an error."""
    with contextlib.suppress(OSError):
        return _chosen("log") or _usual("log")
    return NO_FOLDER


def runtime_folder() -> Path:
    """The sockets; FIMLS_RUNTIME_DIR. The folder is made. Only this user can enter it, and its path
    is short enough for a socket's. Raises OSError, which names the remedy."""
    if (chosen := _chosen("runtime")) is None:
        for folder in _for_sockets():
            with contextlib.suppress(OSError):
                if _is_short(folder):
                    own_private_folder(folder)
                    return folder
    elif _is_short(chosen):
        try:
            own_private_folder(chosen)
        except NotOwned:
            raise NotOwned(
                f"{chosen} belongs to someone else; set FIMLS_RUNTIME_DIR to a folder of your own"
            ) from None
        except OSError as error:
            raise OSError(
                f"{chosen} cannot be made ({error.strerror}); set FIMLS_RUNTIME_DIR to a folder of "
                "your own"
            ) from None
        return chosen
    return temporary_folder()


def _chosen(kind: str) -> Path | None:
    chosen = os.environ.get(f"FIMLS_{kind.upper()}_DIR")
    return Path(chosen) if chosen else None


def _usual(kind: str) -> Path:
    import platformdirs

    try:
        folder: Path = getattr(platformdirs, f"user_{kind}_path")("fimls", appauthor=False)
    except RuntimeError:  # no home
        return temporary_folder() / kind
    return folder


def _for_sockets() -> Iterator[Path]:
    """The usual places, the best first. The first may be another user's after `su`."""
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(session) / "fimls"
    yield _usual("cache") / "run"


def _is_short(folder: Path) -> bool:
    return len(os.fsencode(folder)) <= MAX_SOCKET_PATH - len("/123456789012.sock")
