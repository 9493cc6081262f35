"""Computed sequences in memory, and the choice of the one that a new prompt starts from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.decoder.decoder import Decoder
from model.decoder.kv_cache import GROWTH, KVCache
from model.prefix_cache.disk import WORTH_READING, PrefixStore
from model.prefix_cache.packed_ids import WIDTH, contains, pack, shared_ids

# If trimming would lose at least this many positions, the shared part is copied instead. A
# suggestion that was not accepted has fewer.
WORTH_KEEPING = 128
# Copying a position takes less than a thirtieth of computing it, even where computing is cheapest.
COPIES_PER_COMPUTED = 32
# Of packed ids; the first few may be split otherwise than before.
PROBE = slice(8 * WIDTH, 40 * WIDTH)


@dataclass(slots=True)
class CacheLease:
    """A KV cache that only the holder uses; it has the first `reused` ids of the prompt."""

    cache: KVCache
    reused: int


class PrefixCache:
    """Sequences within a budget of bytes; the least recently used is dropped first. A store has
    more on disk. One thread uses it.

    The newest sequence is kept whatever its size: the next key press extends it, and its memory is
    in use already. A budget of zero keeps nothing, and so writes nothing. A lease takes a sequence
    out, so it is neither dropped nor counted while in use; `give_back` keeps it under the ids that
    it now holds. Prefixes are found by comparing their ids: no hash can be wrong.
    """

    def __init__(
        self, decoder: Decoder, byte_budget: float = math.inf, store: PrefixStore | None = None
    ) -> None:
        self._decoder = decoder
        self._budget = byte_budget
        self._store = store
        # By packed ids, as many as are cached; the most recently used last.
        self._kept: dict[bytes, KVCache] = {}
        # The same of a cancelled prefill that has begun a chunk and finished none, so that what it
        # holds is kept above, or nothing.
        self._begun: tuple[bytes, KVCache] | None = None
        self.unsaved = False  # something was given back since the last `save`

    @property
    def nbytes(self) -> int:
        # A copy: the status is asked for on another thread.
        caches = list(self._kept.values())
        begun = self._begun
        if begun is not None:
            caches.append(begun[1])
        return sum(cache.nbytes for cache in caches)

    @property
    def restored(self) -> int:
        """How many leases were served from disk."""
        return self._store.hits if self._store else 0

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        self._kept.clear()
        self._begun = None

    def cached(self, ids: Sequence[int]) -> int:
        """How many of the ids, the last excepted, the sequences in memory hold."""
        prefix = pack(ids)[:-WIDTH]
        return max((shared_ids(kept, prefix) for kept in self._kept), default=0)

    def lease(
        self, ids: Sequence[int], should_stop: Callable[[], bool] | None = None
    ) -> CacheLease:
        """A cache that holds as much of the prompt as any kept sequence, but not its last id.
        should_stop is asked while a prefix is read from disk."""
        packed = pack(ids)
        prefix = packed[:-WIDTH]
        best = max(self._kept, key=lambda kept: shared_ids(kept, prefix), default=b"")
        length = shared_ids(best, prefix)
        held, begun = self._begun or (b"", None)
        self._begun = None
        if begun is not None and begun.length == length and prefix.startswith(held):
            cache = begun
        elif length:
            cache = self._take(best, length, packed)
        else:
            cache = self._decoder.new_cache()
        if self._store is not None:
            stored = self._store.find(prefix)
            if stored is not None and stored.length - length >= WORTH_READING:
                cache.reserve(min(len(ids) + GROWTH, cache.config.max_positions))
                self._store.restore(stored, cache, should_stop)
        return CacheLease(cache, cache.length)

    def _take(self, kept: bytes, length: int, prompt: bytes) -> KVCache:
        """A kept sequence, trimmed to `length`; or a copy of this part, if the rest may be asked
        for again.

        If the prompt has the rest's text, only further along, this was an edit or a jump, and the
        rest is not needed: it is trimmed. It is kept all the same where the copy is much smaller
        than the rest, as in a prompt that begins with the suffix.
        """
        cache = self._kept.pop(kept)
        beyond = cache.length - length
        split = length * WIDTH
        worth_it = beyond >= max(WORTH_KEEPING, length // COPIES_PER_COMPUTED)
        cheap = length * COPIES_PER_COMPUTED <= beyond
        if worth_it and (cheap or not contains(prompt[split:], kept[split:][PROBE])):
            self._kept[kept] = cache
            return cache.fork(length, len(prompt) // WIDTH)
        cache.trim(length)
        return cache

    def give_back(self, lease: CacheLease, ids: Sequence[int]) -> None:
        """Keeps the lease's cache, which holds the first cache.length of ids."""
        held = pack(ids[: lease.cache.length])
        if not self._budget:
            return
        # A sequence that is a prefix of another is not needed.
        longer = next((kept for kept in self._kept if kept.startswith(held)), None)
        if longer is not None or not held:
            if longer is not None and held:
                self._kept[longer] = self._kept.pop(longer)
            if lease.cache.unfinished is not None:
                self._begun = held, lease.cache
        else:
            for kept in list(self._kept):
                if held.startswith(kept):
                    del self._kept[kept]
            self._kept[held] = lease.cache
            self.unsaved = self._store is not None
        self._keep_to_budget()

    def _keep_to_budget(self) -> None:
        """Drops the least recently used sequences, or only the spare room of all but the newest if
        that is enough."""
        while len(self._kept) > 1 and (excess := self.nbytes - self._budget) > 0:
            others = list(self._kept.values())[:-1]
            if sum(cache.spare_bytes for cache in others) < excess:
                del self._kept[next(iter(self._kept))]
                continue
            for cache in others:
                if self.nbytes > self._budget:
                    cache.shrink()

    def save(self, should_stop: Callable[[], bool] = lambda: False) -> int:
        """Writes the longest sequence that is not on disk yet, if it was costly to compute; returns
        the bytes written. should_stop puts it off.

        Only one sequence is written, because most of those that a busy day computes are not asked
        for again.
        """
        if self._store is None or not self.unsaved:
            return 0
        written = 0
        for ids in sorted(self._kept, key=len, reverse=True):
            written = self._store.save(ids, self._kept[ids], should_stop)
            if should_stop():
                return written
            if written:
                break
        self.unsaved = False
        return written
