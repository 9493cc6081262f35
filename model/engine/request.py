"""A request to the engine, and the events of its answer."""

from __future__ import annotations

from dataclasses import dataclass

from model.generation.copying import CopyWeights
from model.generation.generate import GREEDY, Token
from model.generation.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and how to continue it. max_new_tokens 0 only fills the cache. client names who
    waits for it.

    shorter: prompts for the same place with less text around it, the longest first. Of all of them
    the first is run whose uncached part is prefilled within prefill_s seconds at the measured
    speed; if there is none, the one with the smallest such part. An idle request fills the cache
    for each, the shortest first.

    idle: nobody waits for it yet. It runs when nothing else does, and is cancelled as soon as a
    request comes that somebody waits for.
    """

    ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = GREEDY
    stop_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    client: str = ""
    begin_with: str = ""  # the completion starts with this text, which is not part of the answer
    copying: CopyWeights | None = None
    idle: bool = False
    shorter: tuple[tuple[int, ...], ...] = ()
    prefill_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Started:
    """The first event of a request that is run: its prompt in tokens, and how many of them the
    cache had."""

    prompt: int
    reused: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a request. reason: "stop", "length" or "cancelled"; counts in tokens, times
    in seconds.

    passes: how often the model was run for it. drafted, accepted: the draft's tokens, and those of
    them that the model confirmed.
    """

    reason: str
    rest: str  # text held back because a stop string might have begun with it
    reused: int
    prefilled: int
    generated: int
    queued_s: float
    prefill_s: float
    decode_s: float
    passes: int = 0
    drafted: int = 0
    accepted: int = 0
    prefill_per_s: float | None = None  # positions, measured on the latest requests


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a request that could not be run; the message is for the user."""

    message: str


Event = Started | Token | Finished | Failed
