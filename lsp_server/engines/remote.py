"""An OpenAI-compatible endpoint elsewhere, in place of the engine on this machine."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from contextlib import aclosing
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from lsp_server.daemon import awaited, start_daemon
from lsp_server.engines.http import HttpClient, Where
from lsp_server.engines.interface import CompletionRequest, EngineState, EngineUnavailable, Piece
from lsp_server.engines.trouble import PROXY
from lsp_server.settings import RemoteSettings
from model.regular_files import check_regular

MAX_CERTIFICATES = 2**24  # bytes
CERTIFICATES_TIMEOUT_S = 5.0  # to read them

Tls = ssl.SSLContext | bool  # as aiohttp takes it


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
        self._settings = settings
        self._tls: Future[Tls] | None = None  # while and after the certificates are read
        self.address = settings.url
        self._client = HttpClient(
            Where(settings.url.rstrip("/").removesuffix("/v1"), headers),
            lambda: self._connector(proxy),
            model=settings.model,
            timeout_s=settings.timeout,
            extensions=settings.format is None,  # an endpoint that takes ids takes stop ids
            proxy=proxy,
        )

    def start(self) -> None:
        pass

    async def wait_until_settled(self) -> EngineState:
        return self.state

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        await self._read_certificates()
        async with aclosing(self._client.stream(request)) as pieces:
            async for piece in pieces:
                yield piece

    async def prefill(self, request: CompletionRequest) -> None:
        pass

    async def release(self, client: str) -> None:
        pass

    async def close(self) -> None:
        await self._client.close()
        await asyncio.sleep(0)  # lets aiohttp close its transports

    async def _read_certificates(self) -> None:
        """Once, and not on the event loop: a dead mount may hold their file. Raises
        EngineUnavailable; the next request tries again."""
        if self._tls is None:
            self._tls = start_daemon(lambda: _tls(self._settings))
        try:
            await awaited(self._tls, CERTIFICATES_TIMEOUT_S)
        except TimeoutError:  # the thread goes on
            raise _unreadable(self._settings, "the disk does not answer") from None
        except EngineUnavailable:
            self._tls = None
            raise

    def _connector(self, proxy: str | None) -> aiohttp.BaseConnector:
        """Raises EngineUnavailable."""
        if proxy is not None and urlsplit(proxy).scheme not in ("http", "https"):
            message = f"No answer from {self.address}: the proxy is no HTTP proxy"
            raise EngineUnavailable(message, remedy=PROXY)
        assert self._tls is not None
        return aiohttp.TCPConnector(ssl=self._tls.result())


def _key(settings: RemoteSettings) -> str | None:
    if settings.api_key or not settings.api_key_env:
        return settings.api_key
    return os.environ.get(settings.api_key_env)


def _tls(settings: RemoteSettings) -> Tls:
    """Raises EngineUnavailable."""
    if not settings.verify_tls:
        return False
    if settings.ca_file is None:
        return True
    try:
        check_regular(Path(settings.ca_file), MAX_CERTIFICATES)
        return ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:  # also ssl.SSLError
        no_pem = isinstance(error, ssl.SSLError)
        reason = "it holds no certificate" if no_pem else str(error.strerror)
        raise _unreadable(settings, reason) from None


def _unreadable(settings: RemoteSettings, reason: str) -> EngineUnavailable:
    return EngineUnavailable(
        "fimls.remote.caFile cannot be read",
        quoted=f"{settings.ca_file} ({reason})",
        remedy="Name a PEM file.",
    )


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
