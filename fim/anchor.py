"""The anchor: where the prefix of the layout "anchored" ends and what was typed since begins.

    context <fim_prefix> P0 <fim_suffix> S <fim_middle> typed

The model takes the typed text for the beginning of its own answer. So each prompt extends the one
before, and the KV cache stays usable, also for formats that were trained on psm only.
"""

from dataclasses import replace

from fim.context import CursorContext, as_trained
from fim.formats import Encoder
from fim.lines import without_closers

MOST_TYPED = 128  # tokens; after more of them the model may lose sight of what joins at the suffix
_FIRST = MOST_TYPED // 2  # tokens that may follow a new anchor
_FAR = MOST_TYPED * 8  # characters; more are not counted


def with_anchor(
    context: CursorContext, previous: CursorContext | None, encoder: Encoder
) -> CursorContext:
    """The context with `typed` set. The anchor of `previous` is kept while it can be; a new one is
    set at the line's beginning, or inside of an overlong line.

    It is kept while the text before it and the suffix stay the same, edges of the windows included,
    and at most MOST_TYPED tokens follow it. At the line's beginning it stays valid when text of
    that line is deleted and typed again.
    """
    prefix = context.prefix

    def tokens(typed: int) -> int:
        return len(encoder.encode(as_trained(prefix[len(prefix) - typed :])))

    if previous is not None and without_closers(previous.suffix) == without_closers(context.suffix):
        kept = len(previous.prefix) - previous.typed
        typed = len(prefix) - kept
        if (
            0 <= typed <= _FAR
            and prefix[:kept] == previous.prefix[:kept]
            and tokens(typed) <= MOST_TYPED
        ):
            return replace(context, typed=typed)
    typed = min(len(prefix) - prefix.rfind("\n") - 1, _FAR)
    while (count := tokens(typed)) > _FIRST:  # an overlong line
        typed = typed * _FIRST // count
    return replace(context, typed=typed)
