"""Token ids as bytes, four each, so that long prompts are compared in blocks, not id by id."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from model.generation.text_matches import common_prefix

WIDTH = array("i").itemsize


def pack(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()


def contains(ids: bytes, part: bytes) -> bool:
    start = ids.find(part)
    while start >= 0 and start % WIDTH:  # between two ids
        start = ids.find(part, start + 1)
    return start >= 0


def shared_ids(first: bytes, second: bytes) -> int:
    """How many leading ids two packed sequences share."""
    return common_prefix(first, second) // WIDTH
