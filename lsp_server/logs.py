"""What goes to the log folder: lines about what happened, never the user's text."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Coroutine
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TypeVar

from lsp_server.folders import log_folder

logger = logging.getLogger(__name__)
T = TypeVar("T")
MAX_BYTES = 2**20


def log_error(logger: logging.Logger, error: BaseException) -> None:
    """One line: what kind of error, and where. Its text stays out, since it may hold the user's."""
    frames = traceback.extract_tb(error.__traceback__)[-1:]
    logger.error(
        "%s at %s",
        type(error).__name__,
        ", ".join(f"{f.filename}:{f.lineno}" for f in frames) or "?",
    )


async def quietly(work: Coroutine[Any, Any, T]) -> T | None:
    """Runs what nobody waits for or what must not fail: an error is one line in the log."""
    try:
        return await work
    except Exception as error:
        log_error(logger, error)
        return None


def engine_log() -> Path:
    """The engines' log, which they write themselves; one that has grown large makes room for a new
    one."""
    path = log_folder() / "engine.log"
    if path.exists() and path.stat().st_size > MAX_BYTES:
        path.replace(path.with_suffix(".old.log"))
    return path


def log_to_file(name: str) -> None:
    """Sends our own log to a file; to stderr where none can be written.

    pygls' is shut off: it writes whole messages, which hold the user's text; our server reports its
    errors without.
    """
    handler: logging.Handler
    try:
        handler = RotatingFileHandler(
            log_folder() / name, maxBytes=MAX_BYTES, backupCount=1, encoding="utf-8"
        )
        (log_folder() / name).chmod(0o600)
    except OSError:
        handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    )
    logging.getLogger("lsp_server").addHandler(handler)
    logging.getLogger("lsp_server").setLevel(logging.INFO)
    logging.getLogger("pygls").setLevel(logging.CRITICAL + 1)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
