"""A query made from a snapshot, and a completion made from the engine's answer to it.

`ask_engine` waits for the whole answer, for commands and fill-in edits. For suggestions see
suggestions.py: the answer may come from the cache, or be returned in part.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, Literal

from fim import (
    CursorContext,
    Layout,
    Reason,
    Shaper,
    Suggestion,
    Target,
    with_missing_indentation,
)
from lsp_server.completion.stream import AnswerStream
from lsp_server.completion.trace import Outcome, Trace
from lsp_server.context.project import NOTHING, Surroundings
from lsp_server.documents import Snapshot
from lsp_server.engines.interface import Answering, CompletionRequest
from lsp_server.session.prompt_sizes import UNLIMITED
from lsp_server.session.prompter import Prompter
from lsp_server.settings import Settings

# Alternatives are sampled: at this temperature they differ and are still code.
ALTERNATIVE_TEMPERATURE = 0.8
ALTERNATIVE_TOP_P = 0.95

State = Literal["whole", "cut", "late"]
"""How much of an answer there is: all of it, its whole lines, or nothing that can be shown."""


@dataclass(frozen=True)  # without slots, so that the key is computed once
class Query:
    """A question to the engine at one cursor, and the rules by which its answer is read."""

    snapshot: Snapshot
    prompter: Prompter
    settings: Settings
    contexts: Mapping[int, CursorContext]  # by size, the largest first
    request: CompletionRequest
    layout: Layout
    shaper: Shaper
    started: float  # by time.perf_counter
    context_ms: float
    prompt_ms: float

    @property
    def context(self) -> CursorContext:
        """The largest."""
        return next(iter(self.contexts.values()))

    @property
    def withheld(self) -> Reason | None:
        """Why the engine is not to be asked."""
        return self.context.withheld

    @cached_property
    def key(self) -> bytes:
        """The cache's key: prompt, sampling and Shaper (with min_confidence, which can end an
        answer early); without client and idle."""
        request = replace(self.request, client="", idle=False)
        ids = b""
        if not isinstance(request.prompt, str):
            # The repr of thousands of ids would take ten times as long.
            ids = b"".join(
                array("I", each).tobytes() for each in (request.prompt, *request.shorter)
            )
            lengths = tuple(map(len, request.shorter))
            request = replace(request, prompt=lengths, shorter=())
        rules = replace(self.shaper, known=frozenset(), secrets=frozenset(), off=frozenset())
        texts = [sorted(each) for each in (self.shaper.known, self.shaper.secrets, self.shaper.off)]
        return digest(repr((request, rules, texts)), ids)

    @property
    def elapsed_ms(self) -> float:
        return (time.perf_counter() - self.started) * 1000

    def alternative(self, number: int) -> Query:
        """The query with random sampling, seeded by the number; 0: the query itself."""
        if number == 0:
            return self
        request = replace(
            self.request,
            temperature=max(self.settings.temperature, ALTERNATIVE_TEMPERATURE),
            top_p=min(self.settings.top_p, ALTERNATIVE_TOP_P),
            seed=self.settings.seed + number,
        )
        return replace(
            self, request=request, started=time.perf_counter(), context_ms=0.0, prompt_ms=0.0
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """A suggestion, and how it came about: for "why?" and the commands."""

    query: Query
    answer: str  # the model's text, before any filter
    suggestion: Suggestion
    trace: Trace


def digest(text: str, more: bytes = b"") -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass") + more, digest_size=16).digest()


def query_at(
    snapshot: Snapshot,
    path: str | None,
    prompter: Prompter,
    settings: Settings,
    client: str,
    *,
    target: Target | None = None,
    sizes: Sequence[int] = (UNLIMITED,),
    contexts: Mapping[int, CursorContext] | None = None,
    previous: Mapping[int, CursorContext] = MappingProxyType({}),
    off: frozenset[str] = frozenset(),
    around: Surroundings = NOTHING,
) -> Query:
    """The query for a suggestion at the cursor, or for the text of a target there. Raises
    FormatError.

    path: relative to the workspace. client: names the window in the engine's queue. sizes: see
    session/prompt_sizes.py. contexts: of this snapshot by size, if they were made before. previous:
    the last contexts of the document. off: the names of fim.FILTERS that are left out of a
    suggestion. around: snippets of other files.
    """
    started = time.perf_counter()
    if contexts is None:
        contexts = prompter.contexts(snapshot, settings, path, previous, sizes, around)
    asked = list(contexts.values())
    if target is None:
        asked = [with_missing_indentation(each) for each in asked]
    context, *smaller = asked
    gathered = time.perf_counter()
    request, layout = prompter.request(context, settings, client)
    if smaller:
        request = prompter.with_shorter(request, smaller, settings)
    if target is None:
        least = prompter.min_confidence
        shaper = Shaper.at(
            context,
            prompter.format,
            multiline=settings.multiline,
            min_confidence=least,
            off=off,
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
    context_ms = (gathered - started) * 1000
    prompt_ms = (time.perf_counter() - gathered) * 1000
    times = (started, context_ms, prompt_ms)
    return Query(snapshot, prompter, settings, contexts, request, layout, shaper, *times)


async def ask_engine(engine: Answering, query: Query) -> Completion:
    """A completion of the whole answer; cancelling ends it at the engine, too. Raises
    EngineUnavailable."""
    if query.withheld is not None:
        return without_asking(query, query.withheld)
    load_attribution(query)
    stream = AnswerStream(engine, query.request, query.shaper)
    try:
        await stream.finished()
        return await make_completion(query, stream)
    finally:
        stream.close()


def without_asking(query: Query, reason: Reason) -> Completion:
    """A completion that shows nothing, for which the engine was not asked."""
    suggestion = Suggestion("", (0, 0), 0.0, (reason,), True)
    trace = Trace(outcome="hidden", total_ms=query.elapsed_ms, reasons=suggestion.reasons)
    return Completion(query, "", suggestion, trace)


async def wait_for_lines(query: Query, stream: AnswerStream) -> State:
    """Waits for the whole answer. After the time budget, whole lines that pass the filters are
    enough; "late" if there are none after the setting patience. Raises as the stream.

    Both times count from the query's start.
    """
    patience_s = query.settings.patience
    budget_s = min(query.prompter.time_budget / 1000, patience_s)
    while stream.running:
        spent_s = query.elapsed_ms / 1000
        if spent_s >= budget_s and not stream.shape_lines().hidden:
            return "cut"
        if spent_s >= patience_s:
            return "late"
        limit_s = budget_s
        if spent_s >= budget_s:
            limit_s = patience_s
        await stream.more(limit_s - spent_s)
    await stream.more()
    return "whole"


async def make_completion(
    query: Query, stream: AnswerStream, state: State = "whole", *, from_memory: bool = False
) -> Completion:
    """Filters the answer, looks it up in known packages, and makes the trace."""
    tokens = stream.tokens
    answer = stream.text
    if state != "whole":
        answer = stream.lines
    suggestion = shape(stream, state, query.request.max_tokens)
    shaped_ms = query.elapsed_ms
    suggestion = await attribute(query, suggestion)
    outcome: Outcome = "shown"
    if state == "late":
        outcome = "late"
    elif suggestion.hidden:
        outcome = "hidden"
    trace = Trace(
        outcome=outcome,
        layout=query.layout,
        extent=query.shaper.extent,
        generated_tokens=tokens,
        context_ms=query.context_ms,
        prompt_ms=query.prompt_ms,
        total_ms=query.elapsed_ms,
        cut=state == "cut",
        lines=suggestion.text.count("\n") + 1 if suggestion.text else 0,
        from_memory=from_memory,
        confidence=suggestion.confidence,
        reasons=suggestion.reasons,
        attribution_ms=query.elapsed_ms - shaped_ms,
        attribution=None if suggestion.match is None else str(suggestion.match),
        **engine_figures(query, stream, from_memory),
    )
    return Completion(query, answer, suggestion, trace)


def shape(stream: AnswerStream, state: State, most_tokens: int) -> Suggestion:
    """The suggestion of an answer that may have most_tokens tokens."""
    if state == "late":
        return stream.shaper.shape("")
    if state == "cut":
        return stream.shape_lines()
    suggestion = stream.shape()
    if stream.tokens >= most_tokens and not stream.shaper.done(stream.text, stream.sureness):
        lines = stream.shape_lines()  # half a line is no use
        if not lines.hidden:
            return lines
    return suggestion


def engine_figures(query: Query, stream: AnswerStream, from_memory: bool) -> dict[str, Any]:
    """The fields of the trace that tell what the engine did for this query."""
    tokens = 0
    if not isinstance(query.request.prompt, str):
        tokens = stream.prompt_tokens or len(query.request.prompt)
    figures: dict[str, Any] = {"prompt_tokens": tokens, "reused_tokens": stream.reused}
    if from_memory:
        return figures | {"prefilled_tokens": 0, "forward_passes": 0}
    if tokens and stream.reused is not None:
        figures["prefilled_tokens"] = tokens - stream.reused
    if stream.first_at is not None:
        figures["first_token_ms"] = (stream.first_at - query.started) * 1000
    return figures | {"forward_passes": stream.passes}


async def attribute(query: Query, suggestion: Suggestion) -> Suggestion:
    """The suggestion with the packages whose text it repeats; hidden if the settings say so."""
    setting = query.settings.attribution
    if setting == "off" or suggestion.hidden:
        return suggestion
    left_s = query.settings.patience - query.elapsed_ms / 1000
    attribution = await query.prompter.attribution.read(left_s)
    if attribution is None:
        return suggestion
    match = attribution.find(query.snapshot.text[: query.snapshot.offset], suggestion.text)
    if match is None:
        return suggestion
    return suggestion.attributed(match, hide=setting == "hide")


def load_attribution(query: Query) -> None:
    """Begins to read the filter of known packages on a thread: it takes some ten ms."""
    if query.settings.attribution != "off":
        query.prompter.attribution.start()
