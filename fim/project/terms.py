"""The words in the names of a text: `parseHeader_v2` has parseheader_v2, parse, header."""

from __future__ import annotations

import re
from functools import lru_cache

_NAME = re.compile(r"[^\W\d]\w{2,63}")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_LEAST = 3  # letters
_KEPT = 1 << 15  # names, some 10 MB


def terms(text: str) -> list[str]:
    """Each name in lower case and the words in it, as often as they stand there."""
    found: list[str] = []
    for name in _NAME.findall(text):
        found += words(name)
    return found


@lru_cache(_KEPT)
def words(name: str) -> tuple[str, ...]:
    """A name in lower case, and the words in it if there are several."""
    whole = name.lower()
    parts = {part.lower() for part in _WORD.findall(name) if len(part) >= _LEAST}
    return (whole, *sorted(parts - {whole}))
