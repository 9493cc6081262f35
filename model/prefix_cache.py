"""Kept sequences: a new prompt starts from the longest prefix that some earlier request has computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.decoder import Decoder
from model.kv_cache import KVCache

BYTE_BUDGET = 512 * 2**20


@dataclass(slots=True)
class CacheLease:
    """A KV cache whose first `reused` positions already hold the first ids of the prompt; the holder's alone."""

    cache: KVCache
    reused: int


class PrefixCache:
    """Sequences by least recent use, within a budget of bytes. One thread uses it.

    The newest is kept whatever its size: it is what the next key press extends, and its memory was there already.
    A lease takes a sequence out, so nothing in use is ever dropped; `give_back` keeps it under the ids that it now
    holds. Prefixes are compared id by id: there is no hash that could be wrong.
    """

    def __init__(self, decoder: Decoder, byte_budget: int = BYTE_BUDGET) -> None:
        self._decoder = decoder
        self._budget = byte_budget
        self._kept: list[tuple[tuple[int, ...], KVCache]] = []  # most recently used last

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for _, cache in self._kept)

    def lease(self, ids: Sequence[int]) -> CacheLease:
        """A cache for a prompt, holding as much of it as any kept sequence has, less the last id."""
        best, length = -1, 0
        for i, (kept, _) in enumerate(self._kept):
            common = min(common_prefix(kept, ids), len(ids) - 1)
            if common > length:
                best, length = i, common
        if best < 0:
            return CacheLease(self._decoder.new_cache(), 0)
        kept, cache = self._kept[best]
        if 2 * length < len(kept):  # most of that sequence is another text, worth keeping for its own next request
            self._kept.append(self._kept.pop(best))
            return CacheLease(cache.fork(length), length)
        del self._kept[best]
        cache.trim(length)
        return CacheLease(cache, length)

    def give_back(self, lease: CacheLease, ids: Sequence[int]) -> None:
        """Keeps what the lease's cache holds: the first cache.length of ids."""
        held = tuple(ids[: lease.cache.length])
        # A sequence that is a prefix of another serves nobody.
        if held and all(common_prefix(kept, held) < len(held) for kept, _ in self._kept):
            self._kept = [kept for kept in self._kept if common_prefix(kept[0], held) < len(kept[0])]
            self._kept.append((held, lease.cache))
        while len(self._kept) > 1 and self.nbytes > self._budget:
            del self._kept[0]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading ids two sequences share."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
