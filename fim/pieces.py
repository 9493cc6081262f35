"""An encoder that keeps the ids of pieces of text, so that a long text costs what changed in it.

A text is cut between a letter, digit or mark of ASCII and a blank or line end after it, mostly
before blank lines, so that the same code gives the same pieces wherever an edit was. No token can
reach across such a place:
- GPT-2's pre-tokenization (with StarCoder's digits, too) has no match that holds a blank after
  anything else, looks ahead only after blanks, and never looks back.
- cl100k's and its kin (Llama 3, Qwen) let punctuation take the line ends after it: there only
  letters and digits do.
Which of the two rules holds for a tokenizer is tried once, on a text full of such places. Where
neither does, texts stay whole: SentencePiece's tokenizers put a blank in front of each piece.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache

from fim.formats import Encoder

LONGEST = 600  # characters of a piece, where there is a place to cut
KEPT = 4096  # pieces, some 5 MB; a window with more would be encoded again at every key
_RULES = ("!-~", "A-Za-z0-9")
_PROBE = '''#!/usr/bin/env python3
"""Words, (marks); 'quotes' and "quotes"."""

import os, sys\t# don't we'll I'd x's

def f(a: int = 10, *b) -> None:\t
    if not a == 1.25e-3:  # ein Öl, 漢字 – 😀

        return [a, b][0] + {"k": f'{a!r}'}   \n\n\n    x = y[1:-1]; print(x)

/** a {@link B}
 *  c...
 */
static int main(void) {
\tfor (;;) { i++; }

\treturn 0x1F;

}

<p class="a">b &amp; c</p>  \n- item 1\n- item 2)\n\n\nend_
\\ $x @y ^z ~w `v` |u| #t %s\n%
'''


class PieceEncoder:
    """Gives another encoder's ids, and keeps them by piece. They depend on the text alone."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._place: re.Pattern[str] | None = None
        for rule in _RULES:
            place = re.compile(rf"[{rule}](?=[ \t\n])")
            if _holds(encoder, place):
                self._place = place
                break
        self._ids = lru_cache(KEPT)(lambda piece: array("I", encoder.encode(piece)))

    @property
    def cuts(self) -> bool:
        """Whether texts are cut at all."""
        return self._place is not None

    def encode(self, text: str) -> list[int]:
        """As the other encoder's."""
        ids: list[int] = []
        for piece in self._pieces(text):
            ids += self._ids(piece)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """As the other encoder's."""
        return self._encoder.decode(ids)

    def token_id(self, token: str) -> int | None:
        """As the other encoder's."""
        return self._encoder.token_id(token)

    def _pieces(self, text: str) -> Iterator[str]:
        start = 0
        while start < len(text):
            end = self._end(text, start)
            yield text[start:end]
            start = end

    def _end(self, text: str, start: int) -> int:
        """Where the piece from `start` on ends: before a blank line, or after half of LONGEST."""
        if self._place is None or len(text) - start <= 1:
            return len(text)
        blank = start
        while (blank := text.find("\n\n", blank + 1, start + LONGEST)) > 0:
            if self._place.match(text, blank - 1):
                return blank
        if len(text) - start <= LONGEST:
            return len(text)
        found = self._place.search(text, start + LONGEST // 2)
        return found.end() if found else len(text)


def _holds(encoder: Encoder, place: re.Pattern[str]) -> bool:
    """Whether the probe has the same ids when it is cut wherever the rule would cut."""
    ids: list[int] = []
    start = 0
    for found in place.finditer(_PROBE):
        ids += encoder.encode(_PROBE[start : found.end()])
        start = found.end()
    return ids + encoder.encode(_PROBE[start:]) == encoder.encode(_PROBE)
