"""The pipeline of one request: Snapshot -> CursorContext -> Prompt -> engine -> Suggestion, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from fim import (
    FORMATS,
    Attribution,
    AttributionError,
    CursorContext,
    Encoder,
    FimFormat,
    FormatError,
    Layout,
    PieceEncoder,
    Sentinels,
    Shaper,
    Suggestion,
    Target,
    around_cursor,
    build_prompt,
    render_text,
    resolve,
    with_anchor,
    without_surrogates,
)
from lsp_server.documents import Snapshot
from lsp_server.engines import CompletionRequest, Engine
from lsp_server.generation import Generation
from lsp_server.settings import Settings
from lsp_server.trace import Trace
from model.hub import ATTRIBUTION, BUNDLED, find_model
from model.tokenizer import Tokenizer

logger = logging.getLogger(__name__)
REMOTE_CONTEXT_TOKENS = 2048
CHARACTERS_PER_TOKEN = 3  # of code, on the safe side, where the tokenizer is not here to ask
HEADER_TOKENS = 16  # room for sentinels


@dataclass(frozen=True, slots=True)
class Prompter:
    """How prompts are made for one model: as ids with its tokenizer, or as text for a remote one."""

    format: FimFormat
    encoder: Encoder
    sentinels: Sentinels | None  # None: the prompt is sent as text
    context_tokens: int  # prompt and completion together
    layout: Layout | None  # None: the format's preferred one
    suffix_tokens: int | None = None  # of the text behind the cursor, at most
    min_confidence: float = 0.0  # suggestions below are hidden
    heal_tokens: bool = False
    copying: Mapping[str, float] | None = None
    attribution: Path = BUNDLED / ATTRIBUTION
    languages: tuple[str, ...] = ()  # what the model was trained on; () if unknown
    other_languages: str = ""  # the model to use for the rest

    @classmethod
    def for_settings(cls, settings: Settings) -> Prompter:
        """Raises ModelError or FormatError, whose messages name the remedy."""
        layout = None if settings.layout == "auto" else settings.layout
        if settings.remote.url and settings.remote.format:
            name = settings.remote.format
            if name not in FORMATS:
                raise FormatError(f"unknown FIM format {name!r}: choose one of {', '.join(FORMATS)}")
            limit = settings.context_tokens or REMOTE_CONTEXT_TOKENS
            confidence = settings.min_confidence or 0.0
            return cls(FORMATS[name], ApproximateEncoder(), None, limit, layout, settings.suffix_tokens, confidence)
        folder = find_model(settings.model, to_run=not settings.remote.url)
        tokenizer = Tokenizer(folder.path / "tokenizer.json")
        sentinels = resolve(tokenizer, settings.format, folder.model_type)
        limit = min(settings.context_tokens or folder.max_positions, folder.max_positions)
        preferred = folder.preferences
        own = not settings.remote.url  # others' servers can neither heal nor copy
        confidence = preferred.min_confidence if settings.min_confidence is None else settings.min_confidence
        return cls(
            sentinels.format,
            PieceEncoder(tokenizer),
            sentinels,
            limit,
            layout or preferred.layout,
            settings.suffix_tokens,
            min_confidence=confidence,
            heal_tokens=own and preferred.heal_tokens,
            copying=preferred.copying if own else None,
            attribution=folder.attribution,
            languages=preferred.languages,
            other_languages=preferred.other_languages,
        )

    def context(
        self, snapshot: Snapshot, max_tokens: int, path: str | None, previous: CursorContext | None = None
    ) -> CursorContext:
        """previous: the last one made here for this document, so that the prompt goes on where that one's ended."""
        header = HEADER_TOKENS
        if path and self.format.always_names_file:
            header += len(self.encoder.encode(path))
        context = around_cursor(
            snapshot.text,
            snapshot.offset,
            encoder=self.encoder,
            token_budget=max(0, self.context_tokens - max_tokens - header),
            suffix_budget=self.suffix_tokens,
            path=path,
            language=snapshot.language,
            previous=previous,
        )
        anchored = (self.layout or self.format.layouts[0]) == "anchored"
        return with_anchor(context, previous, self.encoder) if anchored else context

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.encoder.encode(without_surrogates(text)))

    def request(self, context: CursorContext) -> tuple[CompletionRequest, Layout]:
        """What to ask the engine, as far as the prompt goes. Raises FormatError: a layout that the model never saw."""
        if self.sentinels is None:
            text = render_text(context, self.format, self.layout)
            return CompletionRequest(text, max_tokens=0), self.layout or self.format.layouts[0]
        prompt = build_prompt(context, self.sentinels, self.encoder, self.layout, heal=self.heal_tokens)
        stop_ids = tuple(sorted(prompt.stop_ids))
        asked = CompletionRequest(prompt.ids, 0, stop_ids=stop_ids, begin_with=prompt.begin_with, copying=self.copying)
        return asked, prompt.layout


