"""Makes the prompts for one model: as ids with its tokenizer, or as text for a model elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fim import (
    FORMATS,
    LAYOUTS,
    CursorContext,
    Encoder,
    FimFormat,
    FormatError,
    Layout,
    PieceEncoder,
    Sentinels,
    Snippet,
    around_cursor,
    build_prompt,
    render_text,
    resolve,
    with_anchor,
    without_closers,
    without_surrogates,
)
from fim.context import FAR
from fim.secrets import Masked, is_secret_path, mask
from fim.secrets.paths import LANGUAGES
from lsp_server.context.locations import name_in
from lsp_server.context.project import NOTHING, Surroundings
from lsp_server.documents import Snapshot
from lsp_server.engines.interface import CompletionRequest
from lsp_server.session.known_packages import KnownPackages
from lsp_server.session.prompt_sizes import UNLIMITED
from lsp_server.settings import Settings
from model.errors import ModelError
from model.weights.files import ATTRIBUTION, BUNDLED, ModelFiles
from model.weights.folder import PREFERENCES, find_model

REMOTE_CONTEXT_TOKENS = 2048
TIME_BUDGET_MS = 300.0
CHARACTERS_PER_TOKEN = 3  # of code, where there is no tokenizer to ask
HEADER_TOKENS = 16  # room for sentinels


@dataclass(frozen=True, slots=True)
class Prompter:
    """One model as prompts need it: its format, its tokenizer and its limits."""

    format: FimFormat
    encoder: Encoder
    sentinels: Sentinels | None  # None: the prompt is sent as text
    context_tokens: int  # prompt and completion together
    layout: Layout | None  # None: the format's preferred one
    attribution: KnownPackages
    suffix_tokens: int | None = None  # of the text after the cursor, at most
    min_confidence: float = 0.0  # less sure suggestions are hidden
    time_budget: float = TIME_BUDGET_MS  # milliseconds; then whole lines are shown
    heal_tokens: bool = False
    copying: Mapping[str, float] | None = None
    languages: tuple[str, ...] = ()  # what the model was trained on; () if unknown
    other_languages: str = ""  # the model to use for other languages

    @classmethod
    def for_settings(cls, settings: Settings) -> Prompter:
        """The prompter for the model that the settings name. Raises ModelError, FormatError."""
        if settings.remote.url and settings.remote.format:
            return cls._for_text(settings, settings.remote.format)
        is_local = not settings.remote.url
        folder = find_model(settings.model, to_run=is_local)
        tokenizer = folder.load_tokenizer()
        sentinels = resolve(tokenizer, settings.format, folder.config)
        encoder = PieceEncoder(tokenizer)
        limit = folder.max_positions
        preferred = folder.preferences
        layout = preferred_layout(folder)
        prompter = cls(
            format=sentinels.format,
            encoder=encoder,
            sentinels=sentinels,
            context_tokens=min(settings.context_tokens or limit, limit),
            layout=chosen_layout(settings) or layout,
            suffix_tokens=settings.suffix_tokens,
            min_confidence=first(settings.min_confidence, preferred.min_confidence),
            time_budget=first(settings.time_budget, TIME_BUDGET_MS),
            attribution=KnownPackages(folder.attribution),
            languages=preferred.languages,
            other_languages=preferred.other_languages,
        )
        if not is_local:  # other servers neither heal nor copy, and their speed is unknown
            return prompter
        heal = preferred.heal_tokens
        return replace(
            prompter,
            layout=prompter.layout or growing_layout(sentinels.format),
            time_budget=first(settings.time_budget, preferred.time_budget, TIME_BUDGET_MS),
            heal_tokens=encoder.cuts if heal is None else heal,
            copying=preferred.copying,
        )

    @classmethod
    def _for_text(cls, settings: Settings, name: str) -> Prompter:
        """For a remote model whose prompts are sent as text. Raises FormatError."""
        if name not in FORMATS:
            raise FormatError(f"unknown FIM format {name!r}: choose one of {', '.join(FORMATS)}")
        return cls(
            format=FORMATS[name],
            encoder=ApproximateEncoder(),
            sentinels=None,
            context_tokens=settings.context_tokens or REMOTE_CONTEXT_TOKENS,
            layout=chosen_layout(settings),
            suffix_tokens=settings.suffix_tokens,
            min_confidence=settings.min_confidence or 0.0,
            time_budget=first(settings.time_budget, TIME_BUDGET_MS),
            attribution=KnownPackages(BUNDLED / ATTRIBUTION),
        )

    def most_tokens(self, settings: Settings) -> int:
        """The most tokens that an answer may have."""
        return min(settings.max_tokens, self.context_tokens // 2)

    def context(
        self,
        snapshot: Snapshot,
        settings: Settings,
        path: str | None,
        previous: CursorContext | None = None,
        most: int = UNLIMITED,
    ) -> CursorContext:
        """The text around the cursor that fits into a prompt, at most `most` tokens.

        previous: the document's last context with this `most`; the new prompt then extends the
        previous one.
        """
        previously = {} if previous is None else {most: previous}
        return self.contexts(snapshot, settings, path, previously, (most,))[most]

    def contexts(
        self,
        snapshot: Snapshot,
        settings: Settings,
        path: str | None,
        previous: Mapping[int, CursorContext],
        sizes: Sequence[int],
        around: Surroundings = NOTHING,
    ) -> Mapping[int, CursorContext]:
        """As `context`, by size. All text of a prompt comes from here: what is secret in it is
        written over, and where all of it is, or what stands at the cursor, there is no text.

        around: the snippets of other files, which hold no secrets (context/project.py). Only the
        largest prompt has them, so that the others are ready when they change.
        """
        language = snapshot.language
        if snapshot.secret or language in LANGUAGES or is_secret_path(name_in(snapshot.uri)):
            nothing = CursorContext("", "", language=language, withheld="secret file")
            return dict.fromkeys(sizes, nothing)
        known = next((each.secrets for each in previous.values()), frozenset[str]())
        reach = min(self.context_tokens, max(sizes)) * FAR  # no window looks further
        masked = mask(snapshot.text, snapshot.offset, reach, known)
        if masked.at_cursor:
            nothing = CursorContext("", "", language=language, withheld="secret here")
            return dict.fromkeys(sizes, replace(nothing, secrets=masked.values))
        contexts = {}
        for size in sizes:
            before = previous.get(size)
            if before is not None and before.withheld:
                before = None
            shown = around if size == max(sizes) else NOTHING
            contexts[size] = self._context(snapshot, masked, settings, path, before, size, shown)
        return contexts

    def _context(
        self,
        snapshot: Snapshot,
        masked: Masked,
        settings: Settings,
        path: str | None,
        previous: CursorContext | None,
        most: int,
        around: Surroundings,
    ) -> CursorContext:
        header = HEADER_TOKENS
        if path and self.format.always_names_file:
            header += len(self.encoder.encode(path))
        room = self.context_tokens - self.most_tokens(settings) - header
        budget = max(0, min(room, most))
        snippets: tuple[Snippet, ...] = ()
        if around.snippets:
            for_snippets = self.snippet_tokens(most)
            snippets = self._fitting(around.snippets, for_snippets)
            budget -= for_snippets
        context = around_cursor(
            masked.text,
            snapshot.offset,
            encoder=self.encoder,
            token_budget=budget,
            suffix_budget=self.suffix_tokens,
            path=path,
            language=snapshot.language,
            previous=previous,
        )
        context = replace(context, secrets=masked.values)
        if snippets:
            context = replace(context, snippets=snippets, repository=around.repository)
        anchored = (self.layout or self.format.layouts[0]) == "anchored"
        return with_anchor(context, previous, self.encoder) if anchored else context

    def snippet_tokens(self, size: int) -> int:
        """Of the snippets of other files in a prompt of this size."""
        return min(self.format.snippet_tokens, size // 4, self.context_tokens // 4)

    def _fitting(self, snippets: Sequence[Snippet], budget: int) -> tuple[Snippet, ...]:
        """Those that fit, the last ones first."""
        kept: list[Snippet] = []
        for snippet in reversed(snippets):
            budget -= self.count(f"{snippet.path}\n{snippet.text}") + 2
            if budget < 0:
                break
            kept.append(snippet)
        return tuple(reversed(kept))

    def count(self, text: str) -> int:
        """The number of tokens of a text."""
        return len(self.encoder.encode(without_surrogates(text)))

    def request(
        self, context: CursorContext, settings: Settings, client: str
    ) -> tuple[CompletionRequest, Layout]:
        """The request and its layout. Raises FormatError for a layout that the model never saw."""
        request = CompletionRequest(
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
            return replace(request, prompt=text), self.layout or self.format.layouts[0]
        prompt = build_prompt(
            context, self.sentinels, self.encoder, self.layout, heal=self.heal_tokens
        )
        request = replace(
            request,
            prompt=prompt.ids,
            stop_ids=tuple(sorted(prompt.stop_ids)),
            begin_with=prompt.begin_with,
            copying=self.copying,
        )
        return request, prompt.layout

    def with_shorter(
        self, request: CompletionRequest, contexts: Sequence[CursorContext], settings: Settings
    ) -> CompletionRequest:
        """The request with the prompts of smaller contexts, the largest first, as a choice for the
        engine. A prompt that would not be shorter, or is healed otherwise, is left out."""
        shorter: list[tuple[int, ...]] = []
        length = len(request.prompt)
        for context in contexts:
            other, _ = self.request(context, settings, request.client)
            fits = other.begin_with == request.begin_with and len(other.prompt) < length
            if fits and not isinstance(other.prompt, str):
                length = len(other.prompt)
                shorter.append(other.prompt)
        return replace(request, shorter=tuple(shorter), prefill_ms=self.time_budget)


def chosen_layout(settings: Settings) -> Layout | None:
    """The layout that the user has chosen; None for the model's own."""
    return None if settings.layout == "auto" else settings.layout


