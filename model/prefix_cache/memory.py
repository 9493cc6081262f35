"""Kept sequences: a new prompt starts from the longest prefix that some earlier request has
computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.decoder.decoder import Decoder
from model.decoder.kv_cache import GROWTH, KVCache
from model.prefix_cache.disk import WORTH_READING, PrefixStore
from model.prefix_cache.packed_ids import WIDTH, contains, pack, shared_ids

# A prompt that leaves a sequence gets a copy of what they share, rather than the sequence itself,
# if that loses so many positions: more than a suggestion that was not accepted.
WORTH_KEEPING = 128
COPIES_PER_COMPUTED = (
    32  # copying takes less than a thirtieth of computing, even where computing is cheapest
)
PROBE = slice(
    8 * WIDTH, 40 * WIDTH
)  # of packed ids; the first few may be split otherwise than before


@dataclass(slots=True)
class CacheLease:
    """A KV cache whose first `reused` positions already hold the first ids of the prompt; the
    holder's alone."""

    cache: KVCache
    reused: int


class PrefixCache:
    """Sequences by least recent use, within a budget of bytes, and behind them what is on disk. One
    thread uses it.

    The newest is kept whatever its size: it is what the next key press extends, and its memory was
    there already. A budget of zero keeps nothing, and so writes nothing. A lease takes a sequence
    out, so nothing in use is ever dropped, nor counted; `give_back` keeps it under the ids that it
    now holds. Prefixes are compared by their ids: there is no hash that could be wrong.
    """

    def __init__(
        self, decoder: Decoder, byte_budget: float = math.inf, store: PrefixStore | None = None
    ) -> None:
        self._decoder, self._budget, self._store = decoder, byte_budget, store
        self._kept: list[
            tuple[bytes, KVCache]
        ] = []  # most recently used last; packed ids, as many as are cached
        self.unsaved = False  # something was given back since the last `save`

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for _, cache in self._kept)

    @property
    def restored(self) -> int:
        """How many leases were served from disk."""
        return 0 if self._store is None else self._store.hits

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        self._kept.clear()

    def lease(
        self, ids: Sequence[int], should_stop: Callable[[], bool] | None = None
    ) -> CacheLease:
        """A cache for a prompt, holding as much of it as any kept sequence has, less the last id.

        should_stop is asked while a prefix is read from disk.
        """
        packed = pack(ids)
        prefix = packed[:-WIDTH]
        best, length = -1, 0
        for i, (kept, _) in enumerate(self._kept):
            common = shared_ids(kept, prefix)
            if common > length:
                best, length = i, common
        cache = self._decoder.new_cache() if best < 0 else self._take(best, length, packed)
        stored = None if self._store is None else self._store.find(prefix)
        if (
            self._store is not None
            and stored is not None
            and stored.length - length >= WORTH_READING
        ):
            cache.reserve(min(len(ids) + GROWTH, cache.config.max_positions))
            self._store.restore(stored, cache, should_stop)
        return CacheLease(cache, cache.length)

    def _take(self, best: int, length: int, prompt: bytes) -> KVCache:
        """The kept sequence at `best`, cut to `length`; or a copy of so much of it, if the rest may
        be asked for again.

        It will not where the prompt has the same text, only moved: that was an edit, or a jump.
        Then a copy is made only where it costs next to nothing beside what it keeps, as in a prompt
        that begins with the suffix.
        """
        kept, cache = self._kept.pop(best)
        beyond, split = cache.length - length, length * WIDTH
        worth_it = beyond >= max(WORTH_KEEPING, length // COPIES_PER_COMPUTED)
        cheap = length * COPIES_PER_COMPUTED <= beyond
        if worth_it and (cheap or not contains(prompt[split:], kept[split:][PROBE])):
            self._kept.append((kept, cache))
            return cache.fork(length, len(prompt) // WIDTH)
        cache.trim(length)
        return cache

    def give_back(self, lease: CacheLease, ids: Sequence[int]) -> None:
        """Keeps what the lease's cache holds: the first cache.length of ids."""
        held, cache = pack(ids[: lease.cache.length]), lease.cache
        if not held or not self._budget:
            return
        # A sequence that is a prefix of another serves nobody.
        for i, (kept, _) in enumerate(self._kept):
            if kept.startswith(held):
                self._kept.append(self._kept.pop(i))
                break
        else:
            self._kept = [kept for kept in self._kept if not held.startswith(kept[0])]
            self._kept.append((held, cache))
            self.unsaved = self._store is not None
        self._keep_to_budget()

    def _keep_to_budget(self) -> None:
        """Drops the least recently used, unless what the others have to spare is enough."""
        while len(self._kept) > 1 and (excess := self.nbytes - self._budget) > 0:
            others = [cache for _, cache in self._kept[:-1]]
            if sum(cache.spare_bytes for cache in others) < excess:
                del self._kept[0]
                continue
            for cache in others:
                if self.nbytes > self._budget:
                    cache.shrink()

    def save(self, should_stop: Callable[[], bool] = lambda: False) -> int:
        """Writes what was costly to compute to disk, the longest that is not there yet. should_stop
        puts it off.

        Returns how many bytes. One sequence at a time: of all that a busy day computes, most is
        asked for no more.
        """
        if self._store is None or not self.unsaved:
            return 0
        written = 0
        for ids, cache in sorted(self._kept, key=lambda kept: -kept[1].length):
            written = self._store.save(ids, cache, should_stop)
            if should_stop():
                return written
            if written:
                break
        self.unsaved = False
        return written
