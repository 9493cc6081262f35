"""The text around the cursor, cut to a token budget.

While someone types, the windows' edges stay where they are in the text, so that each prompt goes on
where the one before ended; they move when the windows no longer fit, and then so far that they stay
put for long.
"""

import re
from dataclasses import dataclass
from functools import cache

from fim.formats import Encoder
from fim.shaping.bounds import Reason

# Source code has some 3 to 4 characters per token. Text further away than this is never looked at:
# the cost of a window depends on the budget and not on the file, and few tokens are counted in
# vain.
_CHARS_PER_TOKEN = 4
FAR = 2 * _CHARS_PER_TOKEN  # characters that a window may have, per token of the budget
_SEEN = 64  # characters at a window's edge by which it is recognized in a later text
_SURROGATE = re.compile("[\ud800-\udfff]")
_PARAGRAPH = re.compile(r"\n[ \t]*\r?\n")


@dataclass(frozen=True, slots=True)
class Snippet:
    """A piece of another file. `origin` and `score` say why it was chosen, for the user."""

    path: str
    text: str
    origin: str
    score: float = 0.0  # how well it suits the cursor; see fim/project/ranking.py


@dataclass(frozen=True, slots=True)
class CursorContext:
    """The text of a prompt: the windows left and right of the cursor, and snippets of files."""

    prefix: str
    suffix: str
    path: str | None = None  # relative to the workspace
    language: str = ""
    snippets: tuple[Snippet, ...] = ()
    repository: str | None = None  # the workspace's name, for families that have a header for it
    before: int = 0  # code points of the text left of the prefix
    after: int = 0  # code points of the text right of the suffix
    typed: int = 0  # code points at the prefix's end that were typed since the anchor: fim.anchor
    secrets: frozenset[str] = frozenset()  # what is written over in the text: fim.secrets
    withheld: Reason | None = None  # why there is no text, and nothing is to be asked
    lead: str = ""  # indentation at the prefix's end that the document lacks: fim.shaping


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
    """The windows before and after `offset` (code points), together within `token_budget`.

    Three quarters go to the prefix; what one side does not need goes to the other. With
    `suffix_budget` that is the suffix's share instead, and the most it gets. Where not all of the
    text fits, an eighth is left free for what is typed. The windows begin and end at line edges,
    unless nothing but one overlong line is in reach: that is cut inside. The start of
    a prefix that is cut is rounded up to a multiple of a fraction of the budget in characters, so
    that it moves seldom, and put after a blank line where one is near. Lone surrogates,
    which no tokenizer takes, become U+FFFD, one for one. Sentinels, paths and snippets are
    not part of the budget.

    previous: what this function gave for an earlier text of the same document, whatever was edited
    since. Its edges are kept while the windows fit between them and are at least half full, and the
    cursor is not close to an edge.

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
    """Where the windows around one cursor begin and end. Lengths are in tokens."""

    def __init__(
        self, text: str, offset: int, encoder: Encoder, budget: int, suffix_budget: int | None
    ) -> None:
        self.text = text
        self.offset = offset
        self.budget = budget
        self.share = budget - budget * 3 // 4  # of the suffix
        self.most_right = budget
        if suffix_budget is not None:
            self.most_right = min(suffix_budget, budget)
            self.share = self.most_right
        # A token may cross a line's end, so only the window as a whole can be counted.
        self._tokens = cache(lambda start, end: len(encoder.encode(as_trained(text[start:end]))))

    def _left(self, start: int) -> int:
        return self._tokens(start, self.offset)

    def _right(self, end: int) -> int:
        return self._tokens(self.offset, end)

    def place(self, previous: CursorContext | None) -> tuple[int, int]:
        """The start of the prefix and the end of the suffix."""
        start = end = None
        if previous is not None:
            was_end = previous.before + len(previous.prefix) + len(previous.suffix)
            # How far the text after all edits has moved.
            shift = len(self.text) - was_end - previous.after
            start = self._kept_start(previous, shift)
            end = self._kept_end(previous, was_end, shift)
        if start is not None and end is not None:
            tokens = self._left(start) + self._right(end)
            whole = start == 0 and end == len(self.text)
            if tokens <= self.budget:
                if whole or tokens >= self.budget // 2:
                    return start, end
                start = end = None
        if start is None and end is None and self._fits_whole():
            return 0, len(self.text)
        return self._moved(start, end)

    def _fits_whole(self) -> bool:
        length = len(self.text)
        if length > self.budget * _CHARS_PER_TOKEN:
            return False
        right = self._right(length)
        return right <= self.most_right and self._left(0) + right <= self.budget

    def _kept_start(self, previous: CursorContext, shift: int) -> int | None:
        """Where the earlier windows' beginning is now; None if it is gone or not worth keeping."""
        head = previous.prefix[:_SEEN]
        for start in (previous.before, max(0, previous.before + shift)):
            seen = without_surrogates(self.text[start : start + len(head)])
            if start > self.offset or (start > 0 and seen != head):
                continue
            if self.offset - start > self.budget * FAR:
                return None
            if start > 0 and self._left(start) < self.budget // 4:
                return None
            return start
        return None

    def _kept_end(self, previous: CursorContext, was_end: int, shift: int) -> int | None:
        """Where the earlier suffix window ends now; None if it is gone or not worth keeping."""
        tail = previous.suffix[-_SEEN:]
        for end in (was_end + shift, was_end):
            if not self.offset <= end <= len(self.text):
                continue
            seen = without_surrogates(self.text[max(0, end - len(tail)) : end])
            whole = end == len(self.text)
            if not whole and seen != tail:
                continue
            if end - self.offset > self.budget * FAR or self._right(end) > self.most_right:
                return None
            if not whole and self._right(end) < self.share // 4:
                return None
            return end
        return None

    def _moved(self, start: int | None, end: int | None) -> tuple[int, int]:
        """Edges that leave an eighth of the budget free; a given one is kept if there is room."""
        used = self.budget - self.budget // 8
        share = min(self.share, used)
        if end is None or self._right(end) > share:
            # The suffix gives first, as far as it has more than its share.
            if start is not None and self._left(start) <= used - share:
                left = self._left(start)
                end = self._suffix_end(used - left)
                if left + self._right(end) >= self.budget // 2:
                    return start, end
            end = self._suffix_end(share)
        start = self._prefix_start(used - self._right(end))
        if start == 0 and end < len(self.text):
            end = self._suffix_end(used - self._left(0))
        return start, end

    def _prefix_start(self, budget: int) -> int:
        """Where a prefix that fits may begin."""
        offset = self.offset
        block = max(1, self.budget * _CHARS_PER_TOKEN // 16)  # characters
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
        offset = self.offset
        budget = min(budget, self.most_right)
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
    blank = _PARAGRAPH.search(text, start, near)
    if blank:
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
    r"""Text as models were trained on it: without lone surrogates, and with \n line ends."""
    return without_surrogates(text).replace("\r\n", "\n")


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for each lone surrogate: no tokenizer takes one. Its length stays."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)
