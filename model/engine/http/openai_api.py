"""The OpenAI completions dialect: its JSON -> Request, and the engine's events -> its JSON."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from model.engine.request import Event, Failed, Finished, Request, Started
from model.errors import BadRequest
from model.generation.copying import CopyWeights
from model.generation.generate import Token
from model.generation.sampling import Sampling
from model.loading import LoadedModel

MOST_SHORTER = 8
SHORTER = "Each of shorter_prompts must be shorter than the one before."
MOST_CHARACTERS = 32  # of a text for each position of the model; code has three or four
MOST_STOPS = 64
MOST_STOP_IDS = 1024
MOST_OF_A_NAME = 200  # characters


def parse_request(body: Mapping[str, Any], model: LoadedModel, *, prefill_only: bool) -> Request:
    """The dialect's fields and ours -> Request. Raises BadRequest.

    What is too long is refused before it is looked at. A text that is not may take seconds.
    """
    most = model.decoder.config.max_positions
    max_new_tokens = 0
    if not prefill_only:
        max_new_tokens = _whole(body, "max_tokens", 16, 0, most)
    ids = _ids(body.get("prompt"), model, "prompt", most, max_new_tokens)
    if body.get("n") not in (None, 1) or body.get("best_of") not in (None, 1) or body.get("echo"):
        raise BadRequest("n, best_of and echo are not supported.")
    return Request(
        ids=tuple(ids),
        max_new_tokens=max_new_tokens,
        sampling=_sampling(body),
        stop_ids=_stop_ids(body),
        stop=_stop(body),
        client=_client(body),
        begin_with=_begin_with(body),
        copying=_copying(body),
        idle=_idle(body),
        shorter=_shorter(body, model, len(ids)),
        prefill_s=_number(body, "prefill_ms", 0.0, 0, 1e9) / 1000,
    )


def _number(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequest(f"{name} must be a number from {low} to {high}.")
    return value


def _whole(body: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = _number(body, name, default, low, high)
    if value != int(value):
        raise BadRequest(f"{name} must be a whole number.")
    return int(value)


def is_costly(body: Mapping[str, Any]) -> bool:
    """Whether `parse_request` may take long: for texts, which are made into token ids."""
    shorter = body.get("shorter_prompts")
    others = shorter if isinstance(shorter, list) else []
    return any(isinstance(each, str) for each in (body.get("prompt"), *others[:MOST_SHORTER]))


def _ids(ids: Any, model: LoadedModel, name: str, most: int, max_new_tokens: int) -> list[int]:
    """At most so many token ids, with those that are to be generated, or a text in which sentinels
    count. name: of the field, for the message."""
    size = model.decoder.config.vocab_size
    if isinstance(ids, str):
        if len(ids) > most * MOST_CHARACTERS:
            raise BadRequest(
                f"{name} ({len(ids)} characters) is longer than {most} tokens of the model."
            )
        ids = model.tokenizer.encode_prompt(ids)
    if isinstance(ids, list) and len(ids) + max_new_tokens > most:
        raise BadRequest(
            f"{name} ({len(ids)} tokens) and max_tokens ({max_new_tokens}) exceed the model's "
            f"{most}."
        )
    known = isinstance(ids, list) and all(type(id) is int and 0 <= id < size for id in ids)
    if not known or not ids:
        raise BadRequest(
            f"{name} must be a text or a list of token ids below {size}, and not empty."
        )
    return list(ids)


def _shorter(
    body: Mapping[str, Any], model: LoadedModel, length: int
) -> tuple[tuple[int, ...], ...]:
    """A field of ours: prompts that may be run in the place of the first, which is longer."""
    prompts = body.get("shorter_prompts") or []
    if not isinstance(prompts, list) or len(prompts) > MOST_SHORTER:
        raise BadRequest(f"shorter_prompts must be a list of at most {MOST_SHORTER} prompts.")
    found = []
    for prompt in prompts:
        if isinstance(prompt, list) and len(prompt) >= length:
            raise BadRequest(SHORTER)
        ids = _ids(prompt, model, "Each of shorter_prompts", length, 0)
        if len(ids) >= length:
            raise BadRequest(SHORTER)
        length = len(ids)
        found.append(tuple(ids))
    return tuple(found)


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop") or []
    if isinstance(stop, str):
        stop = [stop]
    few = isinstance(stop, list) and len(stop) <= MOST_STOPS
    if not few or not all(isinstance(each, str) for each in stop):
        raise BadRequest(f"stop must be a text or a list of texts, at most {MOST_STOPS}.")
    return tuple(stop)


def _stop_ids(body: Mapping[str, Any]) -> frozenset[int]:
    """The token ids that end the answer, in a field that vLLM has, too."""
    ids = body.get("stop_token_ids") or []
    few = isinstance(ids, list) and len(ids) <= MOST_STOP_IDS
    if not few or not all(type(id) is int for id in ids):
        raise BadRequest(f"stop_token_ids must be a list of token ids, at most {MOST_STOP_IDS}.")
    return frozenset(ids)


def _sampling(body: Mapping[str, Any]) -> Sampling:
    temperature = _number(body, "temperature", 0.0, 0, 100)
    top_p = _number(body, "top_p", 1.0, 0, 1)
    seed = _whole(body, "seed", 0, 0, 2**63 - 1)
    try:
        return Sampling(temperature, top_p, seed)
    except ValueError as error:
        raise BadRequest(str(error)) from None


def _client(body: Mapping[str, Any]) -> str:
    """Who asks: clients take turns."""
    name = body.get("user") or ""
    if not isinstance(name, str) or len(name) > MOST_OF_A_NAME:
        raise BadRequest(f"user must be a text of at most {MOST_OF_A_NAME} characters.")
    return name


def _begin_with(body: Mapping[str, Any]) -> str:
    """A field of ours: see model/generation/token_healing.py."""
    text = body.get("begin_with") or ""
    if not isinstance(text, str) or not text.isascii() or len(text) > 100:
        raise BadRequest("begin_with must be an ASCII text of at most 100 characters.")
    return text


def _copying(body: Mapping[str, Any]) -> CopyWeights | None:
    """A field of ours: see model/generation/copying.py."""
    weights = body.get("copying")
    if not weights:
        return None
    try:
        return CopyWeights(**weights)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    except (TypeError, OverflowError):  # OverflowError: a whole number beyond the floats
        raise BadRequest(
            "copying must be an object with the numbers bias, length, agreement, confidence."
        ) from None


def _idle(body: Mapping[str, Any]) -> bool:
    """Whether nobody waits for the answer, by a field of ours."""
    priority = body.get("priority")
    if priority not in (None, "idle"):
        raise BadRequest('priority must be "idle" where it is given.')
    return priority == "idle"


class Answer:
    """Collects or passes on the events of a request in the dialect's shape."""

    def __init__(self, model: str, logprobs: bool) -> None:
        self.model = model
        self.logprobs = logprobs
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.text = ""
        self.tokens: list[Token] = []
        self.end: Finished | Failed | None = None

    def add(self, event: Event) -> None:
        if isinstance(event, Token):
            self.text += event.text
            self.tokens.append(event)
        elif isinstance(event, Finished):
            self.text += event.rest
            self.end = event
        elif isinstance(event, Failed):
            self.end = event

    def chunk(self, event: Event) -> dict[str, Any]:
        if isinstance(event, Failed):
            return _error(event.message)
        if isinstance(event, Started):
            return self._body("", [], None, None) | {"usage": _usage(event.prompt, event.reused, 0)}
        if isinstance(event, Token):
            return self._body(event.text, [event], None, None)
        return self._body(event.rest, [], event.reason, event)

    def whole(self) -> tuple[int, dict[str, Any]]:
        """HTTP status and body of an answer that was not streamed."""
        if isinstance(self.end, Finished):
            return 200, self._body(self.text, self.tokens, self.end.reason, self.end)
        if self.end is None:
            return 500, _error("no answer")
        return 500, _error(self.end.message)

    def _body(
        self, text: str, tokens: list[Token], reason: str | None, end: Finished | None
    ) -> dict[str, Any]:
        logprobs = None
        if self.logprobs:
            logprobs = {
                "tokens": [token.text for token in tokens],
                "token_logprobs": [token.logprob for token in tokens],
            }
        choice = {"index": 0, "text": text, "finish_reason": reason, "logprobs": logprobs}
        body: dict[str, Any] = {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [choice],
        }
        if end is not None:
            body["usage"] = _usage(end.reused + end.prefilled, end.reused, end.generated)
            body["fimls"] = asdict(end)
        return body


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error"}}


def _usage(prompt: int, reused: int, generated: int) -> dict[str, Any]:
    """Counts in tokens, in the dialect's names."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": reused},
    }
