"""`fimls engine`: starts, stops, shows and serves the processes that hold a model.

`ready_engine` gives the other commands an engine that answers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from lsp_server import __version__
from lsp_server.commands.errors import CommandError
from lsp_server.engines.interface import Engine
from lsp_server.engines.local import local_client, make_engine
from lsp_server.folders import runtime_folder
from lsp_server.settings import Settings
from model.engine.options import Launch


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
    statuses = await engine_statuses()
    if as_json:
        print(json.dumps(statuses))
    else:
        print_statuses(statuses)


async def engine_statuses() -> list[dict[str, Any]]:
    """The status of every engine of this user that answers. Raises OSError."""
    return await call_engines("GET", "/fimls/status")


def print_statuses(statuses: list[dict[str, Any]]) -> None:
    if not statuses:
        print("no engine is running")
    for status in statuses:
        memory = "?"
        if status.get("memory_bytes"):
            memory = f"{status['memory_bytes'] / 1e6:.0f} MB"
        print(
            f"{status['model']}: {status['state']}, {status['device']} {status['dtype']}, "
            f"{memory}, {status['served']} requests, idle for {status['idle_s']:.0f} s, "
            f"process {status['pid']}"
        )


async def call_engines(method: str, path: str) -> list[dict[str, Any]]:
    """Makes one HTTP call to every engine of this user and returns the answers of those that
    answer."""
    answers = []
    for socket in sorted(runtime_folder().glob("*.sock")):
        client = local_client(socket)
        try:
            answer = await client.call(method, path)
        finally:
            await client.close()
        if answer is not None:
            answers.append(answer)
    return answers


def serve_engine(listen: str, settings: Settings) -> None:
    """`fimls engine serve`: replaces this process by an engine that listens at HOST:PORT."""
    launch = Launch(f"tcp:{listen}", settings.model, ends_when_idle=False, options=settings.engine)
    os.execv(sys.executable, [sys.executable, "-P", "-m", "model.engine", launch.to_json()])
