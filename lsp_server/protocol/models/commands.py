"""Models, as commands of `workspace/executeCommand` (editors/PROTOCOL.md): list, choose, pull, and
the doctor's page."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException, JsonRpcInvalidParams

from lsp_server.context.locations import to_path
from lsp_server.daemon import FILES_TIMEOUT_S, in_daemon
from lsp_server.logs import log_error
from lsp_server.protocol.conversions import Commands, value_at
from lsp_server.protocol.models.measuring import keep, parse, run_doctor
from lsp_server.protocol.models.pulling import pull
from lsp_server.protocol.server import FimlsServer

logger = logging.getLogger(__name__)


async def list_models(ls: FimlsServer, *arguments: Any) -> list[dict[str, Any]]:
    """The bundled model, what else is on the disk, and what can be pulled."""
    from lsp_server.protocol.models.listing import rows

    settings = ls.session.settings
    chosen = None if settings.remote.url else settings.model
    with failures():
        return await in_daemon(lambda: rows(chosen), FILES_TIMEOUT_S)


async def choose_model(ls: FimlsServer, *arguments: Any) -> None:
    """Keeps the choice for this user and loads the model; what answers now goes on meanwhile."""
    name = name_in(arguments)
    with failures():
        await ls.session.choose(name)


async def pull_model(ls: FimlsServer, *arguments: Any) -> dict[str, str]:
    """Fetches a model, with progress that can be cancelled."""
    name = name_in(arguments)
    accepted = value_at(arguments[0], "licenceAccepted") is True
    work = asyncio.ensure_future(pull(ls, name, accepted=accepted))
    with failures(), ls.cancelled_with_request(work):
        return {"path": str(await work)}


async def doctor(ls: FimlsServer, *arguments: Any) -> dict[str, str]:
    """The doctor's page about this machine and the installation, and what it says about a file."""
    uri = value_at(arguments[0], "textDocument", "uri") if arguments else None
    path = to_path(uri) if isinstance(uri, str) else None
    places = [str(path)] if path is not None else []
    options = ("--window", "--json", "--", *places)
    work = asyncio.ensure_future(run_doctor(*options, window=ls.session.sent_settings))
    with failures(), ls.cancelled_with_request(work):
        report = parse(await work)
        try:
            await in_daemon(lambda: keep(report), FILES_TIMEOUT_S)
        except OSError as error:  # the page may say why
            log_error(logger, error)
        return {"markdown": report["markdown"]}


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """An expected error becomes the request's, with a message for the user."""
    from model.errors import ModelError

    try:
        yield
    except ModelError as error:
        raise failed(str(error)) from None
    except TimeoutError:
        raise failed("It took too long and was given up. Try again later.") from None
    except OSError as error:
        log_error(logger, error)
        raise failed(f"It did not work: {error.strerror or error}.") from None


def failed(message: str) -> JsonRpcException:
    return JsonRpcException(message, code=lsp.LSPErrorCodes.RequestFailed.value)


def name_in(arguments: tuple[Any, ...]) -> str:
    """Raises JsonRpcInvalidParams."""
    name = value_at(arguments[0], "name") if arguments else None
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise JsonRpcInvalidParams("it takes {name: string}")
    return name


COMMANDS: Commands = {
    "fimls.listModels": list_models,
    "fimls.chooseModel": choose_model,
    "fimls.pullModel": pull_model,
    "fimls.doctor": doctor,
}
