"""A client of OpenAI's completions dialect (POST /v1/completions, server-sent events).

vLLM, llama.cpp's server and our own engine speak it. Closing the stream cancels the request at the
other end.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from lsp_server.engines.interface import CompletionRequest, EngineUnavailable, Piece
from lsp_server.engines.trouble import (
    BAD_ANSWER,
    LOOK,
    NO_ANSWER,
    broken_off,
    no_answer,
    other_dialect,
    refusal,
)

CONNECT_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Where:
    """Where an endpoint is, and the headers that it wants."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)


class HttpClient:
    """The dialect over one aiohttp session, which is made when it is first needed.

    where: asked before each request where it is a function.
    extensions: the endpoint knows the fields that vLLM and our own engine add to the dialect;
    OpenAI's own endpoint refuses them. name: of the endpoint in messages, in place of its address.
    """

    def __init__(
        self,
        where: Where | Callable[[], Where],
        make_connector: Callable[[], aiohttp.BaseConnector],
        *,
        model: str,
        timeout_s: float | None = None,
        extensions: bool = False,
        proxy: str | None = None,
        name: str | None = None,
    ) -> None:
        self._where = where
        self._make_connector = make_connector
        self._model = model
        self._timeout_s = timeout_s
        self._extensions = extensions
        self._proxy = proxy
        self._name = name or self._at("")["url"]
        self._session: aiohttp.ClientSession | None = None

    async def call(
        self, method: str, path: str, timeout_s: float = CONNECT_TIMEOUT_S
    ) -> dict[str, Any] | None:
        """One small JSON call; None when nobody answers in time or the answer is no JSON object."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._get_session().request(
                method, **self._at(path), timeout=timeout
            ) as response:
                answer = await response.json()
        except NO_ANSWER:
            return None
        if isinstance(answer, dict):
            return answer
        return None

    async def prefill(self, request: CompletionRequest) -> None:
        """Lets our own engine read the prompt when it is idle. A failure has no consequences."""
        whole = self._body(request)
        # The engine looks its drafts up by the stop ids, too: they must be those of the request
        # that will follow.
        body = {name: whole[name] for name in ("prompt", "stop_token_ids", "user")}
        body["priority"] = "idle"
        if request.shorter:
            body["shorter_prompts"] = request.shorter
        with contextlib.suppress(*NO_ANSWER):
            async with self._get_session().post(
                **self._at("/fimls/prefill"), json=body
            ) as response:
                await response.read()

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        """Streams the answer. Raises EngineUnavailable if the endpoint refuses, breaks off or takes
        too long."""
        body = self._body(request)
        try:
            where = self._at("/v1/completions")
            async with self._get_session().post(**where, json=body) as response:
                if response.status != 200:
                    raise await self._refusal(response)
                async for line in response.content:
                    if not line.startswith(b"data:"):
                        continue
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        return
                    yield self._piece(data)
            raise broken_off(self._name)
        except (*NO_ANSWER, BAD_ANSWER) as error:
            raise no_answer(self._name, error, self._timeout_s) from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _at(self, path: str) -> dict[str, Any]:
        """What a request to this path needs. Raises OSError, ValueError where nobody is there."""
        where = self._where if isinstance(self._where, Where) else self._where()
        return {"url": where.url.rstrip("/") + path, "headers": where.headers}

    def _get_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=CONNECT_TIMEOUT_S)
            self._session = aiohttp.ClientSession(
                connector=self._make_connector(),
                timeout=timeout,
                proxy=self._proxy,
                trust_env=False,  # it would also send what ~/.netrc holds
            )
        return self._session

    def _body(self, request: CompletionRequest) -> dict[str, Any]:
        """The request as the JSON of POST /v1/completions."""
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": request.prompt,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "stream": True,
            "logprobs": 1,
        }
        if request.stop:
            body["stop"] = request.stop
        if self._extensions:
            body["stop_token_ids"] = request.stop_ids
            body["user"] = request.client
        if request.begin_with:
            body["begin_with"] = request.begin_with
        if request.copying:
            body["copying"] = dict(request.copying)
        if request.idle:
            body["priority"] = "idle"
        if request.shorter:
            body["shorter_prompts"] = request.shorter
            body["prefill_ms"] = request.prefill_ms
        return body

    async def _refusal(self, response: aiohttp.ClientResponse) -> EngineUnavailable:
        """The status, and the endpoint's own words where it has any."""
        try:
            words = _words((await response.json(content_type=None))["error"])
        except (ValueError, KeyError, TypeError, aiohttp.ClientError):
            words = response.reason or ""
        return refusal(self._name, response.status, words)

    def _piece(self, data: bytes) -> Piece:
        """One event of the stream. Raises EngineUnavailable."""
        try:
            body = json.loads(data)
            if "error" in body:
                words = _words(body["error"])
                raise EngineUnavailable(f"{self._name} failed", quoted=words, remedy=LOOK)
            return _piece(body)
        except (ValueError, TypeError, AttributeError, LookupError):
            raise other_dialect(self._name) from None


def _words(error: Any) -> str:
    """The text of the dialect's error object, or of a bare one; never more than a line."""
    if isinstance(error, dict):
        error = error.get("message")
    first_line = str(error).splitlines()[:1]
    return "".join(first_line)[:200]


def _piece(body: Any) -> Piece:
    """Raises ValueError, TypeError, AttributeError, LookupError for what is none."""
    choices = body.get("choices") or [{}]
    logprobs = (choices[0].get("logprobs") or {}).get("token_logprobs") or ()
    usage = body.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    own = body.get("fimls") or {}
    return Piece(
        text=str(choices[0].get("text") or ""),
        logprobs=tuple(float(x) for x in logprobs if isinstance(x, int | float)),
        reused_tokens=details.get("cached_tokens"),
        passes=own.get("passes"),
        prompt_tokens=usage.get("prompt_tokens"),
        prefill_per_s=own.get("prefill_per_s"),
    )
