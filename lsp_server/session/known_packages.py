"""The filter of known packages (fim/attribution.py): read from its file when it is first needed."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
from pathlib import Path

from fim import Attribution, AttributionError
from lsp_server.daemon import awaited, start_daemon
from model.regular_files import read_bytes, reason

logger = logging.getLogger(__name__)
MAX_BYTES = 2**26
READING_S = 2.0  # that suggestions wait for the file


class KnownPackages:
    """The filter in one file. Without one, suggestions are not looked up, and the log says why."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started = 0.0  # by time.monotonic()
        self._reading: Future[Attribution | None] | None = None
        self._late = False

    def start(self) -> Future[Attribution | None]:
        """Begins to read the file, unless that was begun before."""
        if self._reading is None:
            self._started = time.monotonic()
            self._reading = start_daemon(self._read)
        return self._reading

    async def read(self, left_s: float) -> Attribution | None:
        """The filter; None without one, and where the disk does not answer in so many seconds."""
        reading = self.start()
        left_s = min(left_s, self._started + READING_S - time.monotonic())
        try:
            return await awaited(reading, max(0.0, left_s))
        except TimeoutError:
            if not self._late:
                self._late = True
                self._warn("the disk does not answer")
            return None

    def _read(self) -> Attribution | None:
        try:
            return Attribution(read_bytes(self._path, MAX_BYTES))
        except FileNotFoundError:
            logger.info("suggestions are not looked up in known packages: no %s", self._path)
        except (OSError, AttributionError) as error:
            self._warn(reason(error))
        return None

    def _warn(self, why: str) -> None:
        logger.warning(
            "%s cannot be used: %s. Suggestions are not looked up in known packages; "
            "install fimls or download the model again.",
            self._path,
            why,
        )
