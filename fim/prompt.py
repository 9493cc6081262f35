"""CursorContext + format -> prompt: as token ids, or as text for an endpoint whose tokenizer is not
here."""

import re
from dataclasses import dataclass, replace
from typing import Literal

from fim.context import CursorContext, as_trained
from fim.formats import Encoder, FimFormat, FormatError, Layout, Sentinels

Span = tuple[int, int]  # (start, stop)

# What GPT-2's pre-tokenization, which the byte-level families share, joins with what comes behind
# it: a word or a run of punctuation with the blank before, or that blank. ASCII only: every
# tokenizer can spell that.
_LAST_PIECE = re.compile(r" ?[A-Za-z]{1,32}\Z| ?[!-/:-@\[-`{-~]{1,32}\Z| \Z")
_LONGEST_PIECE = 33


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids for the model. The spans index `ids`; a part that is absent has an empty span."""

    ids: tuple[int, ...]
    layout: Layout
    stop_ids: frozenset[int]
    context: Span  # headers and snippets with their sentinels, all that stands before the FIM part
    prefix: Span  # plain text ids; with StarCoder2's header the path is their first line
    suffix: Span  # plain text ids
    begin_with: str = (
        ""  # the end of the prefix that the ids leave out: the answer has to spell it first
    )
    typed: Span = (0, 0)  # plain text ids; with the layout "anchored" the rest of the prefix


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of the prompt in its order: one sentinel, or plain text of its own tokenization."""

    role: Literal["sentinel", "header", "prefix", "suffix", "typed"]
    text: str


def build_prompt(
    context: CursorContext,
    sentinels: Sentinels,
    encoder: Encoder,
    layout: Layout | None = None,
    *,
    heal: bool = False,
) -> Prompt:
    """The prompt as ids. The pieces between sentinels are tokenized separately, as in the models'
    training.

    `layout` None is the family's preferred one. Snippets are written as files of the repository,
    where the family has a mark for files; elsewhere they are left out. The StarCoder2 paper §5 and
    the Qwen2.5-Coder report give the forms.

    heal leaves out the last piece of the prefix that a tokenizer would have joined with what
    follows it, and asks for an answer that begins with it (token healing: model.healing). While a
    word is typed, the ids stay the same. Behind an anchor only what was typed since is healed.

    Raises FormatError: a layout that the family never saw (pure SPM training scores 2% on psm:
    Bavarian et al. 2022).
    """
    family = sentinels.format
    layout = _checked(family, layout)
    anchor = len(context.prefix) - context.typed if layout == "anchored" else 0
    found = (
        _LAST_PIECE.search(context.prefix[max(anchor, len(context.prefix) - _LONGEST_PIECE) :])
        if heal
        else None
    )
    begin_with = found[0] if found else ""
    context = replace(
        context,
        prefix=context.prefix.removesuffix(begin_with),
        typed=max(0, context.typed - len(begin_with)),
    )
    sentinel_ids = {
        family.prefix: sentinels.prefix,
        family.suffix: sentinels.suffix,
        family.middle: sentinels.middle,
        family.repo_name: sentinels.repo_name,
        family.file_sep: sentinels.file_sep,
    }

    def encode(piece: _Piece) -> list[int]:
        if piece.role == "sentinel":
            sentinel = sentinel_ids[piece.text]
            assert sentinel is not None  # resolve() left out of the format what has no id
            return [sentinel]
        text = as_trained(piece.text)
        bare = piece.role in ("suffix", "typed") and family.bare_suffix
        return _encode_bare(encoder, text) if bare else encoder.encode(text)

    ids = [] if sentinels.begin is None else [sentinels.begin]
    first = len(ids)
    header = _header(context, family)
    for piece in header:
        ids += encode(piece)
    header_end = len(ids)
    spans: dict[str, Span] = {}
    for piece in _infill(context, family, layout, named=bool(header)):
        start = len(ids)
        ids += encode(piece)
        spans[piece.role] = (start, len(ids))
    return Prompt(
        ids=tuple(ids),
        layout=layout,
        stop_ids=sentinels.stop_ids,
        context=(first, header_end),
        prefix=spans["prefix"],
        suffix=spans["suffix"],
        begin_with=begin_with,
        typed=spans.get("typed", (len(ids), len(ids))),
    )


