"""Where completions come from: the Engine protocol, and one HTTP client for the engine here and
endpoints elsewhere.

The dialect is OpenAI's completions (POST /v1/completions, server-sent events), which vLLM,
llama.cpp's server and our own engine speak. Closing the stream cancels the request at the other
end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import aiohttp
from aiohttp.http import HttpProcessingError

from lsp_server.settings import RemoteSettings

CONNECT_TIMEOUT_S = 2.0
NO_ANSWER = (aiohttp.ClientError, OSError, TimeoutError, ValueError)  # what aiohttp raises then


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A prompt as ids, or as text for an endpoint whose tokenizer is not here. client names the
    window."""

    prompt: tuple[int, ...] | str
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    client: str = ""
    begin_with: str = ""  # our own engine only: the answer comes behind this text
    copying: Mapping[str, float] | None = (
        None  # our own engine only: see model/generation/copying.py
    )
    # our own engine only: nobody waits for it, and whoever waits for something goes first
    idle: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of an answer. logprobs: of its tokens, natural logarithms.

    Where the engine tells: reused_tokens, of the prompt, come with the first piece or the last;
    passes, how often the model was run, with the last; ended: somebody else ended it there; id: the
    engine's name for the answer.
    """

    text: str
    logprobs: tuple[float, ...] = ()
    reused_tokens: int | None = None
    passes: int | None = None
    ended: bool = False
    id: str = ""


@dataclass(frozen=True, slots=True)
class EngineState:
    """progress runs from 0 to 1 while loading; message is for the user."""

    name: Literal["absent", "loading", "ready", "failed"]
    progress: float = 0.0
    message: str | None = None


class EngineUnavailable(Exception):
    """No answer is to be had now; the message says why.

    quoted: the endpoint's own words, which may repeat the user's text: for the user to read, not
    for the log. refused: the endpoint will not answer such requests later either, until somebody
    mends something.
    """

    def __init__(self, message: str, *, quoted: str = "", refused: bool = False) -> None:
        super().__init__(f"{message}: {quoted}" if quoted else message)
        self.message, self.refused = message, refused


class Engine(Protocol):
    has_idle_time: bool  # whether it may be given work that nobody asked for

    @property
    def state(self) -> EngineState: ...

    def start(self) -> None:
        """Sees to it that the engine gets ready, in the background."""

    async def wait_until_settled(self) -> EngineState:
        """Waits until the engine is ready or has failed."""

    def complete(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        """Streams an answer; closing the generator cancels it. Raises EngineUnavailable."""

    async def prefill(self, request: CompletionRequest) -> None:
        """Has the prompt read in idle time, where there is any; cancelling the caller ends it."""

    async def prioritize(self, id: str, *, idle: bool) -> None:
        """Says of an answer that is being written whether nobody waits for it, where the engine has
        idle time."""

    async def close(self) -> None:
        """Lets go of the engine, which may live on for other windows."""


class HttpClient:
    """The dialect over one aiohttp session, made when it is first needed."""

    def __init__(
        self,
        base_url: str,
        connector: Callable[[], aiohttp.BaseConnector],
        *,
        model: str,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        extensions: bool = False,
    ) -> None:
        self._base_url, self._connector, self._model = base_url.rstrip("/"), connector, model
        self._headers, self._timeout_s, self._extensions = (
            dict(headers or {}),
            timeout_s,
            extensions,
        )
        self._session: aiohttp.ClientSession | None = None

    def _get_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=CONNECT_TIMEOUT_S)
            self._session = aiohttp.ClientSession(
                connector=self._connector(), headers=self._headers, timeout=timeout, trust_env=False
            )
        return self._session

    async def call(
        self,
        method: str,
        path: str,
        timeout_s: float = CONNECT_TIMEOUT_S,
        body: dict[str, Any] | None = None,
    ) -> dict[str, Any] | None:
        """One small JSON call; None when nobody answers in time or the answer is no JSON object."""
        try:
            async with self._get_session().request(
                method,
                self._base_url + path,
                json=body,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
            ) as response:
                answer = await response.json()
                return answer if isinstance(answer, dict) else None
        except NO_ANSWER:
            return None

    async def prefill(self, request: CompletionRequest) -> None:
        """To our own engine: reads the prompt in idle time. That it does not come about is no
        matter."""
        prompt = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
        stop_ids = list(
            request.stop_ids
        )  # the engine's drafts are looked up by them, too: as the request's will be
        body = {
            "prompt": prompt,
            "stop_token_ids": stop_ids,
            "user": request.client,
            "priority": "idle",
        }
        with contextlib.suppress(*NO_ANSWER):
            async with self._get_session().post(
                self._base_url + "/fimls/prefill", json=body
            ) as response:
                await response.read()

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        """Raises EngineUnavailable when the endpoint refuses, breaks off or takes too long."""
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": request.prompt if isinstance(request.prompt, str) else list(request.prompt),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "stream": True,
            "logprobs": 1,
        }
        if request.stop:
            body["stop"] = list(request.stop)
        if (
            self._extensions
        ):  # known to vLLM and to our own engine; OpenAI itself refuses unknown fields
            body |= {"stop_token_ids": list(request.stop_ids), "user": request.client}
        if request.begin_with:
            body["begin_with"] = request.begin_with
        if request.copying:
            body["copying"] = dict(request.copying)
        if request.idle:
            body["priority"] = "idle"
        try:
            async with self._get_session().post(
                self._base_url + "/v1/completions", json=body
            ) as response:
                if response.status != 200:
                    raise await self._refusal(response)
                async for line in response.content:
                    if not line.startswith(b"data:"):
                        continue
                    data = line[5:].strip()
                    if data == b"[DONE]":
                        return
                    yield _piece(data)
            raise EngineUnavailable("the answer broke off")
        except (*NO_ANSWER, HttpProcessingError) as error:  # the latter is a line without an end
            raise EngineUnavailable(
                f"no answer from {self._base_url} ({type(error).__name__})"
            ) from None

    async def _refusal(self, response: aiohttp.ClientResponse) -> EngineUnavailable:
        """The status, and the endpoint's own words where it has any."""
        try:
            words = _words((await response.json(content_type=None))["error"])
        except (ValueError, KeyError, TypeError, aiohttp.ClientError):
            words = response.reason or ""
        message = f"{self._base_url} answered with status {response.status}"
        return EngineUnavailable(message, quoted=words, refused=400 <= response.status < 500)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


