"""One completion: Place -> Question (CursorContext, CompletionRequest) -> Generation -> Completion
(Suggestion, Trace).

`complete` is all of it in a row. A window takes the same steps, but may have the answer in parts,
ahead of time or from memory: see asking.py.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from array import array
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from fim import (
    Attribution,
    AttributionError,
    CursorContext,
    Layout,
    Shaper,
    Suggestion,
    Target,
)
from lsp_server.completion.prompter import Prompter
from lsp_server.completion.stream import Generation
from lsp_server.completion.trace import Trace
from lsp_server.documents import Snapshot
from lsp_server.engines.interface import CompletionRequest, Engine
from lsp_server.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """A cursor in a text, and by what it is answered there."""

    snapshot: Snapshot
    path: str | None  # relative to the workspace
    prompter: Prompter
    engine: Engine
    settings: Settings
    client: str  # tells one window's requests from another's


@dataclass(slots=True)
class Clock:
    """Milliseconds since it was made."""

    started: float = field(default_factory=time.perf_counter)

    def ms(self) -> float:
        return (time.perf_counter() - self.started) * 1000


_reading = threading.Lock()


def read_attribution(path: Path) -> Attribution | None:
    """The filter in a file; None without one, and the log says so once. From any thread."""
    with _reading:  # of two that read at once, lru_cache would let both
        return _read_attribution(path)


@lru_cache(maxsize=2)
def _read_attribution(path: Path) -> Attribution | None:
    try:
        return Attribution(path.read_bytes())
    except FileNotFoundError:
        logger.info("suggestions are not looked up in known packages: there is no %s", path)
    except (OSError, AttributionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        logger.warning(
            "%s cannot be used: %s. Suggestions are not looked up in known packages; "
            "install fimls or download the model again.",
            path,
            reason,
        )
    return None


def digest(text: str, more: bytes = b"") -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass") + more, digest_size=16).digest()


@dataclass(frozen=True)  # without slots, so that its key is computed once
class Question:
    """What the engine is asked at a cursor, and how its answer is read."""

    place: Place
    context: CursorContext
    request: CompletionRequest
    layout: Layout
    shaper: Shaper
    clock: Clock
    context_ms: float
    prompt_ms: float

    @cached_property
    def key(self) -> bytes:
        """What decides the answer, as a digest: not who asks, but how sure it has to be, for it
        ends when it is not."""
        request, ids = replace(self.request, client="", idle=False), b""
        if not isinstance(
            request.prompt, str
        ):  # thousands of ids, whose repr takes ten times as long
            request, ids = replace(request, prompt=()), array("I", request.prompt).tobytes()
        rules, known = replace(self.shaper, known=frozenset()), sorted(self.shaper.known)
        return digest(repr((request, rules, known)), ids)


@dataclass(frozen=True, slots=True)
class Completion:
    """The values of one request's way, for whoever wants to know why."""

    context: CursorContext
    request: CompletionRequest
    answer: str  # what the model wrote, before any filter
    broke_off: bool  # it had more to say than it was allowed to
    prompter: Prompter
    suggestion: Suggestion
    trace: Trace


def question_at(
    place: Place,
    *,
    target: Target | None = None,
    context: CursorContext | None = None,
    previous: CursorContext | None = None,
) -> Question:
    """Asks for a suggestion at the cursor, or for the words for a target there. Raises FormatError.

    context: the one that was made at this text before; previous: the last one for its document.
    """
    clock, prompter, settings = Clock(), place.prompter, place.settings
    if context is None:
        context = prompter.context(place.snapshot, settings, place.path, previous)
    context_ms = clock.ms()
    request, layout = prompter.request(context, settings, place.client)
    if target is None:
        sure = prompter.min_confidence
        shaper = Shaper.at(
            context, prompter.format, multiline=settings.multiline, min_confidence=sure
        )
    else:
        shaper = Shaper.for_span(
            context,
            prompter.format,
            extent=target.extent,
            max_lines=target.max_lines,
            least_columns=target.least_columns,
            closing=target.closing,
        )
    return Question(
        place, context, request, layout, shaper, clock, context_ms, clock.ms() - context_ms
    )


