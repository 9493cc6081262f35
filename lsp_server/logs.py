"""The log files. They say what happened and never hold the user's text."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from lsp_server.folders import log_folder
from model.engine.log import OneLine, PrivateLog, open_log

logger = logging.getLogger(__name__)
T = TypeVar("T")


def log_error(logger: logging.Logger, error: BaseException) -> None:
    """Logs the kind of error and its place in one line. Its message may hold the user's text."""
    place = "?"
    for frame in traceback.extract_tb(error.__traceback__)[-1:]:
        place = f"{frame.filename}:{frame.lineno}"
    logger.error("%s at %s", type(error).__name__, place)


async def quietly(work: Coroutine[Any, Any, T]) -> T | None:
    """Awaits a coroutine; an error becomes one line in the log, and the result None."""
    try:
        return await work
    except Exception as error:
        log_error(logger, error)
        return None


def engine_log() -> Path:
    """The path of the engines' log, which they write."""
    return log_folder() / "engine.log"


def log_to_file(name: str) -> None:
    """Sends our own log to a file; to stderr where none can be written.

    The logs of pygls and asyncio are shut off, because they hold whole messages, and so the user's
    text. Our server reports their errors without it.
    """
    logging.getLogger("lsp_server").addHandler(handler_for(log_folder() / name))
    logging.getLogger("lsp_server").setLevel(logging.INFO)
    logging.getLogger("pygls").setLevel(logging.CRITICAL + 1)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)


def handler_for(path: Path) -> logging.Handler:
    """What writes into a file, or to stderr where that cannot be written."""
    try:
        return PrivateLog(path, [open_log(path)])
    except OSError:
        handler = logging.StreamHandler()
        handler.setFormatter(OneLine())
        return handler
