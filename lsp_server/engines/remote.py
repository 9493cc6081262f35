"""An OpenAI-compatible endpoint elsewhere, in place of the engine on this machine."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator

import aiohttp

from lsp_server.engines.http import HttpClient
from lsp_server.engines.interface import CompletionRequest, EngineState, EngineUnavailable, Piece
from lsp_server.settings import RemoteSettings


class RemoteEngine:
    """There is nothing to start, so it is always ready; trouble shows with each request."""

    prefill_per_s: float | None = None
    has_idle_time = False  # its idle time is others' work, or money
    state = EngineState("ready")

    def __init__(self, settings: RemoteSettings) -> None:
        assert settings.url is not None
        headers = {}
        key = _key(settings)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        self.address = settings.url
        self._client = HttpClient(
            settings.url.rstrip("/").removesuffix("/v1"),
            lambda: aiohttp.TCPConnector(ssl=_tls(settings)),
            model=settings.model,
            headers=headers,
            timeout_s=settings.timeout,
            extensions=settings.format is None,  # an endpoint that takes ids takes stop ids
        )

    def start(self) -> None:
        pass

    async def wait_until_settled(self) -> EngineState:
        return self.state

    def complete(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        return self._client.stream(request)

    async def prefill(self, request: CompletionRequest) -> None:
        pass

    async def release(self, client: str) -> None:
        pass

    async def close(self) -> None:
        await self._client.close()
        await asyncio.sleep(0)  # lets aiohttp close its transports


def _key(settings: RemoteSettings) -> str | None:
    if settings.api_key or not settings.api_key_env:
        return settings.api_key
    return os.environ.get(settings.api_key_env)


def _tls(settings: RemoteSettings) -> ssl.SSLContext | bool:
    if not settings.verify_tls:
        return False
    if settings.ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:  # also ssl.SSLError
        raise EngineUnavailable(
            f"the certificates in fimls.remote.caFile cannot be read ({type(error).__name__})",
            refused=True,
        ) from None
