"""The folders of fimls: settings, caches, counts, logs and sockets.

Each is platformdirs' folder unless an environment variable names another. platformdirs is imported
only where it is needed, because this module is among the first that `fimls lsp` loads.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from model.private_files import NotOwned, make_private_folder, own_private_folder

MAX_SOCKET_PATH = 100  # bytes; the system's limit is 104 to 108


def cache_folder() -> Path:
    """Compiled code, computed prompts, and how fast kernels are; FIMLS_CACHE_DIR."""
    if chosen := os.environ.get("FIMLS_CACHE_DIR"):
        return Path(chosen)
    import platformdirs

    return platformdirs.user_cache_path("fimls", appauthor=False)


def config_folder() -> Path:
    """The user's settings file; FIMLS_CONFIG_DIR."""
    if chosen := os.environ.get("FIMLS_CONFIG_DIR"):
        return Path(chosen)
    import platformdirs

    return platformdirs.user_config_path("fimls", appauthor=False)


def state_folder() -> Path:
    """The counts of sessions, and what was asked once; FIMLS_STATE_DIR."""
    if chosen := os.environ.get("FIMLS_STATE_DIR"):
        return Path(chosen)
    import platformdirs

    return platformdirs.user_state_path("fimls", appauthor=False)


def log_folder() -> Path:
    """The logs; FIMLS_LOG_DIR. The folder is made. Raises OSError where that fails."""
    if chosen := os.environ.get("FIMLS_LOG_DIR"):
        folder = Path(chosen)
    else:
        import platformdirs

        folder = platformdirs.user_log_path("fimls", appauthor=False)
    make_private_folder(folder)
    return folder


def runtime_folder() -> Path:
    """The sockets; FIMLS_RUNTIME_DIR. The folder is made. Only this user can enter it, and its path
    is short enough for a socket's. Raises OSError."""
    if chosen := os.environ.get("FIMLS_RUNTIME_DIR"):
        folder = Path(chosen)
    elif session := os.environ.get("XDG_RUNTIME_DIR"):
        folder = Path(session) / "fimls"
    else:
        import platformdirs

        folder = platformdirs.user_cache_path("fimls", appauthor=False) / "run"
    if len(os.fsencode(folder)) > MAX_SOCKET_PATH - len("/123456789012.sock"):
        folder = Path(tempfile.gettempdir()) / f"fimls-{user_number()}"
    try:
        own_private_folder(folder)
    except NotOwned:
        raise NotOwned(
            f"{folder} belongs to someone else; set FIMLS_RUNTIME_DIR to a folder of your own"
        ) from None
    return folder


def user_number() -> str:
    """Tells users apart in a shared folder for temporary files; on Windows it is not shared."""
    if sys.platform == "win32":
        return "0"
    return str(os.getuid())
