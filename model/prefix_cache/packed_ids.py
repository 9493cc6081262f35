"""Token ids as bytes, four each in the machine's order: long prompts are compared by the block, not
id by id."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

WIDTH = array("i").itemsize
_FIRST, _LARGEST = 64, 16384  # bytes compared at once; most sequences differ early or hardly at all


def pack(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()


def contains(ids: bytes, part: bytes) -> bool:
    at = ids.find(part)
    while at >= 0 and at % WIDTH:  # between two ids
        at = ids.find(part, at + 1)
    return at >= 0


def common_prefix(a: bytes, b: bytes) -> int:
    """How many leading ids two packed sequences share."""
    shorter = min(len(a), len(b))
    start, size = 0, _FIRST
    while start < shorter:
        end = min(start + size, shorter)
        x, y = a[start:end], b[start:end]
        if x != y:  # the lowest bit that differs is in the first byte that does
            differing = int.from_bytes(x, "little") ^ int.from_bytes(y, "little")
            return (start + ((differing & -differing).bit_length() - 1) // 8) // WIDTH
        start, size = end, min(4 * size, _LARGEST)
    return shorter // WIDTH
