"""An engine on a network port: who has the key is served whatever strangers do, and what cannot
be listened on is named."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from model.engine import process as engine_process
from model.engine.http import addresses, port
from model.engine.http.addresses import listen
from model.engine.http.routes import make_app
from model.engine.loading import EngineProcess
from model.engine.options import BadOptions, Launch

KEY = "a-key"
ASK = f"GET /v1/models HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\n\r\n".encode()


@contextlib.asynccontextmanager
async def serving(**launch: Any) -> AsyncIterator[tuple[str, int]]:
    """The host and the port of an engine that loads no model."""
    process = EngineProcess(Launch(listen="tcp:127.0.0.1:0", **launch), KEY)
    runner = web.AppRunner(make_app(process), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await listen(runner, process)
        assert process.port is not None
        yield process.port._listeners[0].getsockname()[:2]
    finally:
        if process.port is not None:
            await process.port.close()
        await runner.cleanup()


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def say(connection: Connection, data: bytes) -> bytes:
    """The first line of the answer; b"" where the connection is closed."""
    reader, writer = connection
    writer.write(data)
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(reader.readline(), 10)
    return b""


async def is_closed(connection: Connection) -> bool:
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(connection[0].read(), 10) == b""
    return True


@pytest.mark.asyncio
@pytest.mark.parametrize("with_tls", [False, True])
async def test_strangers_do_not_keep_out_who_has_the_key(
    with_tls: bool, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More half-open connections than there may be; with TLS none begins to speak it."""
    monkeypatch.setattr(port, "MAX_STRANGERS", 8)
    trusting: ssl.SSLContext | None = None
    launch = {}
    if with_tls:
        launch["certificate"] = str(certificate)
        trusting = ssl.create_default_context(cafile=str(certificate))
    async with serving(**launch) as (host, number):
        first = await asyncio.open_connection(host, number, ssl=trusting)
        assert await say(first, ASK) == b"HTTP/1.1 200 OK\r\n"
        strangers = [await asyncio.open_connection(host, number) for _ in range(40)]
        later = await asyncio.open_connection(host, number, ssl=trusting)
        assert await say(later, ASK) == b"HTTP/1.1 200 OK\r\n"
        for stranger in strangers[:30]:
            assert await is_closed(stranger)
        await first[0].readuntil(b"}]}")
        assert await say(first, ASK) == b"HTTP/1.1 200 OK\r\n"
        for connection in [first, later, *strangers]:
            connection[1].close()


@pytest.mark.asyncio
async def test_who_does_not_show_the_key_in_time_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(port, "ADMISSION_S", 0.1)
    async with serving() as (host, number):
        admitted = await asyncio.open_connection(host, number)
        assert await say(admitted, ASK) == b"HTTP/1.1 200 OK\r\n"
        await admitted[0].readuntil(b"}]}")
        slow = await asyncio.open_connection(host, number)
        slow[1].write(ASK[:-2])  # all but the header's end
        assert await is_closed(slow)
        assert await say(admitted, ASK) == b"HTTP/1.1 200 OK\r\n"
        admitted[1].close()
        slow[1].close()


