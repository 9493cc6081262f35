"""The interface of engines: what a window asks, what it gets, and what the engine's state is."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A prompt, and how its completion is sampled."""

    prompt: tuple[int, ...] | str  # text for an endpoint whose tokenizer is not here
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    client: str = ""  # names the window
    # Only our own engine knows the fields below.
    begin_with: str = ""  # the completion starts with it; it is no part of the answer
    copying: Mapping[str, float] | None = None  # see model/generation/copying.py
    idle: bool = False  # requests that somebody waits for come first
    # Prompts with less text around the cursor, the longest first: the engine takes the first whose
    # uncached part it can read within prefill_ms, at the speed that it has measured.
    shorter: tuple[tuple[int, ...], ...] = ()
    prefill_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer's text, with the natural logarithms of its tokens' probabilities.

    Some fields are set only where the engine tells: prompt_tokens (of the prompt that it took) and
    reused_tokens (of these) on the first piece and the last, passes (how often the model was run)
    and prefill_per_s (its speed, in tokens) on the last.
    """

    text: str
    logprobs: tuple[float, ...] = ()
    reused_tokens: int | None = None
    passes: int | None = None
    prompt_tokens: int | None = None
    prefill_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class EngineState:
    """progress runs from 0 to 1 while loading; message is for the user."""

    name: Literal["absent", "loading", "ready", "failed"]
    progress: float = 0.0
    message: str | None = None


class EngineUnavailable(Exception):
    """The engine gives no answer now; the message says why.

    quoted: the endpoint's own words, which may repeat the user's text: for the user to read, not
    for the log. remedy: a sentence. tell_after: what may pass by itself is worth a message only
    after so many failures in a row.
    """

    def __init__(
        self, message: str, *, quoted: str = "", remedy: str = "", tell_after: int = 1
    ) -> None:
        words = message
        if quoted:
            words = f"{message}: {quoted.rstrip('.')}"
        if remedy:
            words = f"{words}. {remedy}"
        super().__init__(words)
        self.message = message
        self.quoted = quoted
        self.tell_after = tell_after


class Answering(Protocol):
    """What answers requests."""

    def complete(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        """Streams an answer; closing the generator cancels it. Raises EngineUnavailable."""


class Engine(Answering, Protocol):
    has_idle_time: bool  # it may be given work that nobody asked for
    prefill_per_s: float | None  # tokens of a prompt that it reads in a second; None: unknown
    address: str  # two engines of one address are one process

    @property
    def state(self) -> EngineState: ...

    def start(self) -> None:
        """Starts the engine or attaches to it, in the background, unless that is done already."""

    async def wait_until_settled(self) -> EngineState:
        """Waits until the engine is ready or has failed."""

    async def prefill(self, request: CompletionRequest) -> None:
        """Lets the engine read the prompt when it is idle; cancelling the caller ends that."""

    async def release(self, client: str) -> None:
        """Says that this client, which names a window in its requests, needs the engine no longer.
        An engine here that no other one has asked ends when it is idle; what it is answering is
        still answered."""

    async def close(self) -> None:
        """Lets go of the engine, which may live on for other windows."""