def render_text(context: CursorContext, format: FimFormat, layout: Layout | None = None) -> str:
    """The same prompt as text, without `begin`, which endpoints add themselves.

    An endpoint turns a sentinel's text into the sentinel wherever it stands, so one that is part of
    the user's code gets a zero-width space after its first character: nothing is lost or visibly
    changed, no tokenizer takes it for the sentinel, and should the model copy it, `Shaper` cuts
    there, since the user's text has no such character.

    Raises FormatError: as `build_prompt`.
    """
    written = []
    header = _header(context, format)
    for piece in (*header, *_infill(context, format, _checked(format, layout), named=bool(header))):
        if piece.role != "sentinel":
            # CodeLlama: `<PRE> P <SUF>S <MID>`, and `<PRE> <SUF>S <MID> P`.
            gap = " " if format.spaced and piece.role == "prefix" else ""
            written.append(gap + _defused(as_trained(piece.text), format))
        else:
            gap = " " if format.spaced and written else ""
            written.append(gap + piece.text)
    return "".join(written)


def _checked(family: FimFormat, layout: Layout | None) -> Layout:
    if layout is None:
        return family.layouts[0]
    if layout not in family.offered:
        seen = " or ".join(family.offered)
        raise FormatError(
            f"{family.name!r} models never saw layout {layout!r} in training: ask for {seen}"
        )
    return layout


def _header(context: CursorContext, family: FimFormat) -> list[_Piece]:
    """The other files, and the mark of the cursor's own; empty where there is nothing to tell them
    apart."""
    named = context.snippets or (family.always_names_file and context.path)
    if not family.file_sep or not named:
        return []
    pieces = []
    if family.repo_name and context.repository:
        pieces.append(_Piece("sentinel", family.repo_name))
        pieces.append(_Piece("header", context.repository + family.file_end))
    for snippet in context.snippets:
        pieces.append(_Piece("sentinel", family.file_sep))
        pieces.append(_Piece("header", f"{snippet.path}\n{snippet.text}{family.file_end}"))
    pieces.append(_Piece("sentinel", family.file_sep))
    if context.path and not family.path_in_prefix:
        pieces.append(_Piece("header", context.path + "\n"))
    return pieces


def _infill(
    context: CursorContext, family: FimFormat, layout: Layout, *, named: bool
) -> list[_Piece]:
    """Prefix and suffix with their sentinels; `named` says that a header goes before."""
    path = context.path + "\n" if named and family.path_in_prefix and context.path else ""
    anchor = len(context.prefix) - (context.typed if layout == "anchored" else 0)
    prefix = [_Piece("sentinel", family.prefix), _Piece("prefix", path + context.prefix[:anchor])]
    suffix = [_Piece("sentinel", family.suffix), _Piece("suffix", context.suffix)]
    middle = [_Piece("sentinel", family.middle)] if family.middle else []
    if layout == "psm":
        return prefix + suffix + middle
    if layout == "anchored":
        return [*prefix, *suffix, *middle, _Piece("typed", context.prefix[anchor:])]
    if family.suffix_first:
        return suffix + prefix + middle
    return prefix[:1] + suffix + middle + prefix[1:]


def _encode_bare(encoder: Encoder, text: str) -> list[int]:
    """Encode without the leading space of SentencePiece: behind another symbol, which is then taken
    off.

    So the reference tokenizers of CodeLlama and Mistral do it.
    """
    symbol = encoder.encode("☺")
    ids = encoder.encode("☺" + text)
    return ids[len(symbol) :] if ids[: len(symbol)] == symbol else encoder.encode(text)


def _defused(text: str, family: FimFormat) -> str:
    marks = [*family.texts, family.begin] if family.begin else family.texts
    # A look-ahead that consumes one character also sees marks that overlap.
    found = "|".join(re.escape(mark) for mark in marks)
    return re.sub(f"(?=(?:{found}))(.)", "\\1\u200b", text)
