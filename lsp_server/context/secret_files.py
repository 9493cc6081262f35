"""Which documents are secret: the rules of fim/secrets/ for a file's name, for the file that it
leads to, and of each `.fimlsignore` in the folders above both."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

from fim.secrets import IgnoreRules, is_secret_path
from lsp_server.context.locations import to_path
from lsp_server.daemon import in_daemon
from lsp_server.documents import Snapshot
from model.regular_files import read_bytes

IGNORE_FILE = ".fimlsignore"
MAX_BYTES = 1 << 18  # of a .fimlsignore
KEPT_S = 2.0  # a verdict, so that a changed .fimlsignore soon counts
PATIENCE_S = 2.0  # for the disk
MOST_FOLDERS = 64  # above a file
MOST = 256  # verdicts


class SecretFiles:
    """The verdicts on the documents of one window."""

    def __init__(self) -> None:
        self._verdicts: dict[str, tuple[float, bool]] = {}  # by URI, with time.monotonic()
        self._looking: dict[str, asyncio.Task[bool]] = {}  # one per document, for a dead mount

    async def checked(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot, with its field `secret` set as the disk says."""
        if snapshot.secret or not await self._is_secret(snapshot.uri):
            return snapshot
        return replace(snapshot, secret=True)

    async def _is_secret(self, uri: str) -> bool:
        path = to_path(uri)
        if path is None:
            return False
        looked, secret = self._verdicts.get(uri, (0.0, False))
        if looked and time.monotonic() - looked < KEPT_S:
            return secret
        task = self._looking.get(uri)
        if task is None:
            task = asyncio.ensure_future(in_daemon(lambda: is_secret_file(path)))
            self._looking[uri] = task
            task.add_done_callback(lambda done: self._looked(uri, done))
        done, _ = await asyncio.wait({task}, timeout=PATIENCE_S)
        return not done or task.cancelled() or task.result()

    def _looked(self, uri: str, task: asyncio.Task[bool]) -> None:
        self._looking.pop(uri, None)
        if not task.cancelled() and task.exception() is None:
            if len(self._verdicts) >= MOST:
                self._verdicts.clear()
            self._verdicts[uri] = (time.monotonic(), task.result())

    def close(self) -> None:
        for task in list(self._looking.values()):
            task.cancel()


def is_secret_file(path: Path) -> bool:
    """Whether a file is secret by its own name, or by that of the file that it leads to."""
    path = path.absolute()
    if is_secret_path(str(path)):
        return True
    if "\0" in str(path):  # no file has such a name
        return False
    try:
        real = path.resolve()
    except (OSError, RuntimeError):  # a circle of links
        return True
    return is_secret_path(str(real)) or any(map(_is_ignored, {path, real}))


def _is_ignored(path: Path) -> bool:
    for folder in islice(path.parents, MOST_FOLDERS):
        rules = _read_rules(folder / IGNORE_FILE)
        if rules is None or rules.ignores(path.relative_to(folder).as_posix()):
            return True
    return False


def _read_rules(path: Path) -> IgnoreRules | None:
    """No rules where there is no file; None for one that cannot be read."""
    try:
        return IgnoreRules.parse(read_bytes(path, MAX_BYTES).decode("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        return IgnoreRules()
    except (OSError, ValueError):  # no regular file, too large, no text
        return None