class ApproximateEncoder:
    """Counts tokens where no tokenizer is: good for a budget, for nothing else."""

    def encode(self, text: str) -> list[int]:
        return [0] * -(-len(text) // CHARACTERS_PER_TOKEN)

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError("an approximate encoder only counts")

    def token_id(self, token: str) -> int | None:
        return None


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
        logger.warning("%s cannot be used: %s. Suggestions are not looked up in known packages; "
                       "install fimls or download the model again.", path, reason)  # fmt: skip
    return None


@dataclass(frozen=True, slots=True)
class Question:
    """What the engine is asked at a cursor, and how its answer is read."""

    snapshot: Snapshot
    context: CursorContext
    request: CompletionRequest
    layout: Layout
    shaper: Shaper
    prompter: Prompter
    attribution: Literal["show", "hide", "off"]
    clock: Clock
    context_ms: float
    prompt_ms: float


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
    snapshot: Snapshot,
    prompter: Prompter,
    settings: Settings,
    *,
    path: str | None,
    client: str,
    target: Target | None = None,
    context: CursorContext | None = None,
    previous: CursorContext | None = None,
) -> Question:
    """Asks for a suggestion at the snapshot's cursor, or for the words for a target there. Raises FormatError.

    context: the one that was made at this text before; previous: the last one for its document.
    """
    clock = Clock()
    max_tokens = most_tokens(prompter, settings)
    if context is None:
        context = prompter.context(snapshot, max_tokens, path, previous)
    context_ms = clock.ms()
    prompt, layout = prompter.request(context)
    if target is None:
        sure = prompter.min_confidence
        shaper = Shaper.at(context, prompter.format, multiline=settings.multiline, min_confidence=sure)
    else:
        shaper = Shaper.for_span(
            context,
            prompter.format,
            extent=target.extent,
            max_lines=target.max_lines,
            least_columns=target.least_columns,
            closing=target.closing,
        )
    request = replace(
        prompt,
        max_tokens=max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
        client=client,
    )
    prompt_ms = clock.ms() - context_ms
    return Question(
        snapshot, context, request, layout, shaper, prompter, settings.attribution, clock, context_ms, prompt_ms
    )


def most_tokens(prompter: Prompter, settings: Settings) -> int:
    """Tokens that an answer may have."""
    return min(settings.max_tokens, prompter.context_tokens // 2)


def ask(engine: Engine, question: Question) -> Generation:
    """The answer as it comes; whoever asked ends it."""
    if question.attribution != "off":  # the first time it takes some ten milliseconds, and the engine at least as many
        asyncio.get_running_loop().run_in_executor(None, read_attribution, question.prompter.attribution)
    return Generation(engine.complete(question.request), question.shaper.done)


State = Literal["whole", "cut", "late"]


async def wait_for_lines(question: Question, generation: Generation, budget_s: float, patience_s: float) -> State:
    """Waits for the whole answer; when the budget is spent, only for whole lines that pass the filters.

    "late" when there are none after so much patience. Both times run from when the question was made. Raises what the
    generation does.
    """
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
    return question.shaper.shape(lines, generation.mean_logprob(len(lines)))


async def finish(
    question: Question, generation: Generation, state: State = "whole", *, from_memory: bool = False
) -> Completion:
    """What is made of an answer, or of its whole lines when it was cut. from_memory: it was there before."""
    clock, shaper, prompter = question.clock, question.shaper, question.prompter
    generated = len(generation.logprobs)
    if state == "whole":
        suggestion = shaper.shape(generation.text, generation.mean_logprob())
    else:
        suggestion = shape_lines(question, generation) if state == "cut" else shaper.shape("")
    answer, shaped_ms, match = generation.text if state == "whole" else generation.lines, clock.ms(), None
    if question.attribution != "off" and not suggestion.hidden:
        loop = asyncio.get_running_loop()
        attribution = await loop.run_in_executor(None, read_attribution, prompter.attribution)
        if attribution is not None:
            before = question.snapshot.text[: question.snapshot.offset]
            if (match := attribution.find(before, suggestion.text)) is not None:
                suggestion = suggestion.attributed(match, hide=question.attribution == "hide")
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
        first_token_ms=None if first_at is None or from_memory else (first_at - clock.started) * 1000,
        total_ms=clock.ms(),
        cut=state == "cut",
        lines=suggestion.text.count("\n") + 1 if suggestion.text else 0,
        from_memory=from_memory,
        confidence=suggestion.confidence,
        reasons=suggestion.reasons,
        attribution_ms=clock.ms() - shaped_ms,
        attribution=None if match is None else str(match),
    )
    broke_off = state == "whole" and generated >= question.request.max_tokens and not shaper.done(answer)
    return Completion(question.context, question.request, answer, broke_off, prompter, suggestion, trace)


async def complete(
    snapshot: Snapshot,
    prompter: Prompter,
    engine: Engine,
    settings: Settings,
    *,
    path: str | None,
    client: str,
    target: Target | None = None,
    context: CursorContext | None = None,
) -> Completion:
    """One suggestion, whole, however long it takes. Raises EngineUnavailable, FormatError.

    Cancelling the caller ends the work at the engine.
    """
    question = question_at(snapshot, prompter, settings, path=path, client=client, target=target, context=context)
    generation = ask(engine, question)
    try:
        await generation.finished()
        return await finish(question, generation)
    finally:
        generation.end()
