"""The routes: the OpenAI completions dialect, and our own calls under /fimls/.

POST /v1/completions   prompt as token ids (or as text, in which sentinels count), stream,
                       logprobs, stop, seed; closing the stream cancels
GET  /v1/models
GET  /fimls/status     state of the engine, for attaching and for `fimls engine status`
POST /fimls/prefill    fills the cache for a prompt, generates nothing
POST /fimls/release?client=NAME   this client needs the engine no longer: if it is the only one
                       that has asked something, the engine ends as soon as it is idle
POST /fimls/stop
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import sys
from collections.abc import AsyncGenerator
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import web

from model.engine.loading import EngineProcess
from model.errors import BadRequest
from model.machine import memory_bytes

if TYPE_CHECKING:  # torch is loaded on a thread of its own, after the socket answers
    from model.engine.http.openai_api import Answer
    from model.engine.request import Event, Request
    from model.engine.worker import Engine

HEAVY_PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes")
MAX_BODY = 16 * 2**20  # bytes, whatever the model
MAX_SHORT_BODY = 2**18  # beside the prompts
BYTES_A_POSITION = 9 * 8  # a prompt and its shorter ones, as ids
MAX_WAITING = 256  # requests
PROCESS = web.AppKey("process", EngineProcess)
NOT_LOADED = {
    "device": None,
    "dtype": None,
    "weights": None,
    "precision": None,
    "prepared": False,
    "upgraded": False,
    "busy": False,
    "waiting": 0,
    "served": 0,
    "forward_passes": None,
    "prefill_per_s": None,
    "decode_per_s": None,
    "idle_s": 0.0,
    "cache_bytes": 0,
    "cache_sequences": 0,
    "cache_restored": 0,
}


def make_app(process: EngineProcess) -> web.Application:
    app = web.Application(middlewares=[require_key, errors_as_json], client_max_size=MAX_BODY)
    app[PROCESS] = process
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/completions", completions)
    app.router.add_get("/fimls/status", status)
    app.router.add_post("/fimls/prefill", completions)
    app.router.add_post("/fimls/release", release)
    app.router.add_post("/fimls/stop", stop)
    return app


@web.middleware
async def require_key(request: web.Request, handler: Any) -> web.StreamResponse:
    """Over TCP only the key lets one in; a Unix socket is private by its permissions."""
    process = request.app[PROCESS]
    if process.key is not None:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, f"Bearer {process.key}".encode()):
            return closing(401, "The API key is missing or wrong.")
    peer = request.transport and request.transport.get_extra_info("peername")
    if process.port is not None and peer and not process.port.admit(peer):
        return closing(503, "Too many connections are open here. Close some.")
    response: web.StreamResponse = await handler(request)
    return response


@web.middleware
async def errors_as_json(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except BadRequest as error:
        return problem(400, str(error))
    except web.HTTPException as error:
        return problem(error.status, error.reason)
    return response


def problem(status: int, message: str) -> web.Response:
    return web.json_response(
        {"error": {"message": message, "type": "invalid_request_error"}}, status=status
    )


def closing(status: int, message: str) -> web.Response:
    """As `problem`; the connection is closed behind it."""
    refusal = problem(status, message)
    refusal.force_close()
    return refusal


async def status(request: web.Request) -> web.Response:
    process = request.app[PROCESS]
    answer = {
        "version": process.launch.version,
        "pid": os.getpid(),
        "state": process.state,
        "progress": process.progress,
        "message": process.failure,
        "model": process.launch.model,
        "memory_bytes": memory_bytes(),
        "packages": [name for name in HEAVY_PACKAGES if name in sys.modules],
    }
    if process.engine is None:
        answer |= NOT_LOADED
    else:
        answer |= engine_status(process.engine)
    return web.json_response(answer)


def engine_status(engine: Engine) -> dict[str, Any]:
    decoder = engine.model.decoder
    prepared = engine.model.prepared
    return {
        "device": str(decoder.device),
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "weights": decoder.scheme,
        "precision": engine.model.precision,
        "prepared": prepared is not None and prepared.restored,
        "upgraded": engine.upgraded,
        "busy": engine.busy,
        "waiting": len(engine.queue),
        "served": engine.served,
        "forward_passes": {"calls": engine.passes, "positions": engine.positions},
        "prefill_per_s": engine.speed.prefill,
        "decode_per_s": engine.speed.decode,
        "idle_s": engine.idle_s,
        "cache_bytes": engine.prefixes.nbytes,
        "cache_sequences": len(engine.prefixes),
        "cache_restored": engine.prefixes.restored,
    }


async def models(request: web.Request) -> web.Response:
    model = {
        "id": request.app[PROCESS].launch.model,
        "object": "model",
        "created": 0,
        "owned_by": "fimls",
    }
    return web.json_response({"object": "list", "data": [model]})


async def stop(request: web.Request) -> web.Response:
    process = request.app[PROCESS]
    process.told_to = True
    process.stopping.set()
    return web.json_response({"stopping": True})


async def release(request: web.Request) -> web.Response:
    process = request.app[PROCESS]
    process.released_by.add(request.query.get("client", ""))
    return web.json_response({"released": process.is_released})


async def completions(request: web.Request) -> web.StreamResponse:
    """/v1/completions; and /fimls/prefill, which computes the prompt into the cache and answers
    without any text."""
    process = request.app[PROCESS]
    engine = process.engine
    if engine is None:
        return problem(503, process.failure or "The model is loading.")
    from model.engine.http.openai_api import Answer, is_costly, parse_request

    if len(engine.queue) >= MAX_WAITING:
        return problem(503, "Too many requests are waiting. Ask again later.")
    body = await json_object(request, max_body(engine))
    prefill_only = request.path == "/fimls/prefill"
    parse = partial(parse_request, body, engine.model, prefill_only=prefill_only)
    wanted = await asyncio.to_thread(parse) if is_costly(body) else parse()
    logprobs = body.get("logprobs") not in (None, False)
    answer = Answer(process.launch.model, logprobs=logprobs)
    process.used_by(wanted.client)
    if body.get("stream"):
        return await stream(request, engine, wanted, answer)
    async for event in run(engine, wanted):
        answer.add(event)
    status, whole = answer.whole()
    return web.json_response(whole, status=status)


def max_body(engine: Engine) -> int:
    """Bytes of the longest request that this model can answer, or a little more."""
    positions = engine.model.decoder.config.max_positions
    return min(MAX_BODY, MAX_SHORT_BODY + BYTES_A_POSITION * positions)


async def json_object(request: web.Request, most: int) -> dict[str, Any]:
    """The body, of at most so many bytes. Raises BadRequest, HTTPRequestEntityTooLarge."""
    text = bytearray()
    async for part in request.content.iter_any():
        text += part
        if len(text) > most:
            raise web.HTTPRequestEntityTooLarge(max_size=most, actual_size=len(text))
    try:
        body = json.loads(text.decode(request.charset or "utf-8"))
    # The latter two: bottomless nesting, an unknown charset.
    except (ValueError, RecursionError, LookupError):
        raise BadRequest("The body is not JSON.") from None
    if not isinstance(body, dict):
        raise BadRequest("The body is not a JSON object.")
    return body


async def stream(
    request: web.Request, engine: Engine, wanted: Request, answer: Answer
) -> web.StreamResponse:
    """Sends each event of an answer as it comes, as server-sent events."""
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    )
    # A client that has gone is an ordinary end of a request.
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        async with contextlib.aclosing(run(engine, wanted)) as events:
            async for event in events:
                data = json.dumps(answer.chunk(event)).encode()
                await response.write(b"data: " + data + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
    return response


async def run(engine: Engine, request: Request) -> AsyncGenerator[Event]:
    """The events of one request. Leaving early, as when the client has gone, cancels it."""
    from model.engine.request import Failed, Finished

    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()

    def emit(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: the process is ending
            loop.call_soon_threadsafe(events.put_nowait, event)

    job = engine.submit(request, emit)
    try:
        while True:
            event = await events.get()
            yield event
            if isinstance(event, Finished | Failed):
                return
    finally:
        job.cancel()
