"""Models, as commands of `workspace/executeCommand` (editors/PROTOCOL.md): list, choose, pull, and
the doctor's page."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException, JsonRpcInvalidParams

from lsp_server.daemon import in_daemon
from lsp_server.folders import state_folder
from lsp_server.logs import log_error
from lsp_server.protocol.conversions import Commands, value_at
from lsp_server.protocol.models.pulling import pull
from lsp_server.protocol.server import FimlsServer

logger = logging.getLogger(__name__)
FILES_TIMEOUT_S = 60.0
DOCTOR_TIMEOUT_S = 180.0


async def list_models(ls: FimlsServer, *arguments: Any) -> list[dict[str, Any]]:
    """The bundled model, what else is on the disk, and what can be pulled."""
    return await in_daemon(lambda: rows(ls.session.settings.model), FILES_TIMEOUT_S)


def rows(chosen: str) -> list[dict[str, Any]]:
    from model.catalogue.entries import Entry, entries
    from model.catalogue.installed import find_all

    times = measured_times()

    def row(name: str, size: int | None, entry: Entry | None, *, here: bool) -> dict[str, Any]:
        found = times.get(entry.name, {}) if entry else {}
        return {
            "name": name,
            "here": here,
            "chosen": name == chosen,
            "bytes": size,
            "memoryBytes": found.get("memory_bytes") or (entry.parameters if entry else None),
            "licence": entry.licence.name if entry else "",
            "asksLicence": bool(entry and entry.licence.ask and not here),
            "languages": entry.languages if entry else "",
            "suggestionMs": found.get("line_ms"),
            "verdict": found.get("verdict", ""),
        }

    known = entries()
    found = [row("bundled", None, None, here=True)]
    installed = find_all()
    for each in installed:
        found.append(row(each.name, each.bytes, known.get(each.entry), here=True))
    there = {each.entry for each in installed}
    found += [row(e.name, e.bytes, e, here=False) for e in known.values() if e.name not in there]
    if not any(each["chosen"] for each in found):
        found.append(row(chosen, None, None, here=True) | {"chosen": True})
    return found


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
    """The doctor's page about this machine and the installation."""
    work = asyncio.ensure_future(run_doctor(ls.session.settings.model))
    with failures(), ls.cancelled_with_request(work):
        markdown = (await work).decode(errors="replace")
    if not markdown.startswith("# "):
        raise failed("The doctor could not look at everything. Run `fimls doctor` in a terminal.")
    return {"markdown": markdown}


async def run_doctor(model: str, *options: str) -> bytes:
    """What `fimls doctor` prints. It measures with torch, so it has a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "lsp_server", "doctor", f"--model={model}", *options),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), DOCTOR_TIMEOUT_S)
    except (TimeoutError, asyncio.CancelledError):
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        raise
    return output


def measurements_file() -> Path:
    return state_folder() / "doctor.json"


def measured_times() -> dict[str, dict[str, Any]]:
    """What the doctor has estimated for this machine, by the model's name; {} before."""
    try:
        report = json.loads(measurements_file().read_bytes())
        return {each["name"]: each for each in report["estimates"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


@contextlib.contextmanager
def failures() -> Any:
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
    if not isinstance(name, str) or not name or os.sep * 2 in name:
        raise JsonRpcInvalidParams("it takes {name: string}")
    return name


COMMANDS: Commands = {
    "fimls.listModels": list_models,
    "fimls.chooseModel": choose_model,
    "fimls.pullModel": pull_model,
    "fimls.doctor": doctor,
}
