"""An encoder that encodes only what it has not seen lately: a long text costs what changed in it.

A text is cut between a letter, digit or mark of ASCII and a blank or line end behind it, mostly
before blank lines, so that the same code gives the same pieces wherever an edit was. There no token
can reach across:
- GPT-2's pre-tokenization (with StarCoder's digits, too) has no match that holds a blank behind
  anything else, looks ahead only behind blanks, and never looks back.
- cl100k's and its kin (Llama 3, Qwen) let punctuation take the line ends behind it: there only
  letters and digits do.
Which of the two rules holds for a tokenizer is tried once, on a text full of such places; where
neither does (those of SentencePiece put a blank in front of each piece) texts stay whole.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

from fim.formats import Encoder

LONGEST = 600  # characters of a piece, where there is a place to cut
KEPT = 4096  # pieces, some 5 MB: fewer than a window has would all be encoded again at every key
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
    """Another encoder's ids, kept by piece. What it answers depends on the text alone."""

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
        """Where the piece that begins at `start` ends: before a blank line; a long piece at half
        its length."""
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
    """Whether the probe, cut wherever the rule would cut, has the ids of the whole."""
    ends = [0, *(found.end() for found in place.finditer(_PROBE)), len(_PROBE)]
    cut = [id for start, end in pairwise(ends) for id in encoder.encode(_PROBE[start:end])]
    return cut == encoder.encode(_PROBE)
