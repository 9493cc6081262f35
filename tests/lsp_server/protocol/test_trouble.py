"""What a person reads when an endpoint gives no answer: one message for each cause, and words for
each explicit request."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lsp_server.engines import remote
from tests.lsp_server.helpers import (
    INLINE,
    Answer,
    Endpoint,
    Window,
    answers_with,
    chunk,
    says,
    sends,
    until,
    window_in_process,
    window_on,
)

SHOWS_STATUS = {**INLINE, "experimental": {"fimls": {"status": True}}}


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@contextlib.asynccontextmanager
async def window_at(url: str, **settings: Any) -> AsyncIterator[Window]:
    """A window whose endpoint has this address, and an open document "x = "."""
    remote = {f"remote.{name}": value for name, value in settings.items()}
    sent = {"remote.url": url, "remote.format": "starcoder2"} | remote
    async with window_in_process(sent) as window:
        window.open("x = ")
        yield window


async def trouble(window: Window) -> str:
    """Types until the server says something; the message, without its name."""

    async def told() -> bool:
        assert await window.ask(0, 4)[1] == []
        return bool(window.shown)

    await until(told)
    return window.shown[0].removeprefix("fimls: ")


async def hangs(request: web.Request) -> web.StreamResponse:
    """An endpoint's answer that never comes."""
    await asyncio.sleep(1000)
    raise AssertionError


STATUSES = {
    500: r"answered with status 500: Internal Server Error\. Look at the log of that server\.",
    502: r"answered with status 502: Bad Gateway\. Look at the log of that server\.",
    503: r"answered with status 503: Service Unavailable\. It is busy or starting: wait a little\.",
    429: r"answered with status 429: Too Many Requests\. It is busy or starting: wait a little\.",
    401: r"answered with status 401: Unauthorized\. Put its key into the variable that "
    r"fimls\.remote\.apiKeyEnv names \(FIMLS_API_KEY\)\.",
    403: r"answered with status 403: Forbidden\. Put its key into .*FIMLS_API_KEY\)\.",
    404: r"answered with status 404: Not Found\. Correct fimls\.remote\.url or "
    r"fimls\.remote\.model\.",
    400: r"answered with status 400: Bad Request\. Correct fimls\.remote\.model or "
    r"fimls\.remote\.format\.",
}


@pytest.mark.asyncio
@pytest.mark.parametrize("status", STATUSES)
async def test_an_endpoint_that_refuses_is_named_once_with_the_remedy(status: int) -> None:
    async with window_on(answers_with(status, "<html>", "text/html")) as (window, endpoint):
        for _ in range(2):
            assert await window.ask(0, 4)[1] == []
        (shown,) = window.shown
        assert re.fullmatch(f"fimls: {re.escape(endpoint.url)} {STATUSES[status]}", shown)
        state = await window.request("fimls/status", {})
        assert (state["state"], f"fimls: {state['message']}") == ("failed", shown)

        endpoint.answer = says("1\n")
        assert len(await window.ask(0, 4)[1]) == 1
        assert (await window.request("fimls/status", {}))["state"] == "ready"


@pytest.mark.asyncio
async def test_words_that_vary_make_no_other_cause() -> None:
    """Some servers number their errors."""
    numbers = itertools.count()

    async def fails(request: web.Request) -> web.StreamResponse:
        words = f'{{"error": "request {next(numbers)} failed"}}'
        return web.Response(status=500, text=words, content_type="application/json")

    async with window_on(fails) as (window, _):
        for _ in range(3):
            assert await window.ask(0, 4)[1] == []
        assert len(window.shown) == 1 and "request 0 failed" in window.shown[0]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (sends(chunk("a")), r"The answer from \S+ broke off\. Look at the log of that server\."),
        (sends(b'data: {"error": "no memory"}\n\n'), r"\S+ failed: no memory\. Look at the log .*"),
        (sends(b"data: 17\n\n"), r"\S+ does not speak OpenAI's completions dialect\. Correct .*"),
        (sends(b"x" * 2**20), r"\S+ does not speak OpenAI's completions dialect\. Correct .*"),
    ],
)
async def test_an_answer_that_fails_is_told_once(answer: Answer, message: str) -> None:
    async with window_on(answer) as (window, _):
        for _ in range(2):
            assert await window.ask(0, 4)[1] == []
        (shown,) = window.shown
        assert re.fullmatch(f"fimls: {message}", shown)


