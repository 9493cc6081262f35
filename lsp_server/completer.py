"""The pipeline of one request: Snapshot -> CursorContext -> Prompt -> engine -> Suggestion, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from fim import (
    FORMATS,
    Attribution,
    AttributionError,
    CursorContext,
    Encoder,
    FimFormat,
    FormatError,
    Layout,
    Sentinels,
    Shaper,
    Suggestion,
    Target,
    around_cursor,
    build_prompt,
    render_text,
    resolve,
    without_surrogates,
)
from lsp_server.documents import Snapshot
from lsp_server.engines import CompletionRequest, Engine
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
            return cls(FORMATS[name], ApproximateEncoder(), None, limit, layout, settings.min_confidence or 0.0)
        folder = find_model(settings.model, to_run=not settings.remote.url)
        tokenizer = Tokenizer(folder.path / "tokenizer.json")
        sentinels = resolve(tokenizer, settings.format, folder.model_type)
        limit = min(settings.context_tokens or folder.max_positions, folder.max_positions)
        preferred = folder.preferences
        own = not settings.remote.url  # others' servers can neither heal nor copy
        confidence = preferred.min_confidence if settings.min_confidence is None else settings.min_confidence
        return cls(
            sentinels.format,
            tokenizer,
            sentinels,
            limit,
            layout or preferred.layout,
            min_confidence=confidence,
            heal_tokens=own and preferred.heal_tokens,
            copying=preferred.copying if own else None,
            attribution=folder.attribution,
            languages=preferred.languages,
            other_languages=preferred.other_languages,
        )

    def context(self, snapshot: Snapshot, max_tokens: int, path: str | None) -> CursorContext:
        header = HEADER_TOKENS
        if path and self.format.always_names_file:
            header += len(self.encoder.encode(path))
        return around_cursor(
            snapshot.text,
            snapshot.offset,
            encoder=self.encoder,
            token_budget=max(0, self.context_tokens - max_tokens - header),
            path=path,
            language=snapshot.language,
        )

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


@lru_cache(maxsize=2)
def read_attribution(path: Path) -> Attribution | None:
    """The filter in a file; None without one, and the log says so once."""
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
class Completion:
    """The values of one request's way, for whoever wants to know why."""

    context: CursorContext
    request: CompletionRequest
    answer: str  # what the model wrote, before any filter
    broke_off: bool  # it had more to say than it was allowed to
    prompter: Prompter
    suggestion: Suggestion
    trace: Trace


async def complete(
    snapshot: Snapshot,
    prompter: Prompter,
    engine: Engine,
    settings: Settings,
    *,
    path: str | None,
    client: str,
    target: Target | None = None,
) -> Completion:
    """One suggestion at the snapshot's cursor, or the words for a target there. Raises EngineUnavailable, FormatError.

    Cancelling the caller closes the stream, and so ends the work at the engine.
    """
    clock = Clock()
    max_tokens = min(settings.max_tokens, prompter.context_tokens // 2)
    context = prompter.context(snapshot, max_tokens, path)
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
    prompt_ms = clock.ms() - context_ms
    request = replace(
        prompt,
        max_tokens=max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
        client=client,
    )
    reading = None  # the first time it takes some ten milliseconds, and the engine at least as many
    if settings.attribution != "off":
        reading = asyncio.get_running_loop().run_in_executor(None, read_attribution, prompter.attribution)
    text, first_token_ms, reused = "", None, None
    logprobs: list[float] = []
    async with aclosing(engine.complete(request)) as pieces:
        async for piece in pieces:
            if first_token_ms is None and (piece.text or piece.logprobs):  # the first piece may only tell of the cache
                first_token_ms = clock.ms()
            text += piece.text
            logprobs += piece.logprobs
            reused = piece.reused_tokens if piece.reused_tokens is not None else reused
            if shaper.done(text):
                break
    mean = sum(logprobs) / len(logprobs) if logprobs else 0.0
    suggestion = shaper.shape(text, mean)
    shaped_ms, match = clock.ms(), None
    if reading is not None and not suggestion.hidden and (attribution := await reading) is not None:
        match = attribution.find(snapshot.text[: snapshot.offset], suggestion.text)
        if match is not None:
            suggestion = suggestion.attributed(match, hide=settings.attribution == "hide")
    trace = Trace(
        outcome="hidden" if suggestion.hidden else "shown",
        layout=layout,
        extent=shaper.extent,
        prompt_tokens=len(prompt.prompt) if not isinstance(prompt.prompt, str) else 0,
        reused_tokens=reused,
        generated_tokens=len(logprobs),
        context_ms=context_ms,
        prompt_ms=prompt_ms,
        first_token_ms=first_token_ms,
        total_ms=clock.ms(),
        confidence=suggestion.confidence,
        reasons=suggestion.reasons,
        attribution_ms=clock.ms() - shaped_ms,
        attribution=None if match is None else str(match),
    )
    broke_off = len(logprobs) >= max_tokens and not shaper.done(text)
    return Completion(context, request, text, broke_off, prompter, suggestion, trace)
