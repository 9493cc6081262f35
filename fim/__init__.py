"""Fill-in-the-middle as text and token ids: the prompt that a model gets at a cursor, and the part
of its answer that the user is shown.

The modules in reading order:
- formats: the layouts of a prompt, the families' sentinels, and their ids in a tokenizer
- context: the text around the cursor, cut to a token budget (CursorContext)
- anchor: where the typed text begins in the layout "anchored"
- prompt: a CursorContext as token ids or as text (Prompt); token healing
- pieces: a tokenizer that encodes only what changed (PieceEncoder)
- characters: those that cannot be seen
- lines: lines and indentation of source text
- shaping/: an answer cut, hidden, or fitted to the text around it (Shaper, Suggestion)
- attribution: whether a suggestion repeats a known package
- project/: pieces of other files, ranked and chosen (Snippet)
- secrets/: what is never part of a prompt or a suggestion
- editing/: what in a text can be written anew: bodies, docstrings (Target)
- evaluation/: samples with a known answer, and scores

Invariants of this room:
- It knows no torch, no editor protocol, no file and no network. It imports only the standard
  library and, when a target is looked for, tree_sitter and its grammars.
- Values are frozen; functions are pure (PieceEncoder keeps ids, but they depend on the text alone).
  Offsets and lengths of text are in code points.
- The user's text never becomes a sentinel: pieces are encoded as plain text, and defused where only
  text can be sent.
- A family is asked only for a layout that it saw in training, or for one that looks the same to it
  ("anchored" looks like psm).
- Accepting a suggestion gives exactly prefix + text + suffix, less the replaced range, which never
  leaves the cursor's line. An edit changes nothing outside its target's range.
- Families differ by the fields of `FimFormat`, never by a look at a name.
"""

from fim.anchor import with_anchor
from fim.attribution import Attribution, AttributionError, Match
from fim.context import CursorContext, Snippet, around_cursor, without_surrogates
from fim.editing.targets import Kind, Target, target_at, targets_at
from fim.formats import (
    FORMATS,
    LAYOUTS,
    MODEL_TYPES,
    Encoder,
    FimFormat,
    FormatError,
    Layout,
    Sentinels,
    resolve,
)
from fim.lines import without_closers
from fim.pieces import PieceEncoder
from fim.prompt import Prompt, Span, build_prompt, render_text
from fim.shaping.bounds import Extent, Reason
from fim.shaping.indentation import with_missing_indentation
from fim.shaping.shaper import FILTERS, Multiline, Shaper, Suggestion, extent_at
from fim.shaping.sureness import Sureness

__all__ = [
    "FILTERS",
    "FORMATS",
    "LAYOUTS",
    "MODEL_TYPES",
    "Attribution",
    "AttributionError",
    "CursorContext",
    "Encoder",
    "Extent",
    "FimFormat",
    "FormatError",
    "Kind",
    "Layout",
    "Match",
    "Multiline",
    "PieceEncoder",
    "Prompt",
    "Reason",
    "Sentinels",
    "Shaper",
    "Snippet",
    "Span",
    "Suggestion",
    "Sureness",
    "Target",
    "around_cursor",
    "build_prompt",
    "extent_at",
    "render_text",
    "resolve",
    "target_at",
    "targets_at",
    "with_anchor",
    "with_missing_indentation",
    "without_closers",
    "without_surrogates",
]
