"""One note, once for each user: a model that suits this machine better than the bundled one.

It is shown where the bundled model runs, nobody has chosen a model, and the editor can ask, or
takes an offer that needs no answer (`fimls/offerModel`). A no, also by closing it, is kept for
good; "Not now" for a month.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

from lsp_server.daemon import FILES_TIMEOUT_S, in_daemon
from lsp_server.folders import state_folder
from lsp_server.logs import log_error
from lsp_server.protocol.models.measuring import keep, measured, parse, run_doctor
from lsp_server.protocol.models.pulling import ask, can_ask, pull
from lsp_server.protocol.server import FimlsServer
from lsp_server.user_settings import read_user_settings
from model.errors import ModelError
from model.private_files import make_private_folder, write_private_file
from model.regular_files import read_text

logger = logging.getLogger(__name__)
PAUSE_S = 30.0  # from the start: the first suggestions come first
READY_POLL_S = 1.0
NO_NOTE = "FIMLS_NO_NOTE"  # set: no note, for tests and for administrators
LATER = "Not now"
MAX_ANSWER = 1024  # bytes
LATER_S = 30 * 24 * 3600.0


async def offer_model(ls: FimlsServer) -> None:
    """Measures, asks, and gets the model where the answer is yes. Raises nothing."""
    try:
        if not is_fitting(ls) or not await in_daemon(is_wanted, FILES_TIMEOUT_S):
            return
        await asyncio.sleep(PAUSE_S)
        while ls.session.status().state in ("loading", "busy"):
            await asyncio.sleep(READY_POLL_S)
        if ls.session.status().state != "ready":
            return
        report = await in_daemon(measured, FILES_TIMEOUT_S)
        if not report:
            report = found = parse(await run_doctor("--model=bundled", "--json"))
            await in_daemon(lambda: keep(found), FILES_TIMEOUT_S)
        best = report["recommendation"]
        if best is not None and is_fitting(ls) and await in_daemon(claim, FILES_TIMEOUT_S):
            await offer(ls, best["model"])
    except (ModelError, OSError) as error:
        logger.info("no larger model: %s", error)
        ls.session.report_once(str(error))
    except Exception as error:
        log_error(logger, error)


async def offer(ls: FimlsServer, name: str) -> None:
    """Asks once; if that cannot be done, another window may."""
    if ls.takes_offers:
        ls.protocol.notify("fimls/offerModel", {"name": name})
        return
    try:
        get, text = await in_daemon(lambda: wording(name), FILES_TIMEOUT_S)
        answer = await ask(ls, text, get, LATER, "Never")
    except Exception:
        await in_daemon(lambda: asked_file().unlink(missing_ok=True), FILES_TIMEOUT_S)
        raise
    if answer == LATER:
        await in_daemon(lambda: write_private_file(asked_file(), LATER.encode()), FILES_TIMEOUT_S)
    elif answer == get:
        await pull(ls, name, accepted=False)
        await ls.session.choose(name)


def wording(name: str) -> tuple[str, str]:
    """The button that gets a model, and the question."""
    from model.catalogue.download import size
    from model.catalogue.entries import find_entry
    from model.catalogue.installed import locate

    entry = find_entry(name)
    about = ""
    if locate(name) is not None:
        about = " (on this disk)"
    elif entry is not None and entry.bytes:
        about = f" ({size(entry.bytes)})"
    text = f"The model {name} suits this machine and writes better than the bundled one."
    return f"Get {name}{about}", text


def is_fitting(ls: FimlsServer) -> bool:
    """Whether the editor can ask, and works on this machine's files with the bundled model."""
    settings = ls.session.settings
    folders = [folder.uri for folder in ls.workspace.folders.values()]
    folders = folders or [ls.workspace.root_uri or "file:"]
    return (
        (ls.takes_offers or can_ask(ls))
        and settings.model == "bundled"
        and not settings.remote.url
        and settings.enabled
        and not os.environ.get(NO_NOTE)
        and all(uri.startswith("file:") for uri in folders)
    )


def asked_file() -> Path:
    return state_folder() / "asked"


def is_wanted() -> bool:
    """Whether nobody was asked yet, or said "Not now" long ago, and nobody has chosen a model."""
    stored, _ = read_user_settings()
    if stored.get("model"):
        return False
    try:
        age_s = time.time() - asked_file().stat().st_mtime
        if age_s < LATER_S or read_text(asked_file(), MAX_ANSWER) != LATER:
            return False
        asked_file().unlink()
    except FileNotFoundError:
        return True
    except (OSError, ValueError):  # it holds no answer of ours
        return False
    return True


def claim() -> bool:
    """Notes that the user is asked now; False if another window was first."""
    if not is_wanted():
        return False
    make_private_folder(state_folder())
    try:
        descriptor = os.open(asked_file(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    os.close(descriptor)
    return True
