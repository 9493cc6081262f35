"""Fetches a model for a window: asks about its licence, shows progress that can be cancelled."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from lsprotocol import types as lsp

from lsp_server.daemon import in_daemon
from lsp_server.logs import quietly
from lsp_server.protocol.progress import cancellable_progress
from lsp_server.protocol.server import FimlsServer

POLL_S = 0.2
STOP_S = 2.0  # until a pull that was told to stop has stopped
ACCEPT = "Accept the licence"


async def pull(ls: FimlsServer, name: str, *, accepted: bool) -> Path:
    """The model on the disk. Asks about a licence with conditions. Raises ModelError."""
    from model.catalogue.download import LicenceNotAccepted

    licence = ""
    while True:
        try:
            return await fetch(ls, name, licence)
        except LicenceNotAccepted as question:
            terms = question.licence
            if licence or not (accepted or await is_accepted(ls, name, terms.name, terms.url)):
                raise
            licence = terms.name


async def is_accepted(ls: FimlsServer, name: str, licence: str, url: str) -> bool:
    if not can_ask(ls):
        return False
    where = f" ({url})" if url else ""
    text = f"{name} comes under the licence {licence}{where}. Have you read it?"
    return await ask(ls, text, ACCEPT, "Cancel") == ACCEPT


def can_ask(ls: FimlsServer) -> bool:
    window = ls.client_capabilities.window
    return window is not None and window.show_message is not None


async def ask(ls: FimlsServer, text: str, *answers: str) -> str | None:
    """What the user chooses; None where the question is closed."""
    actions = [lsp.MessageActionItem(title) for title in answers]
    params = lsp.ShowMessageRequestParams(lsp.MessageType.Info, f"fimls: {text}", actions)
    chosen = await ls.window_show_message_request_async(params)
    return chosen.title if chosen is not None else None


async def fetch(ls: FimlsServer, name: str, licence: str) -> Path:
    """Raises ModelError. When it is cancelled it stops the work."""
    from model.catalogue.download import Progress, pull

    stop = threading.Event()
    newest: list[Progress] = []

    def work() -> Path:
        return pull(name, progress=newest.append, should_stop=stop.is_set, accepted=licence)

    fetching = asyncio.ensure_future(in_daemon(work))
    showing = asyncio.ensure_future(quietly(show_progress(ls, name, fetching, newest, stop)))
    try:
        await asyncio.wait({fetching})
        return fetching.result()
    finally:
        stop.set()
        await asyncio.wait({fetching}, timeout=STOP_S)
        if not fetching.cancel() and not fetching.cancelled():
            fetching.exception()  # or asyncio would say that nobody took it
        await asyncio.wait({showing}, timeout=POLL_S)
        showing.cancel()  # it still waits for the client


async def show_progress(
    ls: FimlsServer,
    name: str,
    work: asyncio.Future[Any],
    newest: list[Any],
    stop: threading.Event,
) -> None:
    """A percentage until the work ends; the user's cancel sets `stop`."""
    from model.catalogue.download import size

    if not ls.can_show_progress:
        return
    title = f"fimls: getting {name}"
    begin = lsp.WorkDoneProgressBegin(title=title, cancellable=True, percentage=0)
    async with cancellable_progress(ls, "pull", begin, stop.set) as report:
        while not (await asyncio.wait({work}, timeout=POLL_S))[0]:
            last = newest[-1] if newest else None
            del newest[:]
            if last is not None and last.total:
                share = min(100, round(100 * last.done / last.total))
                text = f"{last.stage} {size(last.done)} of {size(last.total)}"
                report(lsp.WorkDoneProgressReport(percentage=share, message=text))
