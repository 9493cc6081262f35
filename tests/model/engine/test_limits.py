"""One client's request, however large, keeps no other from being answered."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import ClientConnectionResetError, ServerDisconnectedError, web
from aiohttp.test_utils import TestClient, TestServer

from model import Tokenizer
from model.engine.http import routes
from model.engine.http.routes import make_app
from model.engine.loading import EngineProcess
from model.engine.options import Launch
from model.engine.worker import Engine
from tests.model.toys import Parrot, toy_config


@pytest.fixture
def engine(byte_tokenizer: Tokenizer) -> Engine:
    """It has not been started: what is asked waits."""
    return Engine(Parrot(config=toy_config(max_positions=64)).as_model(byte_tokenizer))


@pytest_asyncio.fixture
async def client(engine: Engine) -> AsyncIterator[TestClient[Any, Any]]:
    process = EngineProcess(Launch(listen="unix:/unused"), engine=engine)
    async with TestClient(TestServer(make_app(process), handler_cancellation=True)) as client:
        yield client


async def refusal(client: TestClient[Any, Any], body: bytes) -> tuple[int, str]:
    async with client.post("/v1/completions", data=io.BytesIO(body)) as response:
        return response.status, (await response.json())["error"]["message"]


@pytest.mark.asyncio
async def test_a_body_longer_than_any_request_is_refused_unread(
    client: TestClient[Any, Any],
) -> None:
    """15 MB of text were made into tokens, and three million stop strings kept."""
    text = json.dumps({"prompt": "x = 1\n" * 2_500_000}).encode()
    stops = json.dumps({"prompt": [5], "stop": ["a"] * 3_000_000}).encode()
    for body in (text, stops):
        status, words = await refusal(client, body)
        assert (status, words) == (413, "Request Entity Too Large")
    status, words = await refusal(client, text[:200_000] + b'"}')
    assert status == 400 and "is longer than 64 tokens of the model" in words


@pytest.mark.asyncio
async def test_others_are_answered_while_a_text_is_made_into_tokens(
    client: TestClient[Any, Any], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    def slow(text: str) -> list[int]:
        assert answered.wait(60)
        return []

    monkeypatch.setattr(engine.model.tokenizer, "encode_prompt", slow)
    large = asyncio.ensure_future(refusal(client, b'{"prompt": "a"}'))
    await asyncio.sleep(0)
    try:
        async with client.get("/v1/models") as response:
            assert response.status == 200
        assert not large.done()
    finally:
        answered.set()
    assert (await large)[0] == 400


@pytest.mark.asyncio
async def test_there_is_an_end_to_those_who_wait(
    client: TestClient[Any, Any], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "MAX_WAITING", 2)
    body = b'{"prompt": [5]}'
    waiting = [asyncio.ensure_future(refusal(client, body)) for _ in range(2)]
    while len(engine.queue) < 2:
        await asyncio.sleep(0.001)
    assert await refusal(client, body) == (503, "Too many requests are waiting. Ask again later.")
    for each in waiting:
        each.cancel()


def test_texts_are_made_into_tokens_by_several_threads(byte_tokenizer: Tokenizer) -> None:
    prompt = "<fim_prefix>a<fim_suffix>b<fim_middle>" * 20
    alone = byte_tokenizer.encode_prompt(prompt)
    assert set(alone) > {1, 2, 3}
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(byte_tokenizer.encode_prompt, [prompt] * 200)) == [alone] * 200


@pytest.mark.asyncio
async def test_a_client_that_has_gone_is_no_line_in_the_log(
    client: TestClient[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each stream that was cut before its beginning left a traceback."""

    async def prepare(*_: object) -> None:
        raise ClientConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(web.StreamResponse, "prepare", prepare)
    with pytest.raises(ServerDisconnectedError):
        await client.post("/v1/completions", json={"prompt": [5], "stream": True})
    assert caplog.messages == []
