"""An engine for a command: started or attached to, and waited for until it answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from lsp_server.commands.errors import CommandError
from lsp_server.engines.interface import Engine
from lsp_server.engines.local import make_engine
from lsp_server.settings import Settings


@asynccontextmanager
async def ready_engine(settings: Settings) -> AsyncGenerator[Engine]:
    """Yields an engine that is ready and closes it afterwards. Raises CommandError, ModelError."""
    engine = make_engine(settings)
    try:
        engine.start()
        state = await engine.wait_until_settled()
        if state.name != "ready":
            raise CommandError(state.message or "the engine is not ready; try again")
        yield engine
    finally:
        await engine.close()