def begin(question: Question) -> Generation:
    """Asks the engine: the answer as it comes. Whoever begins it ends it."""
    place = question.place
    if (
        place.settings.attribution != "off"
    ):  # at first it takes some ten milliseconds, and the engine at least as many
        asyncio.get_running_loop().run_in_executor(
            None, read_attribution, place.prompter.attribution
        )
    return Generation(place.engine, question.request, question.shaper.done)


State = Literal["whole", "cut", "late"]


async def wait_for_lines(
    question: Question, generation: Generation, budget_s: float, patience_s: float
) -> State:
    """Waits for the whole answer; when the budget is spent, or patience, only for whole lines that
    pass the filters.

    "late" when there are none after so much patience. Both times run from when the question was
    made. Raises what the generation does.
    """
    budget_s = min(budget_s, patience_s)
    while generation.running:
        spent = question.clock.ms() / 1000
        if spent >= budget_s and not shape_lines(question, generation).hidden:
            return "cut"
        if spent >= patience_s:
            return "late"
        await generation.more((budget_s if spent < budget_s else patience_s) - spent)
    await generation.more()
    return "whole"


def shape_lines(question: Question, generation: Generation) -> Suggestion:
    """The suggestion, should nothing come behind the lines that are whole."""
    lines = generation.lines
    return question.shaper.shape(lines, generation.logprob(len(lines)))


async def finish(
    question: Question, generation: Generation, state: State = "whole", *, from_memory: bool = False
) -> Completion:
    """What is made of an answer, or of its whole lines when it was cut. from_memory: it was there
    before."""
    clock, shaper, place = question.clock, question.shaper, question.place
    snapshot, prompter, packages = place.snapshot, place.prompter, place.settings.attribution
    generated = len(generation.logprobs)
    if state == "whole":
        suggestion = shaper.shape(generation.text, generation.logprob())
        if "unsure" in suggestion.reasons:  # the lines before the doubt may be good
            lines = shape_lines(question, generation)
            suggestion = suggestion if lines.hidden else lines
    else:
        suggestion = shape_lines(question, generation) if state == "cut" else shaper.shape("")
    answer, shaped_ms, match = (
        generation.text if state == "whole" else generation.lines,
        clock.ms(),
        None,
    )
    if packages != "off" and not suggestion.hidden:
        loop = asyncio.get_running_loop()
        attribution = await loop.run_in_executor(None, read_attribution, prompter.attribution)
        if attribution is not None:
            before = snapshot.text[: snapshot.offset]
            if (match := attribution.find(before, suggestion.text)) is not None:
                suggestion = suggestion.attributed(match, hide=packages == "hide")
    prompt, first_at, reused = question.request.prompt, generation.first_at, generation.reused
    tokens = len(prompt) if not isinstance(prompt, str) else 0
    prefilled = None if reused is None or not tokens else tokens - reused
    trace = Trace(
        outcome="late" if state == "late" else "hidden" if suggestion.hidden else "shown",
        layout=question.layout,
        extent=shaper.extent,
        prompt_tokens=tokens,
        reused_tokens=reused,
        prefilled_tokens=0 if from_memory else prefilled,
        generated_tokens=generated,
        forward_passes=0 if from_memory else generation.passes,
        context_ms=question.context_ms,
        prompt_ms=question.prompt_ms,
        # Of an answer that was begun in idle time the first token may have been there before the
        # question.
        first_token_ms=None
        if first_at is None or from_memory
        else max(0.0, (first_at - clock.started) * 1000),
        total_ms=clock.ms(),
        cut=state == "cut",
        lines=suggestion.text.count("\n") + 1 if suggestion.text else 0,
        from_memory=from_memory,
        confidence=suggestion.confidence,
        reasons=suggestion.reasons,
        attribution_ms=clock.ms() - shaped_ms,
        attribution=None if match is None else str(match),
    )
    broke_off = (
        state == "whole" and generated >= question.request.max_tokens and not shaper.done(answer)
    )
    return Completion(
        question.context, question.request, answer, broke_off, prompter, suggestion, trace
    )


async def complete(
    place: Place, *, target: Target | None = None, context: CursorContext | None = None
) -> Completion:
    """One suggestion, whole, however long it takes. Raises EngineUnavailable, FormatError.

    Cancelling the caller ends the work at the engine.
    """
    question = question_at(place, target=target, context=context)
    generation = begin(question)
    try:
        await generation.finished()
        return await finish(question, generation)
    finally:
        generation.end()
