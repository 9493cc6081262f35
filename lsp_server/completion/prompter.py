"""How prompts are made for one model: as ids with its tokenizer, or as text for one elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fim import (
    FORMATS,
    CursorContext,
    Encoder,
    FimFormat,
    FormatError,
    Layout,
    PieceEncoder,
    Sentinels,
    around_cursor,
    build_prompt,
    render_text,
    resolve,
    with_anchor,
    without_closers,
    without_surrogates,
)
from lsp_server.documents import Snapshot
from lsp_server.engines.interface import CompletionRequest
from lsp_server.settings import Settings
from model.tokenizer import Tokenizer
from model.weights.folder import ATTRIBUTION, BUNDLED, find_model

REMOTE_CONTEXT_TOKENS = 2048
TIME_BUDGET_MS = 300.0
CHARACTERS_PER_TOKEN = 3  # of code, on the safe side, where the tokenizer is not here to ask
HEADER_TOKENS = 16  # room for sentinels


@dataclass(frozen=True, slots=True)
class Prompter:
    """How prompts are made for one model: as ids with its tokenizer, or as text for a remote
    one."""

    format: FimFormat
    encoder: Encoder
    sentinels: Sentinels | None  # None: the prompt is sent as text
    context_tokens: int  # prompt and completion together
    layout: Layout | None  # None: the format's preferred one
    suffix_tokens: int | None = None  # of the text behind the cursor, at most
    min_confidence: float = 0.0  # suggestions below are hidden
    time_budget: float = TIME_BUDGET_MS  # milliseconds, behind which the whole lines are shown
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
                raise FormatError(
                    f"unknown FIM format {name!r}: choose one of {', '.join(FORMATS)}"
                )
            return cls(
                FORMATS[name],
                ApproximateEncoder(),
                None,
                settings.context_tokens or REMOTE_CONTEXT_TOKENS,
                layout,
                settings.suffix_tokens,
                min_confidence=settings.min_confidence or 0.0,
                time_budget=first(settings.time_budget, TIME_BUDGET_MS),
            )
        folder = find_model(settings.model, to_run=not settings.remote.url)
        tokenizer = Tokenizer(folder.path / "tokenizer.json")
        sentinels = resolve(tokenizer, settings.format, folder.model_type)
        limit = min(settings.context_tokens or folder.max_positions, folder.max_positions)
        preferred = folder.preferences
        own = (
            not settings.remote.url
        )  # others' servers can neither heal nor copy, nor is their speed known
        return cls(
            sentinels.format,
            PieceEncoder(tokenizer),
            sentinels,
            limit,
            layout or preferred.layout,
            settings.suffix_tokens,
            min_confidence=first(settings.min_confidence, preferred.min_confidence),
            time_budget=first(
                settings.time_budget, preferred.time_budget if own else None, TIME_BUDGET_MS
            ),
            heal_tokens=own and preferred.heal_tokens,
            copying=preferred.copying if own else None,
            attribution=folder.attribution,
            languages=preferred.languages,
            other_languages=preferred.other_languages,
        )

    def most_tokens(self, settings: Settings) -> int:
        """Tokens that an answer may have."""
        return min(settings.max_tokens, self.context_tokens // 2)

    def context(
        self,
        snapshot: Snapshot,
        settings: Settings,
        path: str | None,
        previous: CursorContext | None = None,
    ) -> CursorContext:
        """previous: the last one made here for this document, so that the prompt goes on where that
        one's ended."""
        header = HEADER_TOKENS
        if path and self.format.always_names_file:
            header += len(self.encoder.encode(path))
        context = around_cursor(
            snapshot.text,
            snapshot.offset,
            encoder=self.encoder,
            token_budget=max(0, self.context_tokens - self.most_tokens(settings) - header),
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

    def request(
        self, context: CursorContext, settings: Settings, client: str
    ) -> tuple[CompletionRequest, Layout]:
        """What to ask the engine. Raises FormatError: a layout that the model never saw."""
        asked = CompletionRequest(
            prompt=(),
            max_tokens=self.most_tokens(settings),
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            client=client,
        )
        context = replace(context, suffix=without_closers(context.suffix))
        if self.sentinels is None:
            text = render_text(context, self.format, self.layout)
            return replace(asked, prompt=text), self.layout or self.format.layouts[0]
        made = build_prompt(
            context, self.sentinels, self.encoder, self.layout, heal=self.heal_tokens
        )
        stop_ids, start = tuple(sorted(made.stop_ids)), made.begin_with
        asked = replace(
            asked, prompt=made.ids, stop_ids=stop_ids, begin_with=start, copying=self.copying
        )
        return asked, made.layout


def first(*choices: float | None) -> float:
    """The first that is not None."""
    return next(choice for choice in choices if choice is not None)


class ApproximateEncoder:
    """Counts tokens where no tokenizer is: good for a budget, for nothing else."""

    def encode(self, text: str) -> list[int]:
        return [0] * -(-len(text) // CHARACTERS_PER_TOKEN)

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError("an approximate encoder only counts")

    def token_id(self, token: str) -> int | None:
        return None
