"""Work-done progress of the client, with a cancel of the user's."""

from __future__ import annotations

import concurrent.futures
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from lsprotocol import types as lsp

from lsp_server.protocol.server import FimlsServer

Report = Callable[[lsp.WorkDoneProgressReport], None]


@asynccontextmanager
async def cancellable_progress(
    ls: FimlsServer, kind: str, begin: lsp.WorkDoneProgressBegin, on_cancel: Callable[[], object]
) -> AsyncIterator[Report]:
    """Shows progress while the block runs, in a client that can (`can_show_progress`). The token is
    fimls-KIND-… ."""
    token = f"fimls-{kind}-{uuid.uuid4()}"
    progress = ls.work_done_progress
    # Known before the client is: its cancel may come at once.
    cancel = concurrent.futures.Future[Any]()
    cancel.add_done_callback(lambda _: on_cancel())
    progress.tokens[token] = cancel
    try:
        await ls.window_work_done_progress_create_async(lsp.WorkDoneProgressCreateParams(token))
        progress.begin(token, begin)
        yield lambda report: progress.report(token, report)
        progress.end(token, lsp.WorkDoneProgressEnd())
    finally:
        del progress.tokens[token]
