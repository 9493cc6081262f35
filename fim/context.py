"""The text around the cursor, cut to a token budget."""

import re
from dataclasses import dataclass

from fim.formats import Encoder

# Source code has some 3 to 4 characters per token. Text further away than this is never looked at: the cost of a window
# depends on the budget and not on the file, and few tokens are counted in vain.
_CHARS_PER_TOKEN = 4
_SURROGATE = re.compile("[\ud800-\udfff]")
_PARAGRAPH = re.compile(r"\n[ \t]*\r?\n")


@dataclass(frozen=True, slots=True)
class Snippet:
    """A piece of another file. `origin` says why it is here, for the trace."""

    path: str
    text: str
    origin: str


@dataclass(frozen=True, slots=True)
class CursorContext:
    """What the model is told: the windows of text left and right of the cursor, and what stands elsewhere."""

    prefix: str
    suffix: str
    path: str | None = None  # relative to the workspace
    language: str = ""
    snippets: tuple[Snippet, ...] = ()
    repository: str | None = None  # the workspace's name, for families that have a header for it


def around_cursor(
    text: str,
    offset: int,
    *,
    encoder: Encoder,
    token_budget: int,
    path: str | None = None,
    language: str = "",
) -> CursorContext:
    """The windows before and after `offset` (code points) whose tokens together stay within `token_budget`.

    Three quarters go to the prefix; what one side does not need goes to the other. The windows begin and end
    at line edges, unless nothing but one overlong line is in reach: that is cut inside. A prefix that is cut
    at all begins after a blank line where one is near, so that its edge stays put for many keystrokes and a
    prefix cache keeps its value. Lone surrogates, which no tokenizer takes, become U+FFFD, one for one.

    The budget covers prefix and suffix; sentinels, paths and snippets come on top.

    Raises ValueError: an offset outside the text, or a negative budget.
    """
    if not 0 <= offset <= len(text):
        raise ValueError(f"offset {offset} is outside the text of {len(text)} code points")
    if token_budget < 0:
        raise ValueError(f"token_budget must not be negative, got {token_budget}")

    quarter = token_budget - token_budget * 3 // 4
    suffix, suffix_tokens = _suffix_window(text, offset, quarter, encoder)
    prefix, prefix_tokens = _prefix_window(text, offset, token_budget - suffix_tokens, encoder)
    prefix_is_whole = len(prefix) == offset
    suffix_is_whole = len(suffix) == len(text) - offset
    if prefix_is_whole and not suffix_is_whole:
        suffix, _ = _suffix_window(text, offset, token_budget - prefix_tokens, encoder)
    return CursorContext(prefix=prefix, suffix=suffix, path=path, language=language)


def _prefix_window(text: str, offset: int, budget: int, encoder: Encoder) -> tuple[str, int]:
    """A window that ends at `offset` and fits, and its number of tokens."""
    start = _prefix_edge(text, max(0, offset - budget * _CHARS_PER_TOKEN), offset)
    while start < offset:
        window = without_surrogates(text[start:offset])
        # A byte-level token may cross a line's end, so only the window as a whole can be counted.
        tokens = len(encoder.encode(window))
        if tokens <= budget:
            return window, tokens
        # Always shorter, since tokens > budget.
        start = _prefix_edge(text, offset - len(window) * budget // tokens, offset)
    return "", 0


def _suffix_window(text: str, offset: int, budget: int, encoder: Encoder) -> tuple[str, int]:
    """A window that begins at `offset` and fits, and its number of tokens."""
    end = _suffix_edge(text, offset, min(len(text), offset + budget * _CHARS_PER_TOKEN))
    while end > offset:
        window = without_surrogates(text[offset:end])
        tokens = len(encoder.encode(window))
        if tokens <= budget:
            return window, tokens
        end = _suffix_edge(text, offset, offset + len(window) * budget // tokens)
    return "", 0


def _prefix_edge(text: str, start: int, offset: int) -> int:
    """The next good place at or after `start` for the window to begin."""
    if start == 0:
        return 0
    near = start + (offset - start) // 4
    if blank := _PARAGRAPH.search(text, start, near):
        return blank.end()
    if text[start - 1] == "\n":
        return start
    line = text.find("\n", start, offset) + 1
    return line if 0 < line < offset else start


def _suffix_edge(text: str, offset: int, end: int) -> int:
    """The last good place at or before `end` for the window to end."""
    if end == len(text):
        return end
    line = text.rfind("\n", offset, end) + 1
    return line if line > 0 else end


def without_surrogates(text: str) -> str:
    """The text as a tokenizer can take it, of the same length: each lone surrogate becomes U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)
