"""Counts of the windows' sessions, kept on this machine for `fimls status`: numbers, and never a
word of the text."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lsp_server.engines.process import is_alive
from lsp_server.folders import state_folder
from model.private_files import write_private_file

logger = logging.getLogger(__name__)
KEPT = 200  # sessions


@dataclass(slots=True)
class Counts:
    """How often, in suggestions. Each is counted once in a column, however often it was answered
    again."""

    shown: int = 0
    accepted: int = 0  # the whole text, at once or by parts
    partly_accepted: int = 0  # a word or a line of it
    typed_through: int = 0  # the user typed the whole text

    def to_json(self) -> dict[str, int]:
        return {
            "shown": self.shown,
            "accepted": self.accepted,
            "partlyAccepted": self.partly_accepted,
            "typedThrough": self.typed_through,
        }

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            *(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True))
        )


@dataclass(frozen=True, slots=True)
class SessionUsage:
    """What a window's file holds. started: seconds since 1970; client: as the editor calls
    itself."""

    started: float
    pid: int
    client: str
    model: str
    counts: Counts
    closed: bool = False  # the window said so; one that was killed did not

    @property
    def is_open(self) -> bool:
        return not self.closed and is_alive(self.pid)

    def to_json(self) -> dict[str, Any]:
        """As in the file, and whether the window is still there."""
        return {
            "started": self.started,
            "pid": self.pid,
            "client": self.client,
            "model": self.model,
            "open": self.is_open,
            "counts": self.counts.to_json(),
        }


def usage_folder() -> Path:
    return state_folder() / "sessions"


class UsageFile:
    """A session's own file; written whole, and made with the first count."""

    def __init__(self) -> None:
        self._started = time.time()
        self._written: dict[str, Any] = {}
        self._given_up = False

    def write(self, counts: Counts, *, client: str, model: str, closed: bool = False) -> None:
        """Never raises: where nothing can be written, nothing is kept."""
        value = {
            "started": round(self._started, 3),
            "pid": os.getpid(),
            "client": client,
            "model": model,
            "counts": counts.to_json(),
            "closed": closed,
        }
        if self._given_up or value == self._written or counts == Counts():
            return
        try:
            folder = usage_folder()
            if not self._written:
                for old in sorted(folder.glob("*.json"))[: 1 - KEPT]:
                    old.unlink(missing_ok=True)
            path = folder / f"{self._started:.3f}-{os.getpid()}.json"
            write_private_file(path, json.dumps(value).encode())
        except OSError as error:
            self._given_up = True
            logger.warning("the session's counts cannot be kept: %s", error.strerror)
        self._written = value


def read_usage() -> list[SessionUsage]:
    """The kept sessions, the oldest first; a file that is not whole counts as none, and so does a
    closed folder."""
    try:
        files = sorted(usage_folder().glob("*.json"))
    except OSError:
        return []
    found = []
    for file in files:
        with contextlib.suppress(
            OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError
        ):
            found.append(to_usage(json.loads(file.read_bytes())))
    return found


def to_usage(value: dict[str, Any]) -> SessionUsage:
    """Raises ValueError, KeyError, TypeError or OverflowError for what we did not write."""
    started, pid, counts = float(value["started"]), int(value["pid"]), value["counts"]
    time.localtime(started)
    if not 0 < pid < 2**31:
        raise ValueError("no process")
    return SessionUsage(
        started,
        pid,
        str(value["client"]),
        str(value["model"]),
        Counts(*(int(counts[name]) for name in Counts().to_json())),
        bool(value.get("closed")),
    )


def summary(sessions: list[SessionUsage]) -> list[str]:
    """For a person: a line for each open window, and one for all that are kept."""
    if not sessions:
        return ["nothing was suggested yet"]
    lines = []
    for session in sessions:
        if session.is_open:
            since = time.strftime("%H:%M", time.localtime(session.started))
            lines.append(
                f"{session.client or 'an editor'} since {since}, {session.model}: "
                f"{in_words(session.counts)}"
            )
    first = time.strftime("%Y-%m-%d", time.localtime(sessions[0].started))
    total = sum((session.counts for session in sessions), Counts())
    lines.append(f"{len(sessions)} sessions since {first}: {in_words(total)}")
    return lines


def in_words(counts: Counts) -> str:
    share = f" ({counts.accepted / counts.shown:.0%})" if counts.shown else ""
    return (
        f"{counts.shown} shown, {counts.accepted} accepted{share}, {counts.partly_accepted} in "
        "part, "
        f"{counts.typed_through} typed through"
    )
