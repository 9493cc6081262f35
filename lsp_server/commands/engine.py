"""`fimls engine` and `fimls status`: start, stop, show and serve the processes that hold a model.

`ready_engine` gives the other commands an engine that answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fim.characters import escaped
from lsp_server import __version__
from lsp_server.commands.errors import CommandError
from lsp_server.engines.interface import Engine
from lsp_server.engines.local import local_client, make_engine
from lsp_server.folders import runtime_folder
from lsp_server.session.usage import read_usage, summary
from lsp_server.settings import Settings
from model.engine.options import Launch
from model.engine.rendezvous import engines_in


@asynccontextmanager
async def ready_engine(settings: Settings) -> AsyncGenerator[Engine]:
    """Yields an engine that answers and closes it afterwards. Raises CommandError, ModelError."""
    engine = make_engine(settings)
    try:
        engine.start()
        state = await engine.wait_until_settled()
        if state.name != "ready":
            raise CommandError(state.message or "the engine is not ready; try again")
        yield engine
    finally:
        await engine.close()


async def start_engine(settings: Settings) -> None:
    """`fimls engine start`. Raises CommandError, ModelError, OSError."""
    async with ready_engine(settings):
        print(f"the engine for {settings.model} is ready (fimls {__version__})")


async def stop_engines() -> None:
    """`fimls engine stop`: stops every engine of this user. Raises OSError."""
    count = len(await call_engines("POST", "/fimls/stop"))
    noun = "engine" if count == 1 else "engines"
    print(f"stopped {count} {noun}")


async def print_engines(*, as_json: bool) -> None:
    """`fimls engine status`. Raises OSError."""
    statuses = await call_engines("GET", "/fimls/status")
    if as_json:
        print(json.dumps(statuses))
    else:
        print_statuses(statuses)


async def print_status(*, as_json: bool) -> None:
    """`fimls status`: the engines, and the counts of suggestions. Raises OSError."""
    engines = await call_engines("GET", "/fimls/status")
    sessions = read_usage()
    if as_json:
        told = [session.to_json() | {"open": session.is_open} for session in sessions]
        print(json.dumps({"engines": engines, "sessions": told}))
        return
    print_statuses(engines)
    for line in summary(sessions):
        print(line)


def print_statuses(statuses: list[dict[str, Any]]) -> None:
    if not statuses:
        print("no engine is running")
    for status in statuses:
        memory = "?"
        if status.get("memory_bytes"):
            memory = f"{status['memory_bytes'] / 1e6:.0f} MB"
        prepared = " with prepared weights" if status.get("prepared") else ""
        print(
            f"{escaped(status['model'])}: {status['state']}, {status['device']} {status['dtype']}, "
            f"{memory}{prepared}, {status['served']} requests, idle for {status['idle_s']:.0f} s, "
            f"process {status['pid']}"
        )
        if status.get("precision"):
            print(f"  weights: {status['precision']}")


async def call_engines(method: str, path: str) -> list[dict[str, Any]]:
    """The answers of those engines of this user that answer an HTTP call. Raises OSError."""
    answers = []
    for socket in engines_in(runtime_folder()):
        client = local_client(socket)
        try:
            answer = await client.call(method, path)
        finally:
            await client.close()
        if answer is not None:
            answers.append(answer)
    return answers


def serve_engine(
    listen: str, settings: Settings, certificate: str = "", certificate_key: str = ""
) -> None:
    """`fimls engine serve`: replaces this process by an engine that listens at HOST:PORT."""
    launch = Launch(
        f"tcp:{listen}",
        settings.model,
        ends_when_idle=False,
        certificate=certificate,
        certificate_key=certificate_key,
        options=settings.engine,
    )
    command = [sys.executable, "-P", "-m", "model.engine", launch.to_json()]
    if sys.platform == "win32":  # its execv lets the shell go on at once
        sys.exit(subprocess.call(command))
    os.execv(sys.executable, command)
