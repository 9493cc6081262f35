"""The OpenAI completions dialect: its JSON -> Request, and the engine's events -> its JSON."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from model.engine.worker import Event, Failed, Finished, Request, Started
from model.errors import BadRequest
from model.generation.copying import CopyWeights
from model.generation.generate import Token
from model.generation.sampling import Sampling
from model.loading import LoadedModel


def parse_request(body: Mapping[str, Any], model: LoadedModel, *, prefill_only: bool) -> Request:
    """The dialect's fields -> Request. Raises BadRequest."""

    def number(name: str, default: float, low: float, high: float) -> float:
        value = body.get(name)
        value = default if value is None else value
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            raise BadRequest(f"{name} must be a number from {low} to {high}.")
        return value

    def integer(name: str, default: int, low: int, high: int) -> int:
        value = number(name, default, low, high)
        if value != int(value):
            raise BadRequest(f"{name} must be a whole number.")
        return int(value)

    config = model.decoder.config
    prompt = body.get("prompt")
    ids = model.tokenizer.encode_prompt(prompt) if isinstance(prompt, str) else prompt
    if (
        not isinstance(ids, list)
        or not ids
        or not all(type(i) is int and 0 <= i < config.vocab_size for i in ids)
    ):
        raise BadRequest(
            f"prompt must be a text or a list of token ids below {config.vocab_size}, and not "
            "empty."
        )
    max_new_tokens = 0 if prefill_only else integer("max_tokens", 16, 0, config.max_positions)
    if len(ids) + max_new_tokens > config.max_positions:
        raise BadRequest(
            f"prompt ({len(ids)} tokens) and max_tokens ({max_new_tokens}) exceed the model's "
            f"{config.max_positions}."
        )
    if body.get("n") not in (None, 1) or body.get("best_of") not in (None, 1) or body.get("echo"):
        raise BadRequest("n, best_of and echo are not supported.")
    stop = body.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    stop_ids = body.get("stop_token_ids") or []
    begin_with = body.get("begin_with") or ""  # ours: see model.healing
    if not isinstance(begin_with, str) or not begin_with.isascii() or len(begin_with) > 100:
        raise BadRequest("begin_with must be an ASCII text of at most 100 characters.")
    copying = body.get("copying")  # ours: see model.copying
    idle = is_idle(body)
    if not isinstance(stop, list) or not all(isinstance(s, str) for s in stop):
        raise BadRequest("stop must be a text or a list of texts.")
    if not isinstance(stop_ids, list) or not all(type(i) is int for i in stop_ids):
        raise BadRequest("stop_token_ids must be a list of token ids.")
    try:
        sampling = Sampling(
            temperature=number("temperature", 0.0, 0, 100),
            top_p=number("top_p", 1.0, 0, 1),
            seed=integer("seed", 0, 0, 2**63 - 1),
        )
        weights = CopyWeights(**copying) if copying else None
    except ValueError as error:
        raise BadRequest(str(error)) from None
    except (TypeError, OverflowError):  # OverflowError: a whole number beyond the floats
        raise BadRequest(
            "copying must be an object with the numbers bias, length, agreement, confidence."
        ) from None
    return Request(
        ids=tuple(ids),
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_ids=frozenset(stop_ids),
        stop=tuple(stop),
        client=str(body.get("user") or ""),
        begin_with=begin_with,
        copying=weights,
        idle=idle,
    )


def is_idle(body: Mapping[str, Any]) -> bool:
    """Whether nobody waits for it, by the field `priority`, which is ours. Raises BadRequest."""
    priority = body.get("priority")
    if priority not in (None, "idle"):
        raise BadRequest('priority must be "idle" where it is given.')
    return priority == "idle"


class Answer:
    """Collects or passes on the events of a request in the dialect's shape."""

    def __init__(self, model: str, logprobs: bool) -> None:
        self.model, self.logprobs = model, logprobs
        self.id, self.created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self.text = ""
        self.tokens: list[Token] = []
        self.end: Finished | Failed | None = None

    def add(self, event: Event) -> None:
        if isinstance(event, Token):
            self.text += event.text
            self.tokens.append(event)
        elif not isinstance(event, Started):
            self.text += event.rest if isinstance(event, Finished) else ""
            self.end = event

    def chunk(self, event: Event) -> dict[str, Any]:
        if isinstance(event, Failed):
            return {"error": {"message": event.message, "type": "server_error"}}
        if isinstance(event, Started):
            return self._body("", [], None, None) | {"usage": _usage(event.prompt, event.reused, 0)}
        if isinstance(event, Token):
            return self._body(event.text, [event], None, None)
        return self._body(event.rest, [], event.reason, event)

    def whole(self) -> tuple[int, dict[str, Any]]:
        """HTTP status and body of an answer that was not streamed."""
        if isinstance(self.end, Finished):
            return 200, self._body(self.text, self.tokens, self.end.reason, self.end)
        return 500, {
            "error": {
                "message": self.end.message if self.end else "no answer",
                "type": "server_error",
            }
        }

    def _body(
        self, text: str, tokens: list[Token], reason: str | None, end: Finished | None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": 0,
            "text": text,
            "finish_reason": reason,
            "logprobs": None,
        }
        if self.logprobs:
            choice["logprobs"] = {
                "tokens": [t.text for t in tokens],
                "token_logprobs": [t.logprob for t in tokens],
            }
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


def _usage(prompt: int, reused: int, generated: int) -> dict[str, Any]:
    """Counts in tokens, in the dialect's names."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": reused},
    }
