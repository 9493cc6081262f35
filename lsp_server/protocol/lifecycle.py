"""`initialized` and changed settings. `initialize` and `shutdown` are in server.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from lsprotocol import types as lsp

from lsp_server.logs import quietly
from lsp_server.protocol.server import FimlsServer

SETTINGS_WAIT_S = 2.0  # for a client that is asked for its settings, before the engine starts


async def initialized(ls: FimlsServer, params: lsp.InitializedParams) -> None:
    pulling = asyncio.ensure_future(quietly(ls.pull_settings()))
    await asyncio.wait({pulling}, timeout=SETTINGS_WAIT_S)
    ls.session.start()


async def settings_changed(ls: FimlsServer, params: lsp.DidChangeConfigurationParams) -> None:
    if ls.can_pull_settings:
        await quietly(ls.pull_settings())
    else:
        ls.session.configure(params.settings, trusted=False)


FEATURES: dict[str, tuple[Callable[..., Any], Any]] = {
    lsp.INITIALIZED: (initialized, None),
    lsp.WORKSPACE_DID_CHANGE_CONFIGURATION: (settings_changed, None),
}