@pytest.mark.asyncio
async def test_who_has_the_key_cannot_open_connections_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many as the process may open files were taken."""
    monkeypatch.setattr(port, "MAX_ADMITTED", 4)
    async with serving() as (host, number):
        held = [await asyncio.open_connection(host, number) for _ in range(5)]
        for connection in held[:4]:
            assert await say(connection, ASK) == b"HTTP/1.1 200 OK\r\n"
        assert await say(held[4], ASK + ASK) == b"HTTP/1.1 503 Service Unavailable\r\n"
        rest = await asyncio.wait_for(held[4][0].read(), 10)
        assert b"Close some." in rest and b"HTTP" not in rest
        await held[0][0].readuntil(b"}]}")
        assert await say(held[0], ASK) == b"HTTP/1.1 200 OK\r\n"
        held[1][1].close()
        await held[1][1].wait_closed()
        later = await asyncio.open_connection(host, number)
        assert await say(later, ASK) == b"HTTP/1.1 200 OK\r\n"
        for connection in [*held, later]:
            connection[1].close()


@pytest.mark.asyncio
@pytest.mark.parametrize("key", ["wrong", "", "é", "\udcff", "a-key\udcff"])
async def test_a_wrong_key_of_any_bytes_is_refused_and_the_connection_closed(key: str) -> None:
    asked = ASK.replace(KEY.encode(), key.encode("utf-8", "surrogateescape"))
    async with serving() as (host, number):
        connection = await asyncio.open_connection(host, number)
        assert await say(connection, asked + asked) == b"HTTP/1.1 401 Unauthorized\r\n"
        rest = await asyncio.wait_for(connection[0].read(), 10)
        assert b"The API key is missing or wrong." in rest and b"HTTP" not in rest
        connection[1].close()


@pytest.mark.asyncio
async def test_too_many_open_files_are_survived(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(port, "RETRY_S", 0.001)
    loop = asyncio.get_running_loop()
    accept = loop.sock_accept
    failures = iter(range(5))

    async def scarce(listener: socket.socket) -> tuple[socket.socket, Any]:
        for _ in failures:
            raise OSError(errno.EMFILE, "Too many open files")
        return await accept(listener)

    monkeypatch.setattr(loop, "sock_accept", scarce)
    async with serving() as (host, number):
        connection = await asyncio.open_connection(host, number)
        assert await say(connection, ASK) == b"HTTP/1.1 200 OK\r\n"
        connection[1].close()
    assert caplog.messages == ["a connection could not be taken: Too many open files"] * 5


# ---- what cannot be listened on ----


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("127.0.0.1:8712", ("127.0.0.1", 8712)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
    ],
)
def test_an_address_to_listen_on(where: str, expected: tuple[str, int]) -> None:
    assert addresses.split_address(where) == expected


@pytest.mark.parametrize(
    "where",
    ["8712", ":8712", "a", "a:", "a:b", "a:65536", "a:-1", "::1:80", "a b:1", "http://a:1", "[]:1"],
)
def test_what_is_no_address_is_named(where: str) -> None:
    with pytest.raises(BadOptions, match="Write HOST:PORT, such as") as caught:
        addresses.split_address(where)
    assert where in str(caught.value)


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Starts an engine in this process; what it says when it does not begin to serve."""
    monkeypatch.setattr(engine_process, "set_up", lambda: None)

    def run(key: str = KEY, **launch: Any) -> str:
        monkeypatch.setenv("FIMLS_API_KEY", key)
        assert engine_process.main([Launch(**launch).to_json()]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("fimls engine: ") and err.count("\n") == 1
        return err

    return run


@pytest.mark.parametrize("key", ["", " ", "\t", "ключ", " a", "a\n", "a\tb"])
def test_a_key_that_cannot_be_one_is_refused(refusal: Any, key: str) -> None:
    assert "FIMLS_API_KEY" in refusal(key)


def test_an_address_that_is_not_free_or_not_here_is_named(refusal: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert f"127.0.0.1:{number} cannot be listened on (" in refusal(
            listen=f"tcp:127.0.0.1:{number}"
        )
    assert "cannot be listened on" in refusal(listen="tcp:192.0.2.1:1")
    assert "cannot be listened on" in refusal(listen="tcp:nowhere.invalid:1")
    assert "cannot be listened on" in refusal(listen=f"tcp:{'a' * 70}.b:1")
    assert "is no address to listen on" in refusal(listen="tcp:::1:80")
    assert "expected unix:PATH or tcp:HOST:PORT" in refusal(listen="tcp:localhost")


def test_where_this_users_windows_cannot_be_served_the_log_says_why(
    refusal: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback, where loopback or the socket could not be bound."""

    def forbidden(*_: Any, **__: Any) -> socket.socket:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", forbidden)
    said = refusal(listen=f"loopback:{tmp_path / 'a.port'}")
    assert "127.0.0.1:0 cannot be listened on (Permission denied)" in said
    assert "security program" in said
    monkeypatch.setattr(addresses, "private_socket", forbidden)
    said = refusal(listen=f"unix:{tmp_path / 'a.sock'}")
    assert "a.sock cannot be made (Permission denied). Set FIMLS_RUNTIME_DIR" in said


def test_a_certificate_that_cannot_be_used_is_named(
    refusal: Any, certificate: Path, tmp_path: Path
) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    alone = tmp_path / "alone.pem"
    alone.write_text(certificate.read_text().partition("-----BEGIN CERT")[0])
    where = {"listen": "tcp:127.0.0.1:0"}
    assert "is no file" in refusal(**where, certificate=str(tmp_path / "absent.pem"))
    assert "cannot be used" in refusal(**where, certificate=str(garbage))
    assert "cannot be used" in refusal(**where, certificate=str(alone))
    assert "name both" in refusal(**where, certificate_key=str(certificate))


@pytest.mark.asyncio
async def test_beyond_this_machine_without_tls_is_warned_of(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert addresses.is_loopback("127.0.0.1") and addresses.is_loopback("localhost")
    for host in ("0.0.0.0", "192.168.1.1", "::", "model.example"):
        assert not addresses.is_loopback(host)
    async with serving():
        pass
    out, err = capsys.readouterr()
    assert out.startswith("listening on http://127.0.0.1:") and err == ""
    process = EngineProcess(Launch(listen="tcp:0.0.0.0:0"), KEY)
    runner = web.AppRunner(make_app(process), access_log=None)
    await runner.setup()
    await listen(runner, process)
    assert "unencrypted" in capsys.readouterr().err
    assert process.port is not None
    await process.port.close()
    await runner.cleanup()
    assert caplog.records == [] or all(r.levelno < logging.ERROR for r in caplog.records)