@pytest.mark.asyncio
async def test_an_explicit_request_is_always_answered_in_words() -> None:
    async with window_on(answers_with(500, ""), capabilities=SHOWS_STATUS) as (window, _):
        assert await window.ask(0, 4)[1] == []
        assert window.shown == []  # the status shows it
        for count in (1, 2):
            assert await window.ask(0, 4, invoked=True)[1] == []
            assert len(window.shown) == count and "status 500" in window.shown[-1]
        await window.request("fimls/snooze", {"minutes": 5})
        assert await window.ask(0, 4, invoked=True)[1] == []
        assert len(window.shown) == 3


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"enabled": False}, "Switched off: set fimls.enabled to true."),
        ({"disabledLanguages": ["python"]}, "Off for python, which is in fimls.disabledLanguages."),
    ],
)
async def test_an_explicit_request_hears_that_suggestions_are_off(
    settings: dict[str, Any], words: str
) -> None:
    async with window_in_process(settings) as window:
        window.open("x = ")
        assert await window.ask(0, 4)[1] == []
        assert window.shown == []
        assert await window.ask(0, 4, invoked=True)[1] == []
        assert window.shown == [f"fimls: {words}"]


@pytest.mark.asyncio
async def test_nobody_listening_is_told() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    async with window_at(url) as window:
        assert await trouble(window) == (
            f"No answer from {url}: nobody listens there. Start the server, or correct "
            "fimls.remote.url."
        )


@pytest.mark.asyncio
async def test_an_unknown_host_is_told() -> None:
    async with window_at("http://nowhere.invalid:1") as window:
        assert await trouble(window) == (
            "No answer from http://nowhere.invalid:1: there is no such name. Look after the "
            "network, or correct fimls.remote.url."
        )


@pytest.mark.asyncio
@pytest.mark.parametrize("patience", [10.0, 0.2], ids=["the endpoint's", "the window's"])
async def test_an_answer_that_takes_too_long_is_told(patience: float) -> None:
    settings = {"remote.timeout": 0.2 if patience > 1 else 10.0, "patience": patience}
    async with window_on(says("ready\n"), settings) as (window, endpoint):
        endpoint.answer = hangs
        message = await trouble(window)
    name = "remote.timeout" if patience > 1 else "patience"
    assert message == (
        f"No answer from {endpoint.url} within 0.2 s. If it is only slow, raise fimls.{name}."
    )


@pytest.mark.asyncio
async def test_a_certificate_that_is_not_trusted_names_the_setting(certificate: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    async with Endpoint(says("a"), tls) as endpoint:
        async with window_at(endpoint.url) as window:
            assert await trouble(window) == (
                f"No answer from {endpoint.url}: its certificate is not trusted (self-signed "
                "certificate). Name the PEM file of its authority in fimls.remote.caFile."
            )
        other = endpoint.url.replace("127.0.0.1", "localhost")
        async with window_at(other, caFile=str(certificate)) as window:
            assert re.fullmatch(
                rf"No answer from {other}: its certificate is for another name\. Correct "
                r"fimls\.remote\.url\.",
                await trouble(window),
            )
        async with window_at(endpoint.url, caFile="/absent.pem") as window:
            assert await trouble(window) == (
                "fimls.remote.caFile cannot be read: /absent.pem (No such file or directory). "
                "Name a PEM file."
            )


@pytest.mark.asyncio
async def test_a_disk_that_holds_the_certificates_and_does_not_answer_is_told(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stopped the window for good."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    back = threading.Event()
    looks: list[Path] = []

    def stuck(path: Path, most: int) -> None:
        looks.append(path)
        assert back.wait(60)

    monkeypatch.setattr(remote, "CERTIFICATES_TIMEOUT_S", 0.1)
    monkeypatch.setattr(remote, "check_regular", stuck)
    async with (
        Endpoint(says("1\n"), tls) as endpoint,
        window_at(endpoint.url, caFile=str(certificate)) as window,
    ):
        assert await trouble(window) == (
            f"fimls.remote.caFile cannot be read: {certificate} (the disk does not answer). "
            "Name a PEM file."
        )
        assert await window.ask(0, 4)[1] == []
        assert looks == [certificate]  # one thread waits, however often somebody asks
        back.set()
        await window.suggestion(0, 4)


@pytest.mark.asyncio
async def test_the_status_does_not_say_more_of_an_endpoint_than_is_known() -> None:
    """It said that the model was there before anybody had asked."""

    async def ready() -> dict[str, Any] | None:
        found: dict[str, Any] = await window.request("fimls/status", {})
        return found if found["state"] == "ready" else None

    async with Endpoint(says("1\n")) as endpoint, window_at(endpoint.url) as window:
        status = await until(ready)
        assert f"at {endpoint.url} has not been asked yet." in status["message"]
        await window.suggestion(0, 4)
        status = await window.request("fimls/status", {})
        assert status["state"] == "ready" and "yet" not in status["message"]


@pytest.mark.asyncio
async def test_an_address_of_the_wrong_scheme_is_told() -> None:
    async with Endpoint(says("a")) as endpoint:
        url = endpoint.url.replace("http:", "https:")
        async with window_at(url) as window:
            assert await trouble(window) == (
                f"No answer from {url}: it does not speak TLS. Correct fimls.remote.url: is it "
                "http://?"
            )


@pytest.mark.asyncio
async def test_what_is_no_http_server_is_told() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with window_at(url) as window:
            assert await trouble(window) == (
                f"No answer from {url}: it does not speak HTTP. Correct fimls.remote.url."
            )
