"""CursorContext + format -> prompt, as token ids or as text for an endpoint with its own tokenizer.
The order of its parts is in fim.formats.ORDERS."""

import re
from dataclasses import dataclass, replace
from typing import Literal

from fim.context import CursorContext, as_trained
from fim.editing.languages import LANGUAGES, Language
from fim.formats import Encoder, FimFormat, Layout, Part, Sentinels

Span = tuple[int, int]  # (start, stop)

# The pre-tokenization of the byte-level families joins these with what follows: a word or a run of
# punctuation with the blank before it, or that blank alone; since cl100k a word with a tab before
# it, too. ASCII only: every tokenizer can spell that.
_LAST_PIECE = re.compile(r"[ \t]?[A-Za-z]{1,32}\Z| ?[!-/:-@\[-`{-~]{1,32}\Z|[ \t]\Z")
_LONGEST_PIECE = 33


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids for the model. The spans index `ids`; a part that is absent has an empty span."""

    ids: tuple[int, ...]
    layout: Layout
    stop_ids: frozenset[int]
    context: Span  # headers and snippets with their sentinels, all that stands before the FIM part
    # Plain text ids; StarCoder2's path is their first line, and comments of other files are, too.
    prefix: Span
    suffix: Span  # plain text ids
    # The end of the prefix that the ids leave out: the answer has to spell it first.
    begin_with: str = ""
    typed: Span = (0, 0)  # plain text ids; with the layout "anchored" the rest of the prefix


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of the prompt: one sentinel, or plain text that is tokenized by itself."""

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
    """The prompt as ids. Pieces between sentinels are tokenized separately, as in training.

    `layout` None is the family's preferred one. Snippets are written as files of the repository,
    where the family has a mark for files, as the StarCoder2 paper §5 and the Qwen2.5-Coder report
    give it; elsewhere as comments at the beginning of the prefix.

    heal leaves out the last piece of the prefix that a tokenizer would have joined with what
    follows it, and asks for an answer that begins with it (token healing). While a word is typed,
    the ids stay the same. After an anchor only what was typed since is healed.

    Raises FormatError: a layout that the family never saw.
    """
    family = sentinels.format
    layout = family.checked(layout)
    begin_with = ""
    if heal:
        begin_with = _last_piece(context, family.order(layout))
        prefix = context.prefix.removesuffix(begin_with)
        context = replace(context, prefix=prefix, typed=max(0, context.typed - len(begin_with)))
    ids: list[int] = []
    if sentinels.begin is not None:
        ids.append(sentinels.begin)
    header_start = len(ids)
    header = _header(context, family)
    for piece in header:
        ids += _encode(piece, sentinels, encoder)
    header_end = len(ids)
    spans: dict[str, Span] = {}
    for piece in _infill(context, family, layout, named=bool(header)):
        start = len(ids)
        ids += _encode(piece, sentinels, encoder)
        spans[piece.role] = (start, len(ids))
    return Prompt(
        ids=tuple(ids),
        layout=layout,
        stop_ids=sentinels.stop_ids,
        context=(header_start, header_end),
        prefix=spans["prefix"],
        suffix=spans["suffix"],
        begin_with=begin_with,
        typed=spans.get("typed", (len(ids), len(ids))),
    )


def render_text(context: CursorContext, format: FimFormat, layout: Layout | None = None) -> str:
    """The same prompt as text, without `begin`, which endpoints add themselves.

    An endpoint turns a sentinel's text into the sentinel wherever it stands, so one that is part of
    the user's code gets a zero-width space after its first character: nothing is lost or visibly
    changed, and no tokenizer takes it for the sentinel. Should the model copy it, `Shaper` cuts
    there, since the user's text has no such character.

    Raises FormatError: as `build_prompt`.
    """
    layout = format.checked(layout)
    header = _header(context, format)
    written: list[str] = []
    for piece in (*header, *_infill(context, format, layout, named=bool(header))):
        # CodeLlama: `<PRE> P <SUF>S <MID>`, and `<PRE> <SUF>S <MID> P`.
        if format.spaced and written and piece.role in ("sentinel", "prefix"):
            written.append(" ")
        if piece.role == "sentinel":
            written.append(piece.text)
        else:
            written.append(_defused(as_trained(piece.text), format))
    return "".join(written)


def _last_piece(context: CursorContext, order: tuple[Part, ...]) -> str:
    """The end of the prefix that healing leaves out."""
    start = max(0, len(context.prefix) - _LONGEST_PIECE)
    if "typed" in order:
        start = max(start, len(context.prefix) - context.typed)
    found = _LAST_PIECE.search(context.prefix[start:])
    return found[0] if found else ""


def _header(context: CursorContext, family: FimFormat) -> list[_Piece]:
    """The other files, and the mark of the cursor's own; empty where no mark is needed or known."""
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
    order = family.order(layout)
    anchor = len(context.prefix)
    if "typed" in order:
        anchor -= context.typed
    prefix = context.prefix[:anchor]
    if not family.file_sep:
        prefix = _as_comments(context) + prefix
    if named and family.path_in_prefix and context.path:
        prefix = f"{context.path}\n{prefix}"
    pieces: dict[Part, _Piece] = {
        "<prefix>": _Piece("sentinel", family.prefix),
        "prefix": _Piece("prefix", prefix),
        "<suffix>": _Piece("sentinel", family.suffix),
        "suffix": _Piece("suffix", context.suffix),
        "typed": _Piece("typed", context.prefix[anchor:]),
    }
    if family.middle:
        pieces["<middle>"] = _Piece("sentinel", family.middle)
    return [pieces[part] for part in order if part in pieces]


def _as_comments(context: CursorContext) -> str:
    """The snippets as lines of comments."""
    mark = LANGUAGES.get(context.language, Language()).line_comment
    lines = []
    for snippet in context.snippets:
        lines += [snippet.path, *snippet.text.rstrip("\n").split("\n")]
    return "".join(f"{mark} {line}".rstrip() + "\n" for line in lines)


def _encode(piece: _Piece, sentinels: Sentinels, encoder: Encoder) -> list[int]:
    if piece.role == "sentinel":
        return [sentinels.ids[piece.text]]
    text = as_trained(piece.text)
    if sentinels.format.bare_suffix and piece.role in ("suffix", "typed"):
        return _encode_bare(encoder, text)
    return encoder.encode(text)


def _encode_bare(encoder: Encoder, text: str) -> list[int]:
    """Encode without SentencePiece's leading space: after another symbol, which is then taken off.
    The reference tokenizers of CodeLlama and Mistral do the same."""
    symbol = encoder.encode("☺")
    ids = encoder.encode("☺" + text)
    if ids[: len(symbol)] == symbol:
        return ids[len(symbol) :]
    return encoder.encode(text)


def _defused(text: str, family: FimFormat) -> str:
    """The text with a zero-width space inside whatever looks like a sentinel."""
    # A look-ahead that consumes one character also sees marks that overlap.
    found = "|".join(map(re.escape, family.marks))
    return re.sub(f"(?=(?:{found}))(.)", "\\1\u200b", text)
