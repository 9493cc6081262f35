"""A cache keeps what was written, through growth, trimming and forking."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from model.decoder.kv_cache import GROWTH, KVCache
from tests.model.toys import Parrot, read_ids, remember, write_ids

POSITIONS = st.integers(0, 30) | st.sampled_from([600, 1500])  # within the first growth, and beyond
ACTIONS = ["remember", "drop a pass", "trim", "fork", "reserve", "shrink", "move over"]
STEPS = st.tuples(st.sampled_from(ACTIONS), POSITIONS)


@given(steps=st.lists(STEPS, max_size=8), capacity=st.sampled_from([0, 1, 600]))
def test_whatever_is_done_to_a_cache_it_holds_what_a_list_would(
    steps: list[tuple[str, int]], capacity: int
) -> None:
    cache, expected = Parrot().new_cache(capacity), list[int]()
    ids = itertools.count(1)
    left_behind: list[tuple[KVCache, list[int]]] = []
    for action, n in steps:
        if action == "remember":
            new = list(itertools.islice(ids, n))
            remember(cache, new)
            expected = expected + new
        elif action == "drop a pass":  # one that was cancelled between its layers
            cache.reserve(cache.length + n)
            write_ids(cache, 0, [99] * n)
        elif action == "trim":
            assert cache.trim(n) == len(expected[n:])
            expected = expected[:n]
        elif action == "fork":
            left_behind.append((cache, expected))
            cache, expected = cache.fork(n), expected[:n]
        elif action == "shrink":
            before, spare = cache.nbytes, cache.spare_bytes
            cache.shrink()
            assert (cache.capacity, cache.nbytes) == (cache.length, before - spare)
        elif action == "move over":  # by way of a block, as to disk and back
            at, config = min(n, cache.length), cache.config
            shape = (2, config.num_layers, config.num_kv_heads, cache.length - at, config.head_dim)
            block = torch.empty(shape, dtype=cache.dtype)
            cache.copy_out(at, block)
            cache = cache.fork(at)
            cache.extend(block)
        else:
            cache.reserve(n)
            assert cache.capacity >= n
        assert cache.length == len(expected) <= cache.capacity
    for one, its_ids in [
        *left_behind,
        (cache, expected),
    ]:  # a fork and its origin do not touch each other
        assert read_ids(one) == its_ids


def test_append_returns_the_positions_that_a_window_needs() -> None:
    cache = Parrot().new_cache()
    remember(cache, [10, 11, 12])
    keys, values = cache.append(
        1, torch.full((1, 1, 4), 13.0), torch.full((1, 1, 4), -13.0), first=2
    )
    assert (keys.shape, values.shape) == ((1, 1, 2, 4), (1, 1, 2, 4))
    assert (keys[0, 0, :, 0].tolist(), values[0, 0, :, 3].tolist()) == ([12, 13], [-12, -13])


def test_room_grows_in_steps_and_its_bytes_are_counted() -> None:
    cache = Parrot().new_cache()
    assert (cache.capacity, cache.nbytes) == (0, 0)
    cache.reserve(1)
    assert cache.capacity == GROWTH
    assert (
        cache.nbytes == 2 * 2 * GROWTH * 4 * 4
    )  # keys and values, layers, positions, dimensions, bytes
    cache.reserve(GROWTH)
    assert cache.capacity == GROWTH
    cache.reserve(3000)
    assert cache.capacity == 3000
    assert cache.fork(10).capacity == 10 + GROWTH


def test_half_precision_keeps_what_fits_and_no_infinity() -> None:
    config = Parrot().config
    cache = KVCache(config, dtype=torch.float16, device=torch.device("cpu"), capacity=4)
    shape = (config.num_kv_heads, 2, config.head_dim)
    new = torch.randn(shape)
    new[0, 0, 0] = 1e6
    new[0, 1, 0] = -1e6
    for layer in range(config.num_layers):
        keys, values = cache.append(layer, new, -new)
        assert keys.dtype == values.dtype == torch.float32
    cache.commit(2)
    limit = torch.finfo(torch.float16).max
    assert torch.equal(keys[0], new.clamp(-limit, limit).half().float())
    assert torch.equal(values[0], -keys[0])
    assert cache.nbytes == 2 * 2 * config.num_layers * config.num_kv_heads * 4 * config.head_dim
