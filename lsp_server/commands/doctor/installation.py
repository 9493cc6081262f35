"""Faults of the installation: packages, folders, disk, the model and the engines."""

from __future__ import annotations

import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from fim import FormatError
from lsp_server import __version__
from lsp_server.commands.doctor.findings import Finding, fine, note, wrong
from lsp_server.engines.local import local_client
from lsp_server.folders import cache_folder, log_folder, runtime_folder, state_folder
from lsp_server.session.prompter import Prompter
from lsp_server.settings import Settings
from model.catalogue.places import data_folder
from model.catalogue.records import check_unaltered
from model.engine.options import MIB
from model.engine.rendezvous import engines_in
from model.errors import ModelError
from model.private_files import (
    OTHERS_MAY_ANYTHING,
    NotOwned,
    check_way,
    is_mine,
    make_private_folder,
)
from model.weights.folder import find_model

REINSTALL = "Install fimls again, with its requirements."


def packages() -> Iterator[Finding]:
    """The requirements of fimls that are missing or of a version that it does not run with."""
    try:
        lines = metadata.requires("fimls") or []
    except metadata.PackageNotFoundError:
        yield wrong("The package fimls is not installed; its files alone are here.", REINSTALL)
        return
    good = 0
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield wrong(f"The package {requirement.name} is not installed.", REINSTALL)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            good += 1
        else:
            yield wrong(
                f"The package {requirement.name} is version {version}, but fimls needs "
                f"{requirement.specifier}.",
                REINSTALL,
            )
    yield fine(f"{good} required packages are there.")


def folders(settings: Settings) -> Iterator[Finding]:
    """Folders that cannot be written or that others may read, and a disk that is full."""
    places: dict[str, Callable[[], Path]] = {
        "cache": cache_folder,
        "state": state_folder,
        "log": log_folder,
        "runtime": runtime_folder,
        "data": data_folder,
    }
    for name, find in places.items():
        yield _folder(name, find)
    try:
        free = free_bytes(cache_folder())
    except OSError:  # `_folder` has told
        return
    wanted = settings.engine.cache_disk * MIB
    if free < wanted:
        yield wrong(
            f"{free / 1e9:.1f} GB of the disk are free, but the cache of prompts may take "
            f"{wanted / 1e9:.1f} GB.",
            "Free some of the disk, or lower fimls.engine.cacheDisk.",
        )
    else:
        yield fine(f"{free / 1e9:.1f} GB of the disk are free.")


def free_bytes(place: Path) -> int:
    """Of the disk that a folder is on, or will be on when it is made. Raises OSError."""
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def _folder(name: str, find: Callable[[], Path]) -> Finding:
    variable = f"FIMLS_{name.upper()}_DIR"
    others = wrong(
        f"The {name} folder belongs to another user.", f"Set {variable} to a folder of your own."
    )
    try:
        folder = find()
        make_private_folder(folder)
        info = folder.stat()
        if not is_mine(info):
            return others
        with tempfile.TemporaryFile(dir=folder):
            pass
    except NotOwned:
        return others
    except OSError as error:
        return wrong(
            f"The {name} folder cannot be written ({error}).",
            f"Make it writable for you, or set {variable} to another one.",
        )
    if sys.platform != "win32" and stat.S_IMODE(info.st_mode) & OTHERS_MAY_ANYTHING:
        return wrong(
            f"The {name} folder {folder} is open to other users.",
            f"Close it: chmod 700 '{folder}'.",
        )
    try:
        check_way(folder)
    except OSError as error:
        return wrong(f"The {name} folder can be exchanged: {error}.")
    return fine(f"The {name} folder is {folder}.")


def model(settings: Settings, available_memory: int | None) -> Iterator[Finding]:
    """A model that is missing, damaged, altered, too large, or not made for FIM."""
    try:
        prompter = Prompter.for_settings(settings)
        if settings.remote.url:
            yield fine(f"Suggestions come from {settings.remote.url}.")
            return
        found = find_model(settings.model)
        check_unaltered(found.files)
        parameters = found.parameters
    except (ModelError, FormatError, OSError) as error:
        yield wrong(str(error))
        return
    if available_memory is not None and parameters > available_memory:
        yield wrong(
            f"The model {settings.model} needs {parameters / 1e9:.1f} GB in int8, but "
            f"{available_memory / 1e9:.1f} GB of memory are free.",
            "Close what else uses the memory, or choose a smaller model.",
        )
        return
    yield fine(
        f"The model is {settings.model}: {parameters / 1e6:,.0f}M parameters, "
        f"{found.max_positions:,} tokens of context, FIM format {prompter.format.name}, layout "
        f"{prompter.layout or 'of the format'}."
    )


async def engines() -> list[Finding]:
    """The engines that run, and sockets that lead nowhere."""
    try:
        sockets = engines_in(runtime_folder())
    except OSError:  # `folders` tells
        return []
    found = [await _engine(socket) for socket in sockets]
    return found or [fine("No engine runs; the first suggestion starts one.")]


async def _engine(socket: Path) -> Finding:
    client = local_client(socket)
    try:
        status = await client.call("GET", "/fimls/status")
    finally:
        await client.close()
    if status is None:
        return wrong(
            f"Nobody answers on the socket {socket}.",
            f"If no editor is loading a model just now, remove it: rm '{socket}'.",
        )
    name = f"The engine for {status.get('model')} (process {status.get('pid')})"
    if status.get("version") != __version__:
        return wrong(
            f"{name} is of version {_plain(status.get('version'))}, this is {__version__}.",
            "Stop it: fimls engine stop.",
        )
    if status.get("state") == "failed":
        return wrong(f"{name} has failed: {status.get('message')}")
    if status.get("state") != "ready":
        return note(f"{name} is {_plain(status.get('state'))}.")
    speed = ""
    if status.get("prefill_per_s"):
        speed = f"; it reads {status['prefill_per_s']:,.0f} tokens/s"
    return fine(f"{name} is ready: {status.get('device')} {status.get('dtype')}{speed}.")


def _plain(value: object) -> str:
    """A word out of another program's answer."""
    return re.sub(r"[^\w.+-]", "", str(value))[:40] or "?"
