"""The OpenAI completions dialect: what a body may ask for, and the shape of the answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model import LoadedModel, Tokenizer
from model.engine.http.openai_api import Answer, parse_request
from model.engine.request import Event, Failed, Finished, Request, Started
from model.errors import BadRequest
from model.generation.copying import CopyWeights
from model.generation.generate import Token
from model.generation.sampling import Sampling
from tests.model.toys import Parrot, toy_config


@pytest.fixture(scope="module")
def model(byte_tokenizer: Tokenizer) -> LoadedModel:
    return Parrot(config=toy_config(max_positions=32)).as_model(byte_tokenizer)


def parse(model: LoadedModel, body: dict[str, Any], *, prefill_only: bool = False) -> Request:
    return parse_request(json.loads(json.dumps(body)), model, prefill_only=prefill_only)


GOOD: list[tuple[dict[str, Any], Request]] = [
    ({"prompt": [9, 319]}, Request((9, 319), max_new_tokens=16)),
    ({"prompt": [9], "max_tokens": 0}, Request((9,), max_new_tokens=0)),
    ({"prompt": [9], "max_tokens": 31}, Request((9,), max_new_tokens=31)),
    ({"prompt": [9], "max_tokens": 4.0}, Request((9,), max_new_tokens=4)),
    ({"prompt": "<fim_prefix>a<fim_middle>"}, Request((1, 71, 2), max_new_tokens=16)),
    ({"prompt": [9], "stop": "\n"}, Request((9,), max_new_tokens=16, stop=("\n",))),
    ({"prompt": [9], "stop": ["a", "bc"]}, Request((9,), max_new_tokens=16, stop=("a", "bc"))),
    (
        {"prompt": [9], "stop_token_ids": [5, 6, 5]},
        Request((9,), max_new_tokens=16, stop_ids=frozenset({5, 6})),
    ),
    (
        {"prompt": [9], "copying": {"bias": -3, "length": 0.5, "agreement": 1, "confidence": 0}},
        Request((9,), max_new_tokens=16, copying=CopyWeights(-3, 0.5, 1, 0)),
    ),
    ({"prompt": [9], "user": "window 1"}, Request((9,), max_new_tokens=16, client="window 1")),
    (
        {"prompt": [9], "temperature": 1, "top_p": 0.5, "seed": 2**63 - 1},
        Request((9,), max_new_tokens=16, sampling=Sampling(1.0, 0.5, 2**63 - 1)),
    ),
    (  # as clients send what they do not set
        dict.fromkeys(
            (
                "max_tokens stop stop_token_ids temperature top_p seed n best_of echo user logprobs"
            ).split()
        )
        | {"prompt": [9], "model": "any", "stream": True, "suffix": None, "presence_penalty": 0},
        Request((9,), max_new_tokens=16),
    ),
    ({"prompt": [9], "n": 1, "best_of": 1, "echo": False}, Request((9,), max_new_tokens=16)),
]


@pytest.mark.parametrize(("body", "request_"), GOOD, ids=[json.dumps(b)[:70] for b, _ in GOOD])
def test_a_body_becomes_a_request(
    model: LoadedModel, body: dict[str, Any], request_: Request
) -> None:
    assert parse(model, body) == request_


def test_work_for_idle_time_is_told_apart(model: LoadedModel) -> None:
    assert [parse(model, {"prompt": [9], "priority": p}).idle for p in ("idle", None)] == [
        True,
        False,
    ]


def test_a_prefill_may_fill_the_model_to_the_brim_and_generates_nothing(model: LoadedModel) -> None:
    body = {"prompt": [9] * 32, "max_tokens": 5}
    assert parse(model, body, prefill_only=True) == Request((9,) * 32, max_new_tokens=0)


PROMPT = "prompt must be a text or a list of token ids below 320, and not empty"
BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, PROMPT),
    ({"prompt": []}, PROMPT),
    ({"prompt": ""}, PROMPT),
    ({"prompt": 9}, PROMPT),
    ({"prompt": [[9]]}, PROMPT),
    ({"prompt": ["a", "b"]}, PROMPT),
    ({"prompt": [9, 320]}, PROMPT),
    ({"prompt": [-1]}, PROMPT),
    ({"prompt": [9.0]}, PROMPT),
    ({"prompt": [True]}, PROMPT),
    ({"prompt": [9] * 33}, "prompt (33 tokens) and max_tokens (16) exceed the model's 32"),
    ({"copying": [1]}, "copying must be an object"),
    ({"copying": {"bias": 1}}, "copying must be an object"),
    (
        {"copying": {"bias": "1", "length": 0, "agreement": 0, "confidence": 0}},
        "copying must be an object",
    ),
    (
        {"copying": {"bias": 10**400, "length": 0, "agreement": 0, "confidence": 0}},
        "copying must be an object",
    ),
    (
        {"copying": {"bias": float("nan"), "length": 0, "agreement": 0, "confidence": 0}},
        "must be finite",
    ),
    ({"max_tokens": 32}, "prompt (1 tokens) and max_tokens (32) exceed the model's 32"),
    ({"max_tokens": 33}, "max_tokens must be a number from 0 to 32"),
    ({"max_tokens": -1}, "max_tokens must be a number from 0 to 32"),
    ({"max_tokens": "5"}, "max_tokens must be a number from 0 to 32"),
    ({"max_tokens": True}, "max_tokens must be a number from 0 to 32"),
    ({"max_tokens": 2.5}, "max_tokens must be a whole number"),
    ({"temperature": -0.1}, "temperature must be a number from 0 to 100"),
    ({"temperature": float("nan")}, "temperature must be a number from 0 to 100"),
    ({"temperature": float("inf")}, "temperature must be a number from 0 to 100"),
    ({"temperature": [1]}, "temperature must be a number from 0 to 100"),
    ({"top_p": 1.5}, "top_p must be a number from 0 to 1"),
    ({"top_p": 0}, "top_p 0 in (0, 1]"),
    ({"seed": -1}, "seed must be a number from 0 to 9223372036854775807"),
    ({"seed": 10**400}, "seed must be a number from 0 to 9223372036854775807"),
    ({"seed": 0.5}, "seed must be a whole number"),
    ({"n": 2}, "n, best_of and echo are not supported"),
    ({"best_of": 3}, "n, best_of and echo are not supported"),
    ({"echo": True}, "n, best_of and echo are not supported"),
    ({"stop": 5}, "stop must be a text or a list of texts"),
    ({"stop": ["a", 5]}, "stop must be a text or a list of texts"),
    ({"stop": {"a": 1}}, "stop must be a text or a list of texts"),
    ({"stop": ["a"] * 65}, "stop must be a text or a list of texts, at most 64"),
    ({"stop_token_ids": [5] * 1025}, "stop_token_ids must be a list of token ids, at most 1024"),
    ({"user": "a" * 201}, "user must be a text of at most 200 characters"),
    ({"user": {"a": 1}}, "user must be a text of at most 200 characters"),
    ({"prompt": "a" * 1025}, "prompt (1025 characters) is longer than 32 tokens of the model"),
    ({"prompt": ["not looked at"] * 33}, "prompt (33 tokens) and max_tokens (16) exceed"),
    ({"shorter_prompts": [["not looked at"] * 32]}, "must be shorter than the one before"),
    ({"stop_token_ids": 5}, "stop_token_ids must be a list of token ids"),
    ({"stop_token_ids": ["5"]}, "stop_token_ids must be a list of token ids"),
    ({"stop_token_ids": [True]}, "stop_token_ids must be a list of token ids"),
    ({"priority": "high"}, 'priority must be "idle" where it is given'),
    ({"priority": 1}, 'priority must be "idle" where it is given'),
]


@pytest.mark.parametrize(("body", "message"), BAD, ids=[json.dumps(b)[:70] for b, _ in BAD])
def test_a_field_that_cannot_be_is_named(
    model: LoadedModel, body: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(model, {"prompt": [9]} | body)
    assert message in str(caught.value)


STARTED = Started(prompt=5, reused=3)
FINISHED = Finished(
    "length",
    rest="!",
    reused=3,
    prefilled=2,
    generated=2,
    queued_s=0.5,
    prefill_s=0.2,
    decode_s=0.1,
    passes=3,
)
EVENTS: list[Event] = [STARTED, Token(71, "a", -0.5), Token(72, "b", -1.5), FINISHED]
USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 2,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 3},
}


def without_stamp(body: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """Checks and removes what differs from answer to answer."""
    assert body["id"] == answer.id and answer.id.startswith("cmpl-")
    assert body["created"] == answer.created > 1_700_000_000
    return {k: v for k, v in body.items() if k not in ("id", "created")}


def test_a_whole_answer_has_the_dialects_shape() -> None:
    answer = Answer("toy", logprobs=True)
    for event in EVENTS:
        answer.add(event)
    status, body = answer.whole()
    assert status == 200
    assert without_stamp(body, answer) == {
        "object": "text_completion",
        "model": "toy",
        "choices": [
            {
                "index": 0,
                "text": "ab!",
                "finish_reason": "length",
                "logprobs": {"tokens": ["a", "b"], "token_logprobs": [-0.5, -1.5]},
            }
        ],
        "usage": USAGE,
        "fimls": {
            "reason": "length",
            "rest": "!",
            "reused": 3,
            "prefilled": 2,
            "generated": 2,
            "queued_s": 0.5,
            "prefill_s": 0.2,
            "decode_s": 0.1,
            "passes": 3,
            "drafted": 0,
            "accepted": 0,
            "prefill_per_s": None,
        },
    }


def test_a_streamed_answer_has_the_dialects_shape() -> None:
    answer = Answer("toy", logprobs=True)
    bodies = [without_stamp(answer.chunk(e), answer) for e in EVENTS]
    assert [b["choices"] for b in bodies] == [
        [
            {
                "index": 0,
                "text": text,
                "finish_reason": end,
                "logprobs": {"tokens": tokens, "token_logprobs": logprobs},
            }
        ]
        for text, end, tokens, logprobs in [
            ("", None, [], []),
            ("a", None, ["a"], [-0.5]),
            ("b", None, ["b"], [-1.5]),
            ("!", "length", [], []),
        ]
    ]
    assert {b["object"] for b in bodies} == {"text_completion"} and {
        b["model"] for b in bodies
    } == {"toy"}
    assert bodies[0]["usage"] == USAGE | {"completion_tokens": 0, "total_tokens": 5}
    assert [set(b) for b in bodies[1:3]] == [{"object", "model", "choices"}] * 2
    assert bodies[3]["usage"] == USAGE and bodies[3]["fimls"]["decode_s"] == 0.1


def test_log_probabilities_come_only_when_asked_for() -> None:
    answer = Answer("toy", logprobs=False)
    assert [answer.chunk(e)["choices"][0]["logprobs"] for e in EVENTS] == [None] * 4


@pytest.mark.parametrize(
    ("events", "message"),
    [([STARTED, Failed("no room")], "no room"), ([STARTED, EVENTS[1]], "no answer")],
)
def test_a_failure_is_an_error_whole_and_streamed(events: list[Event], message: str) -> None:
    answer = Answer("toy", logprobs=True)
    for event in events:
        answer.add(event)
    assert answer.whole() == (500, {"error": {"message": message, "type": "server_error"}})
    assert answer.chunk(Failed(message)) == answer.whole()[1]
