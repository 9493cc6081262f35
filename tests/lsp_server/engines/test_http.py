"""Endpoints elsewhere: our own engine behind a key, and others that are slow, rude or broken."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lsp_server.completion.query import ask_engine, query_at
from lsp_server.documents import Document
from lsp_server.engines.http import HttpClient, Where
from lsp_server.engines.interface import CompletionRequest, EngineUnavailable, Piece
from lsp_server.engines.remote import RemoteEngine, proxy_of
from lsp_server.session.prompter import Prompter
from lsp_server.settings import RemoteSettings, Settings
from model import load_model
from model.engine.options import Launch
from tests.lsp_server.helpers import (
    Answer,
    Endpoint,
    answers_with,
    chunk,
    says,
    sends,
    talks,
    until,
)

REQUEST = CompletionRequest("def f", max_tokens=4)
KEY = "a key for the tests"
DONE = b"data: [DONE]\n\n"


async def ask(request: CompletionRequest = REQUEST, **settings: Any) -> list[Piece]:
    engine = RemoteEngine(RemoteSettings(**settings))
    try:
        return [piece async for piece in engine.complete(request)]
    finally:
        await engine.close()


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


# ---- our own engine on loopback ----


@pytest.fixture(scope="module")
def own_engine(talkative_folder: Path) -> Iterator[str]:
    """The address of an engine that wants a key."""
    launch = Launch(model=str(talkative_folder), listen="tcp:127.0.0.1:0")
    command = [sys.executable, "-m", "model.engine", launch.to_json()]
    with subprocess.Popen(
        command,
        env=os.environ | {"FIMLS_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        address = re.fullmatch(
            r"listening on (http://127\.0\.0\.1:\d+/v1)\n", process.stdout.readline()
        )
        assert address is not None
        while "ready after" not in process.stderr.readline():
            assert process.poll() is None
        # Read on, or the engine would wait some time for somebody who does.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield address[1]
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "prompt", [(1, 50, 51, 3, 2), "<fim_prefix>ab<fim_suffix><fim_middle>"], ids=["ids", "text"]
)
async def test_our_own_engine_answers_ids_and_text(
    own_engine: str, prompt: tuple[int, ...] | str
) -> None:
    pieces = await ask(
        CompletionRequest(prompt, max_tokens=6), url=own_engine, api_key=KEY, timeout=60.0
    )
    assert re.fullmatch("[a-z]{6}", text(pieces))
    assert sum(len(piece.logprobs) for piece in pieces) == 6
    assert pieces[-1].reused_tokens is not None


@pytest.mark.asyncio
@pytest.mark.parametrize("format", [None, "starcoder2"], ids=["ids", "text"])
async def test_the_whole_pipeline_runs_on_a_remote_engine(
    own_engine: str, talkative_folder: Path, format: str | None
) -> None:
    """With the tokenizer at hand the prompt goes as ids; with the format's name alone it goes as
    text."""
    remote = RemoteSettings(url=own_engine, api_key=KEY, format=format, timeout=60.0)
    settings = Settings(
        model=str(talkative_folder), remote=remote, max_tokens=8, context_tokens=512
    )
    prompter, engine = Prompter.for_settings(settings), RemoteEngine(remote)
    snapshot = Document("file:///a.py", 1, "python", "x = \n", "utf-16").snapshot(0, 4)
    try:
        done = await ask_engine(engine, query_at(snapshot, "a.py", prompter, settings, "test"))
    finally:
        await engine.close()
    assert re.fullmatch("[a-z]{8}", done.suggestion.text)
    assert (done.trace.outcome, done.trace.generated_tokens) == ("shown", 8)


@pytest.mark.asyncio
@pytest.mark.parametrize("key", ["wrong", None])
async def test_a_wrong_key_is_named(own_engine: str, key: str | None) -> None:
    words = "status 401: The API key is missing or wrong. Put its key into .*FIMLS_API_KEY"
    with pytest.raises(EngineUnavailable, match=words):
        await ask(url=own_engine, api_key=key)


@pytest.mark.asyncio
async def test_the_key_may_come_from_the_environment(
    own_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    assert text(await ask(url=own_engine, api_key_env="MY_KEY", timeout=60.0))


def test_a_network_port_without_a_key_is_not_opened() -> None:
    command = [sys.executable, "-m", "model.engine", Launch(listen="tcp:127.0.0.1:0").to_json()]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "FIMLS_API_KEY" in ended.stderr


@pytest.mark.slow
@pytest.mark.asyncio
async def test_llama_cpps_server_is_an_endpoint_too(peers: Path, tmp_path: Path) -> None:
    export = [
        sys.executable,
        "-m",
        "lsp_server",
        "models",
        "export",
        str(tmp_path / "out"),
        "--format",
        "gguf",
    ]
    subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
    (model,) = (tmp_path / "out").glob("*.gguf")
    prompt = "def first(values):\n    for value in"
    here = load_model("bundled", device="cpu", dtype="float32")
    expected = "".join(
        t.text for t in here.generate(here.tokenizer.encode(prompt), max_new_tokens=4)
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # --logits_all: without it the server computes no log-probabilities
    command = [
        peers,
        "-m",
        "llama_cpp.server",
        "--model",
        model,
        "--port",
        str(port),
        "--logits_all",
        "true",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:

        async def answer() -> str:
            try:
                request = CompletionRequest(prompt, max_tokens=4)
                return text(await ask(request, url=f"http://127.0.0.1:{port}", timeout=60.0))
            except EngineUnavailable:
                assert process.poll() is None
                return ""

        try:
            assert await until(answer) == expected
        finally:
            process.terminate()


# ---- others ----


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (says("a", "b\n"), "ab\n"),
        (sends(b": a comment\n\n", b"event: completion\n", chunk("a"), b"data:[DONE]\n\n"), "a"),
        (sends(b'data: {"choices": [{"text": "a"}]}\r\n\r\n', DONE), "a"),
        (
            sends(b'data: {"choices": [{"text": "a", "logprobs": null}], "usage": null}\n\n', DONE),
            "a",
        ),
        (
            sends(
                b'data: {"choices": [{"text": "a", "logprobs": {"token_logprobs": [null]}}]}\n\n',
                DONE,
            ),
            "a",
        ),
        (sends(b'data: {"choices": [], "usage": {"prompt_tokens": 1}}\n\n', DONE), ""),
        (sends(chunk("a")[:9], chunk("a")[9:], DONE[:4], DONE[4:]), "a"),
        (sends('data: {"choices": [{"text": "é日😀"}]}\n\n'.encode(), DONE), "é日😀"),
    ],
    ids=[
        "plain",
        "comments",
        "crlf",
        "no logprobs",
        "null logprob",
        "usage only",
        "cut anywhere",
        "utf-8",
    ],
)
async def test_the_dialects_of_others_are_understood(answer: Answer, expected: str) -> None:
    async with Endpoint(answer) as endpoint:
        assert text(await ask(url=endpoint.url)) == expected


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            answers_with(500, "<html><h1>Oops", "text/html"),
            "status 500: Internal Server Error",
        ),
        (answers_with(502, '{"error": "no model"}'), "status 502: no model"),
        (
            answers_with(404, '{"error": {"message": "unknown model\\nmore"}}'),
            "status 404: unknown model",
        ),
        (answers_with(400, "[1, 2]"), "status 400: Bad Request"),
        (answers_with(400, '{"error": {}}'), "status 400: None"),
        (answers_with(200, "hello"), "The answer from .* broke off"),
        (sends(b""), "The answer from .* broke off"),
        (sends(chunk("a")), "The answer from .* broke off"),
        (
            sends(b'data: {"error": {"message": "out of memory"}}\n\n'),
            "failed: out of memory",
        ),
        (
            sends(b'data: {"error": "out of memory"}\n\n'),
            "failed: out of memory",
        ),
        (sends(b"data: \xff\xfe\n\n"), "does not speak OpenAI's completions dialect"),
        (sends(b"data: {\n\n"), "does not speak OpenAI's completions dialect"),
        (sends(b"data: 17\n\n"), "does not speak OpenAI's completions dialect"),
        (sends(b'data: {"choices": 1}\n\n'), "does not speak OpenAI's completions dialect"),
        (sends(b'data: {"choices": [[]]}\n\n'), "does not speak OpenAI's completions dialect"),
        (sends(b"x" * 2**20), "does not speak OpenAI's completions dialect"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_endpoint_that_fails_is_unavailable(answer: Answer, message: str) -> None:
    async with Endpoint(answer) as endpoint:
        with pytest.raises(EngineUnavailable, match=message):
            await ask(url=endpoint.url)


@pytest.mark.asyncio
async def test_what_an_endpoint_says_is_kept_apart_from_what_may_be_logged() -> None:
    """It may repeat the prompt."""
    async with Endpoint(
        answers_with(422, '{"error": {"message": "cannot read CANARY"}}')
    ) as endpoint:
        with pytest.raises(EngineUnavailable, match="CANARY") as caught:
            await ask(url=endpoint.url)
    assert caught.value.message == f"{endpoint.url} answered with status 422"


@pytest.mark.asyncio
async def test_nobody_listening_is_unavailable() -> None:
    async with Endpoint(says("a")) as endpoint:
        pass
    with pytest.raises(EngineUnavailable, match=f"No answer from {endpoint.url}"):
        await ask(url=endpoint.url)


@pytest.mark.asyncio
async def test_a_port_that_speaks_no_http_is_unavailable() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(EngineUnavailable, match=r"No answer from .*: it does not speak HTTP"):
            await ask(url=f"http://127.0.0.1:{port}")


@pytest.mark.asyncio
async def test_an_answer_that_takes_too_long_is_given_up() -> None:
    async with Endpoint(talks) as endpoint:
        with pytest.raises(EngineUnavailable, match=r"within 0\.3 s"):
            await ask(url=endpoint.url, timeout=0.3)
        await until(lambda: endpoint.streams == 0)


@pytest.mark.asyncio
async def test_closing_the_answer_ends_it_at_the_endpoint() -> None:
    async with Endpoint(talks) as endpoint:
        engine = RemoteEngine(RemoteSettings(url=endpoint.url))
        async with aclosing(engine.complete(REQUEST)) as pieces:
            assert (await anext(pieces)).text == "a0+"
            assert endpoint.streams == 1
        await until(lambda: endpoint.streams == 0)
        await engine.close()


@pytest.mark.asyncio
async def test_an_endpoint_is_asked_in_its_own_dialect() -> None:
    """Only who takes ids gets the fields that OpenAI's own endpoint refuses."""
    request = CompletionRequest("a", max_tokens=3, stop=("\n",), stop_ids=(1, 2), client="window")
    async with Endpoint(says("a")) as endpoint:
        await ask(request, url=endpoint.url + "/v1/", model="m", format="starcoder2")
        await ask(request, url=endpoint.url, model="m")
    plain = {
        "model": "m",
        "prompt": "a",
        "max_tokens": 3,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 0,
        "stream": True,
        "logprobs": 1,
        "stop": ["\n"],
    }
    assert endpoint.bodies == [plain, plain | {"stop_token_ids": [1, 2], "user": "window"}]