def _words(error: Any) -> str:
    """The text of the dialect's error object, or of a bare one; never more than a line."""
    text = str(error.get("message") if isinstance(error, dict) else error)
    return next(iter(text.splitlines()), "")[:200]


def _piece(data: bytes) -> Piece:
    try:
        body = json.loads(data)
        if "error" in body:
            raise EngineUnavailable("the endpoint failed", quoted=_words(body["error"]))
        choices = body.get("choices") or [{}]
        logprobs = (choices[0].get("logprobs") or {}).get("token_logprobs") or ()
        usage = body.get("usage") or {}
        details = usage.get("prompt_tokens_details") or {}
        return Piece(
            text=str(choices[0].get("text") or ""),
            logprobs=tuple(float(x) for x in logprobs if isinstance(x, int | float)),
            reused_tokens=details.get("cached_tokens"),
            passes=(body.get("fimls") or {}).get("passes"),
            ended=choices[0].get("finish_reason") == "cancelled",
            id=str(body.get("id") or ""),
        )
    except (ValueError, TypeError, AttributeError, LookupError):
        raise EngineUnavailable("the endpoint's answer is not in the completions dialect") from None


class RemoteEngine:
    """An OpenAI-compatible endpoint elsewhere. There is nothing to start; trouble shows with each
    request."""

    has_idle_time = False  # others' work, or money

    def __init__(self, settings: RemoteSettings) -> None:
        assert settings.url is not None
        key = settings.api_key or (
            os.environ.get(settings.api_key_env) if settings.api_key_env else None
        )
        self._client = HttpClient(
            settings.url.rstrip("/").removesuffix("/v1"),
            lambda: aiohttp.TCPConnector(ssl=_tls(settings)),
            model=settings.model,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout_s=settings.timeout,
            extensions=settings.format is None,  # who takes ids takes stop ids
        )
        self._state = EngineState("ready")

    @property
    def state(self) -> EngineState:
        return self._state

    def start(self) -> None:
        pass

    async def wait_until_settled(self) -> EngineState:
        return self._state

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        pieces = self._client.stream(request)
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()

    async def prefill(self, request: CompletionRequest) -> None:
        pass

    async def prioritize(self, id: str, *, idle: bool) -> None:
        pass

    async def close(self) -> None:
        await self._client.close()
        await asyncio.sleep(0)  # lets aiohttp close its transports


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
