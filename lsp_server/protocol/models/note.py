"""One note, once for each user: a model that suits this machine better than the bundled one.

It is shown where the bundled model runs, nobody has chosen a model, and the editor can ask. A no,
also by closing it, is kept for good; before any answer it is taken for one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os

from lsp_server.daemon import in_daemon
from lsp_server.folders import state_folder
from lsp_server.logs import log_error
from lsp_server.protocol.models.commands import FILES_TIMEOUT_S, measurements_file, run_doctor
from lsp_server.protocol.models.pulling import ask, pull
from lsp_server.protocol.server import FimlsServer
from lsp_server.user_settings import read_user_settings
from model.errors import ModelError
from model.private_files import write_private_file

logger = logging.getLogger(__name__)
PAUSE_S = 30.0  # from the start: the first suggestions come first
NO_NOTE = "FIMLS_NO_NOTE"  # set: no note, for tests and for administrators


async def offer_model(ls: FimlsServer) -> None:
    """Measures, asks, and gets the model where the answer is yes. Raises nothing."""
    try:
        if not can_ask(ls) or not await in_daemon(is_wanted, FILES_TIMEOUT_S):
            return
        await asyncio.sleep(PAUSE_S)
        if ls.session.status().state not in ("ready", "busy"):
            return
        report = json.loads(await run_doctor("bundled", "--json"))
        best = report["recommendation"]
        if best is None or not await in_daemon(lambda: keep(report), FILES_TIMEOUT_S):
            return
        name = best["model"]
        await ask_and_get(ls, name)
    except (ModelError, OSError) as error:
        logger.info("no larger model: %s", error)
        ls.session.report_once(str(error))
    except Exception as error:
        log_error(logger, error)


async def ask_and_get(ls: FimlsServer, name: str) -> None:
    from model.catalogue.download import size
    from model.catalogue.entries import find_entry

    entry = find_entry(name)
    known = f" ({size(entry.bytes)})" if entry is not None and entry.bytes else ""
    get = f"Get {name}{known}"
    text = f"The model {name} suits this machine and writes better than the bundled one."
    if await ask(ls, text, get, "Not now", "Never") == get:
        await pull(ls, name, accepted=False)
        await ls.session.choose(name)


def can_ask(ls: FimlsServer) -> bool:
    """Whether the editor can ask, and works on this machine's files with the bundled model."""
    window = ls.client_capabilities.window
    settings = ls.session.settings
    folders = [folder.uri for folder in ls.workspace.folders.values()]
    folders = folders or [ls.workspace.root_uri or "file:"]
    return (
        window is not None
        and window.show_message is not None
        and settings.model == "bundled"
        and not settings.remote.url
        and settings.enabled
        and not os.environ.get(NO_NOTE)
        and all(uri.startswith("file:") for uri in folders)
    )


def is_wanted() -> bool:
    """Whether nobody was asked yet and nobody has chosen a model."""
    stored, _ = read_user_settings()
    return "model" not in stored and not (state_folder() / "asked").exists()


def keep(report: object) -> bool:
    """Keeps what was measured, and that the user was asked; False if another window was first."""
    write_private_file(measurements_file(), json.dumps(report).encode())
    try:
        descriptor = os.open(state_folder() / "asked", os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    os.close(descriptor)
    return True