@pytest.mark.asyncio
async def test_a_prefill_says_what_the_request_will_say() -> None:
    """The engine looks its drafts up by the ids that end an answer, too."""
    bodies: list[dict[str, Any]] = []

    async def take(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        return web.json_response({})

    app = web.Application()
    app.router.add_post("/fimls/prefill", take)
    async with TestServer(app) as server:
        client = HttpClient(
            Where(str(server.make_url(""))), aiohttp.TCPConnector, model="m", extensions=True
        )
        await client.prefill(
            CompletionRequest((5, 6), max_tokens=3, stop_ids=(1, 2), client="window", idle=True)
        )
        await client.close()
    assert bodies == [
        {"prompt": [5, 6], "stop_token_ids": [1, 2], "user": "window", "priority": "idle"}
    ]


# ---- TLS ----


@pytest.mark.asyncio
async def test_an_authority_of_ones_own_is_trusted_when_named(
    certificate: Path, tmp_path: Path
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    async with Endpoint(says("a"), tls) as endpoint:
        assert text(await ask(url=endpoint.url, ca_file=str(certificate))) == "a"
        assert text(await ask(url=endpoint.url, verify_tls=False)) == "a"
        with pytest.raises(
            EngineUnavailable, match=r"No answer from https://.*fimls\.remote\.caFile"
        ):
            await ask(url=endpoint.url)
        fifo = tmp_path / "fifo.pem"
        os.mkfifo(fifo)
        for unusable in (tmp_path / "absent.pem", garbage, fifo, Path("/dev/zero")):
            with pytest.raises(EngineUnavailable, match=r"fimls\.remote\.caFile cannot be read"):
                await ask(url=endpoint.url, ca_file=str(unusable))


# ---- proxies ----


async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copies until the end."""
    try:
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


class Proxy:
    """An HTTP proxy that knows one endpoint. heads: what it was told; status: with which it
    refuses."""

    def __init__(self, endpoint: Endpoint, status: int = 200) -> None:
        self.heads: list[str] = []
        self._port = int(endpoint.url.rpartition(":")[2])
        self._status = status

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head.decode())
        if self._status != 200:
            writer.write(f"HTTP/1.1 {self._status} No\r\ncontent-length: 0\r\n\r\n".encode())
            writer.close()
            return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._port)
        if head.startswith(b"CONNECT"):
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            inner_writer.write(head)
        await asyncio.gather(tunnel(reader, inner_writer), tunnel(inner_reader, writer))


FAR = "http://model.example"
PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.asyncio
@pytest.mark.parametrize("by", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "the setting"])
async def test_an_endpoint_is_asked_through_the_proxy(
    by: str, no_proxies: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Endpoint(says("a")) as endpoint, Proxy(endpoint) as proxy:
        address = proxy.url.replace("//", "//me:secret@")
        settings = {}
        if by == "the setting":
            settings["proxy"] = address
        else:
            monkeypatch.setenv(by, address.removeprefix("http://"))
        assert text(await ask(url=FAR, **settings)) == "a"
        (head,) = proxy.heads
        assert head.startswith(f"POST {FAR}/v1/completions HTTP/1.1")
        assert "Proxy-Authorization: Basic bWU6c2VjcmV0" in head


@pytest.mark.asyncio
async def test_tls_goes_through_the_proxy_unread(
    certificate: Path, no_proxies: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    async with Endpoint(says("a"), tls) as endpoint, Proxy(endpoint) as proxy:
        settings = {"url": endpoint.url, "ca_file": str(certificate)}
        assert text(await ask(**settings, proxy=proxy.url)) == "a"
        (head,) = proxy.heads
        assert head.startswith(f"CONNECT {endpoint.url.removeprefix('https://')} HTTP/1.1")
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        assert text(await ask(**settings)) == "a"  # loopback needs none


@pytest.mark.parametrize(
    ("url", "setting", "environment", "expected"),
    [
        ("https://far.example/v1", None, {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ("https://far.example/v1", None, {"HTTPS_PROXY": "p:1"}, "http://p:1"),
        ("https://far.example/v1", None, {"HTTP_PROXY": "http://p:1"}, None),
        ("https://far.example/v1", None, {"HTTPS_PROXY": ""}, None),
        ("https://far.example/v1", "none", {"HTTPS_PROXY": "http://p:1"}, None),
        ("https://far.example/v1", "http://q", {"HTTPS_PROXY": "http://p:1"}, "http://q"),
        ("https://far.example/", None, {"https_proxy": "p", "no_proxy": "far.example"}, None),
        ("https://a.far.example", None, {"https_proxy": "p", "no_proxy": ".far.example"}, None),
        ("https://far.example:8", None, {"https_proxy": "p", "no_proxy": "far.example:8"}, None),
        ("https://far.example:8", None, {"https_proxy": "p", "NO_PROXY": "*"}, None),
        ("http://localhost:8080", None, {"http_proxy": "p"}, None),
        ("http://[::1]:8080", None, {"http_proxy": "p"}, None),
        ("http://127.1.2.3", None, {"http_proxy": "p"}, None),
        ("http://128.1.2.3", None, {"http_proxy": "p"}, "http://p"),
        ("http://localhost:8080", "http://q", {}, "http://q"),
    ],
)
def test_which_proxy_is_taken(
    url: str,
    setting: str | None,
    environment: dict[str, str],
    expected: str | None,
    no_proxies: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(RemoteSettings(url=url, proxy=setting)) == expected


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "words"),
    [(407, "wants a user name and a password"), (403, "refuses it with status 403")],
)
async def test_a_proxy_that_refuses_is_named(
    certificate: Path, no_proxies: None, status: int, words: str
) -> None:
    async with Endpoint(says("a")) as endpoint, Proxy(endpoint, status) as proxy:
        url = FAR.replace("http:", "https:")
        message = f"No answer from {url}: the proxy {words}. Correct fimls.remote.proxy, or HTTPS_"
        with pytest.raises(EngineUnavailable, match=re.escape(message)):
            await ask(url=url, proxy=proxy.url)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("http://me:secret@127.0.0.1:9", "the proxy at 127.0.0.1:9 cannot be reached"),
        ("socks5://me:secret@127.0.0.1:9", "the proxy is no HTTP proxy"),
    ],
)
async def test_a_proxy_that_is_not_there_is_named_without_its_password(
    no_proxies: None, monkeypatch: pytest.MonkeyPatch, proxy: str, words: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(EngineUnavailable, match=words) as caught:
        await ask(url=FAR)
    assert "secret" not in str(caught.value)
