"""`initialized` and changed settings. `initialize` and `shutdown` are in server.py."""

from __future__ import annotations

import asyncio

from lsprotocol import types as lsp

from lsp_server.logs import quietly
from lsp_server.protocol.conversions import Handlers
from lsp_server.protocol.models.note import offer_model
from lsp_server.protocol.server import FimlsServer
from lsp_server.settings import SECTION

SETTINGS_WAIT_S = 2.0  # for the client's settings, before the engine starts


async def initialized(ls: FimlsServer, params: lsp.InitializedParams) -> None:
    pulling = asyncio.ensure_future(quietly(pull_settings(ls)))
    await asyncio.wait({pulling}, timeout=SETTINGS_WAIT_S)
    ls.session.start()
    ls.background.start(offer_model(ls))


async def settings_changed(ls: FimlsServer, params: lsp.DidChangeConfigurationParams) -> None:
    if ls.can_pull_settings:
        await quietly(pull_settings(ls))
    else:
        ls.session.configure(params.settings, trusted=False)


async def pull_settings(ls: FimlsServer) -> None:
    """Asks the client for its settings; they may be a workspace's, and so are not trusted."""
    if not ls.can_pull_settings:
        return
    item = lsp.ConfigurationItem(section=SECTION)
    values = await ls.workspace_configuration_async(lsp.ConfigurationParams(items=[item]))
    if values and values[0] is not None:
        ls.session.configure(values[0], trusted=False)


FEATURES: Handlers = {
    lsp.INITIALIZED: (initialized, None),
    lsp.WORKSPACE_DID_CHANGE_CONFIGURATION: (settings_changed, None),
}