def growing_layout(family: FimFormat) -> Layout:
    """The family's preferred layout, or the one that the model takes for it and that only grows
    while somebody types: of a prompt as long as a file little is read anew then."""
    preferred = family.layouts[0]
    return "anchored" if preferred == "psm" else preferred


def preferred_layout(folder: ModelFiles) -> Layout | None:
    """The layout that the model's fimls.json prefers; None where it prefers none.

    Raises ModelError for a layout that there is not.
    """
    wanted = folder.preferences.layout
    if wanted is None:
        return None
    for layout in LAYOUTS:
        if layout == wanted:
            return layout
    *names, last = map(repr, LAYOUTS)
    raise ModelError(
        f"{folder.path / PREFERENCES}: layout is {wanted!r}. It must be {', '.join(names)} or "
        f"{last}; correct or delete the file."
    )


def first(*choices: float | None) -> float:
    """The first that is not None."""
    return next(choice for choice in choices if choice is not None)


class ApproximateEncoder:
    """Estimates how many tokens a text has, where there is no tokenizer. It cannot decode."""

    def encode(self, text: str) -> list[int]:
        return [0] * -(-len(text) // CHARACTERS_PER_TOKEN)

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError("an approximate encoder only counts")

    def token_id(self, token: str) -> int | None:
        return None
