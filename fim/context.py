"""The text around the cursor, cut to a token budget.

While someone types, the windows' edges stay where they are in the text, so that each prompt goes on
where the one before ended; they move when the windows no longer fit, and then so far that they stay
put for long.
"""

import re
from dataclasses import dataclass
from functools import cache

from fim.formats import Encoder

# Source code has some 3 to 4 characters per token. Text further away than this is never looked at:
# the cost of a window depends on the budget and not on the file, and few tokens are counted in
# vain.
_CHARS_PER_TOKEN = 4
_FAR = 2 * _CHARS_PER_TOKEN  # a window may have grown so long since it was placed
_SEEN = 64  # characters by which the edge of a window is known again
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
    """What the model is told: the windows of text left and right of the cursor, and what stands
    elsewhere."""

    prefix: str
    suffix: str
    path: str | None = None  # relative to the workspace
    language: str = ""
    snippets: tuple[Snippet, ...] = ()
    repository: str | None = None  # the workspace's name, for families that have a header for it
    before: int = 0  # code points of the text left of the prefix
    after: int = 0  # code points of the text right of the suffix
    typed: int = 0  # code points at the prefix's end that were typed since the anchor: fim.anchor


def around_cursor(
    text: str,
    offset: int,
    *,
    encoder: Encoder,
    token_budget: int,
    suffix_budget: int | None = None,
    path: str | None = None,
    language: str = "",
    previous: CursorContext | None = None,
) -> CursorContext:
    """The windows before and after `offset` (code points) whose tokens together stay within
    `token_budget`.

    Three quarters go to the prefix; what one side does not need goes to the other. With
    `suffix_budget` that is the suffix's share instead, and the most it gets. Where not all of the
    text fits, an eighth is left free for what is typed. The windows begin and end at line edges,
    unless nothing but one overlong line is in reach: that is cut inside. A prefix that is cut at
    all begins near a multiple of some lines' length, after a blank line where one is near. Lone
    surrogates, which no tokenizer takes, become U+FFFD, one for one.

    previous: what this gave for an earlier text of the same document, whatever happened to it
    since. Its edges are kept while the windows fit between them, are not half empty in vain, and
    the cursor is not close to an edge.

    The budget covers prefix and suffix, as the model gets them; sentinels, paths and snippets come
    on top.

    Raises ValueError: an offset outside the text, or a negative budget.
    """
    if not 0 <= offset <= len(text):
        raise ValueError(f"offset {offset} is outside the text of {len(text)} code points")
    if token_budget < 0:
        raise ValueError(f"token_budget must not be negative, got {token_budget}")
    start, end = _Windows(text, offset, encoder, token_budget, suffix_budget).place(previous)
    return CursorContext(
        prefix=without_surrogates(text[start:offset]),
        suffix=without_surrogates(text[offset:end]),
        path=path,
        language=language,
        before=start,
        after=len(text) - end,
    )


class _Windows:
    """Where the windows around one cursor may begin and end."""

    def __init__(
        self, text: str, offset: int, encoder: Encoder, budget: int, suffix_budget: int | None
    ) -> None:
        self.text, self.offset, self.budget = text, offset, budget
        self.most_right = budget if suffix_budget is None else min(suffix_budget, budget)
        self.share = budget - budget * 3 // 4 if suffix_budget is None else self.most_right
        # A token may cross a line's end, so only the window as a whole can be counted.
        self._tokens = cache(lambda start, end: len(encoder.encode(as_trained(text[start:end]))))

    def _fits_whole(self) -> bool:
        length = len(self.text)
        if (
            length > self.budget * _CHARS_PER_TOKEN
            or (right := self._right(length)) > self.most_right
        ):
            return False
        return self._left(0) + right <= self.budget

    def _left(self, start: int) -> int:
        return self._tokens(start, self.offset)

    def _right(self, end: int) -> int:
        return self._tokens(self.offset, end)

    def place(self, previous: CursorContext | None) -> tuple[int, int]:
        """The start of the prefix and the end of the suffix."""
        budget, whole = self.budget, (0, len(self.text))
        start, end = (None, None) if previous is None else self._kept(previous)
        if start is not None and end is not None:
            tokens = self._left(start) + self._right(end)
            if tokens <= budget and (tokens >= budget // 2 or (start, end) == whole):
                return start, end
            if tokens <= budget:
                start = end = None
        if start is None and end is None and self._fits_whole():
            return whole
        used = budget - budget // 8
        share = min(self.share, used)
        if end is None or self._right(end) > share:
            # The suffix gives first, as far as it has more than its share.
            if start is not None and (left := self._left(start)) <= used - share:
                end = self._suffix_end(used - left)
                if left + self._right(end) >= budget // 2:
                    return start, end
            end = self._suffix_end(share)
        start = self._prefix_start(used - self._right(end))
        if start == 0 and end < len(self.text):
            end = self._suffix_end(used - self._left(0))
        return start, end

    def _kept(self, previous: CursorContext) -> tuple[int | None, int | None]:
        """Where the edges of earlier windows are in this text; None for one that is gone or not
        worth keeping."""
        text, offset = self.text, self.offset
        end_was = previous.before + len(previous.prefix) + len(previous.suffix)
        shift = len(text) - end_was - previous.after  # of what stands behind all edits
        head, tail = previous.prefix[:_SEEN], previous.suffix[-_SEEN:]

        def starts(at: int) -> bool:
            return 0 <= at <= offset and (
                at == 0 or without_surrogates(text[at : at + len(head)]) == head
            )

        def ends(at: int) -> bool:
            seen = without_surrogates(text[max(0, at - len(tail)) : at])
            return offset <= at <= len(text) and (at == len(text) or seen == tail)

        start = next(filter(starts, (previous.before, max(0, previous.before + shift))), None)
        end = next(filter(ends, (end_was + shift, end_was)), None)
        far = self.budget * _FAR
        if start is not None and (
            offset - start > far or (start > 0 and self._left(start) < self.budget // 4)
        ):
            start = None
        if end is not None and end - offset <= far:
            least = self.share // 4 if end < len(text) else 0
            end = end if least <= self._right(end) <= self.most_right else None
        else:
            end = None
        return start, end

    def _prefix_start(self, budget: int) -> int:
        """Where a prefix that fits may begin."""
        offset, block = self.offset, max(1, self.budget * _CHARS_PER_TOKEN // 16)
        start = max(0, offset - budget * _CHARS_PER_TOKEN)
        while start < offset:
            snapped = -(-start // block) * block
            start = _prefix_edge(self.text, snapped if snapped < offset else start, offset)
            tokens = self._left(start)
            if tokens <= budget:
                break
            # Always shorter, since tokens > budget.
            start = offset - (offset - start) * budget // tokens
        return start

    def _suffix_end(self, budget: int) -> int:
        """Where a suffix that fits may end."""
        offset, budget = self.offset, min(budget, self.most_right)
        end = min(len(self.text), offset + budget * _CHARS_PER_TOKEN)
        while end > offset:
            end = _suffix_edge(self.text, offset, end)
            tokens = self._right(end)
            if tokens <= budget:
                break
            end = offset + (end - offset) * budget // tokens
        return end


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


def as_trained(text: str) -> str:
    r"""Text as models know it: without lone surrogates, and with \n line ends, which is what they
    were trained on."""
    return without_surrogates(text).replace("\r\n", "\n")


def without_surrogates(text: str) -> str:
    """The text as a tokenizer can take it, of the same length: each lone surrogate becomes
    U+FFFD."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
