"""How many suggestions each window showed and how many were accepted, for `fimls status`.

Every window writes its counts to a file of its own on this machine. The files hold numbers and the
names of the editor and the model, never any of the user's text.
"""

from __future__ import annotations

import contextlib
import json
import logging
import operator
import os
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from lsp_server.engines.process import is_alive
from lsp_server.folders import state_folder
from model.private_files import write_private_file
from model.regular_files import read_text

logger = logging.getLogger(__name__)
KEPT_SESSIONS = 200
MAX_BYTES = 2**16  # of a file


@dataclass(slots=True)
class Counts:
    """Numbers of suggestions. A suggestion that is answered again is not counted again."""

    shown: int = 0
    accepted: int = 0  # the whole text, at once or in parts
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
        return Counts(*map(operator.add, astuple(self), astuple(other)))

    def __str__(self) -> str:
        accepted = f"{self.accepted} accepted"
        if self.shown:
            accepted += f" ({self.accepted / self.shown:.0%})"
        return (
            f"{self.shown} shown, {accepted}, {self.partly_accepted} in part, "
            f"{self.typed_through} typed through"
        )


@dataclass(frozen=True, slots=True)
class SessionUsage:
    """The content of one window's file."""

    started: float  # seconds since 1970
    pid: int
    client: str  # the editor's name for itself
    model: str
    counts: Counts
    closed: bool = False  # stays False where the window was killed

    @property
    def is_open(self) -> bool:
        return not self.closed and is_alive(self.pid)

    def to_json(self) -> dict[str, Any]:
        """The fields that the file and `fimls status --json` share."""
        return {
            "started": self.started,
            "pid": self.pid,
            "client": self.client,
            "model": self.model,
            "counts": self.counts.to_json(),
        }


def usage_folder() -> Path:
    return state_folder() / "sessions"


class UsageFile:
    """The file of this window's counts; the first count makes it, each change replaces it."""

    def __init__(self) -> None:
        self._started = time.time()
        self._written: dict[str, Any] = {}
        self._given_up = False

    def write(self, counts: Counts, *, client: str, model: str, closed: bool = False) -> None:
        """Writes the counts if they changed. Never raises; after a failure it writes no more."""
        started = round(self._started, 3)
        usage = SessionUsage(started, os.getpid(), client, model, counts)
        value = usage.to_json() | {"closed": closed}
        if self._given_up or value == self._written or counts == Counts():
            return
        try:
            if not self._written:  # makes room for one more file
                for path in sorted(usage_folder().glob("*.json"))[: 1 - KEPT_SESSIONS]:
                    path.unlink(missing_ok=True)
            path = usage_folder() / f"{self._started:.3f}-{os.getpid()}.json"
            write_private_file(path, json.dumps(value).encode())
        except OSError as error:
            self._given_up = True
            logger.warning("the session's counts cannot be kept: %s", error.strerror)
        self._written = value


def read_usage() -> list[SessionUsage]:
    """The kept sessions, the oldest first. Files that cannot be read or parsed are left out."""
    sessions = []
    with contextlib.suppress(OSError):
        for path in sorted(usage_folder().glob("*.json")):
            with contextlib.suppress(
                OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError
            ):
                sessions.append(_parse_session(read_text(path, MAX_BYTES)))
    return sessions


def _parse_session(content: str) -> SessionUsage:
    """The usage in a file. Raises ValueError, KeyError, TypeError, OverflowError or RecursionError
    if it is not one of ours."""
    value = json.loads(content)
    started = float(value["started"])
    time.localtime(started)  # raises where `summary` could not show it
    pid = int(value["pid"])
    if not 0 < pid < 2**31:
        raise ValueError("no process has this id")
    counts = value["counts"]
    return SessionUsage(
        started,
        pid,
        client=str(value["client"]),
        model=str(value["model"]),
        counts=Counts(*(int(counts[name]) for name in Counts().to_json())),
        closed=bool(value.get("closed")),
    )


def summary(sessions: list[SessionUsage]) -> list[str]:
    """Lines for a person: one for each open window, and one for all the kept sessions."""
    if not sessions:
        return ["nothing was suggested yet"]
    lines = []
    total = Counts()
    for session in sessions:
        total += session.counts
        if session.is_open:
            client = session.client or "an editor"
            since = time.strftime("%H:%M", time.localtime(session.started))
            lines.append(f"{client} since {since}, {session.model}: {session.counts}")
    first = time.strftime("%Y-%m-%d", time.localtime(sessions[0].started))
    lines.append(f"{len(sessions)} sessions since {first}: {total}")
    return lines
