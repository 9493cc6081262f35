"""The server of one window: made of the handlers' tables, and run over two descriptors."""

from __future__ import annotations

import asyncio
import logging

from lsp_server.engines.process import is_alive
from lsp_server.protocol import completion, edits, lifecycle, status
from lsp_server.protocol.models import commands
from lsp_server.protocol.server import FimlsServer
from lsp_server.protocol.transport import serve

logger = logging.getLogger(__name__)
PARENT_POLL_S = 0.5


def make_server() -> FimlsServer:
    server = FimlsServer()
    for module in (lifecycle, completion, edits, status):
        for method, (handler, options) in module.FEATURES.items():
            server.feature(method, options)(handler)
    for name, command in (edits.COMMANDS | commands.COMMANDS | status.COMMANDS).items():
        server.command(name)(command)
    return server


async def run(incoming: int, outgoing: int, parent: int | None = None) -> int:
    """Serves one client over two descriptors until it says so, ends, or dies. Returns the exit
    status.

    parent: the editor's process, until `initialize` names one.
    """
    server = make_server()
    server.parent = parent
    serving = asyncio.ensure_future(serve(server, incoming, outgoing))
    watching = asyncio.ensure_future(parent_gone(server))
    await asyncio.wait({serving, watching}, return_when=asyncio.FIRST_COMPLETED)
    watching.cancel()
    await server.close()
    return serving.result() if serving.done() else 1


async def parent_gone(server: FimlsServer) -> None:
    """Returns when the editor's process has ended."""
    while server.parent is None or is_alive(server.parent):
        await asyncio.sleep(PARENT_POLL_S)
    logger.info("the editor has gone")
