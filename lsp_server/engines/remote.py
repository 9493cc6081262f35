"""An OpenAI-compatible endpoint elsewhere, in place of the engine on this machine."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from lsp_server.engines.http import HttpClient, Where
from lsp_server.engines.interface import CompletionRequest, EngineState, EngineUnavailable, Piece
from lsp_server.engines.trouble import PROXY
from lsp_server.settings import RemoteSettings
from model.regular_files import check_regular

MAX_CERTIFICATES = 2**24  # bytes


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
        proxy = proxy_of(settings)
        self.address = settings.url
        self._client = HttpClient(
            Where(settings.url.rstrip("/").removesuffix("/v1"), headers),
            lambda: _connector(settings, proxy),
            model=settings.model,
            timeout_s=settings.timeout,
            extensions=settings.format is None,  # an endpoint that takes ids takes stop ids
            proxy=proxy,
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


def _connector(settings: RemoteSettings, proxy: str | None) -> aiohttp.BaseConnector:
    """Raises EngineUnavailable."""
    if proxy is not None and urlsplit(proxy).scheme not in ("http", "https"):
        message = f"No answer from {settings.url}: the proxy is no HTTP proxy"
        raise EngineUnavailable(message, remedy=PROXY)
    return aiohttp.TCPConnector(ssl=_tls(settings))


def _tls(settings: RemoteSettings) -> ssl.SSLContext | bool:
    if not settings.verify_tls:
        return False
    if settings.ca_file is None:
        return True
    try:
        check_regular(Path(settings.ca_file), MAX_CERTIFICATES)
        return ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:  # also ssl.SSLError
        reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise EngineUnavailable(
            "fimls.remote.caFile cannot be read",
            quoted=f"{settings.ca_file} ({reason})",
            remedy="Name a PEM file.",
        ) from None


def proxy_of(settings: RemoteSettings) -> str | None:
    """The proxy's address, by the setting, the environment or the system; None: there is none."""
    assert settings.url is not None
    if settings.proxy is not None:
        return None if settings.proxy == "none" else settings.proxy
    url = urlsplit(settings.url)
    host = url.hostname or ""
    if is_loopback(host) or proxy_bypass(url.netloc):
        return None
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and "://" not in proxy:
        return f"http://{proxy}"
    return proxy or None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, which no proxy leads to."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
