"""A new prompt starts from what earlier ones have computed, and gets what a fresh start would give."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import LoadedModel
from model.engine import Engine, Finished, Job, Request
from model.generate import Token
from model.prefix_cache import PrefixCache, common_prefix
from tests.model.toys import Parrot, ask, read_ids, remember, running

A, B = list(range(100, 120)), list(range(200, 220))
ONE_CACHE = 2 * 2 * 512 * 4 * 4  # bytes of a parrot's cache of up to 512 positions


def use(prefixes: PrefixCache, ids: Sequence[int]) -> int:
    """One request that computes its whole prompt; returns how many positions it did not have to."""
    lease = prefixes.lease(ids)
    assert read_ids(lease.cache) == list(ids[: lease.reused])
    remember(lease.cache, ids[lease.reused :])
    prefixes.give_back(lease, ids)
    return lease.reused


@pytest.mark.parametrize(
    ("earlier", "prompt", "reused"),
    [
        ([], A, 0),
        ([A], B, 0),
        ([A], [*A, 7], 20),
        ([A], [*A[:15], 7], 15),
        ([A], [*A[:5], 7], 5),
        ([A], A, 19),  # one id is always left to compute
        ([A], A[:8], 7),
        ([A], A[:1], 0),
        ([A], [7, *A], 0),  # a prefix, not a part
        ([A, A[:10] + B], [*A[:10], *B, 7], 30),
        ([A[:10] + B, A], [*A[:10], *B, 7], 30),
    ],
)
def test_the_longest_common_prefix_is_reused(earlier: list[list[int]], prompt: list[int], reused: int) -> None:
    prefixes = PrefixCache(Parrot())
    for ids in earlier:
        use(prefixes, ids)
    assert use(prefixes, prompt) == reused


@pytest.mark.parametrize(
    ("prompt", "kept"),
    [
        ([*A, 7], 1),  # goes on from it
        ([*A[:12], 7], 1),  # leaves it late: the rest is what was typed over
        ([*A[:8], 7], 2),  # leaves it early: the rest is another text's
        (B, 2),
        (A, 1),
        (A[:8], 1),  # a prefix of what is kept serves nobody
    ],
)
def test_a_sequence_is_taken_over_or_copied_by_how_much_of_it_is_left(prompt: list[int], kept: int) -> None:
    prefixes = PrefixCache(Parrot())
    use(prefixes, A)
    use(prefixes, prompt)
    assert prefixes.nbytes == pytest.approx(kept * ONE_CACHE, rel=0.1)
    if kept == 2:
        assert use(prefixes, [*A, 8]) == 20


def test_the_budget_drops_the_least_recently_used() -> None:
    prefixes = PrefixCache(Parrot(), byte_budget=2 * ONE_CACHE)
    for first in (100, 200, 300):
        use(prefixes, range(first, first + 20))
    assert prefixes.nbytes == 2 * ONE_CACHE
    assert use(prefixes, range(200, 221)) == 20  # and is now the most recent
    assert use(prefixes, range(400, 420)) == 0
    assert [use(prefixes, range(first, first + 22)) for first in (200, 400, 300)] == [21, 20, 0]


def test_being_copied_is_a_use() -> None:
    prefixes = PrefixCache(Parrot(), byte_budget=int(2.1 * ONE_CACHE))
    use(prefixes, A)
    use(prefixes, B)
    assert use(prefixes, [*A[:8], 7]) == 8
    assert [use(prefixes, ids) for ids in ([*A, 7], B)] == [20, 0]


def test_the_newest_is_kept_however_large() -> None:
    prefixes = PrefixCache(Parrot(), byte_budget=1)
    use(prefixes, A)
    assert use(prefixes, [*A, 7]) == 20
    assert use(prefixes, B) == 0
    assert use(prefixes, A) == 0


def test_what_is_leased_is_nobody_elses_and_is_never_dropped() -> None:
    prefixes = PrefixCache(Parrot(), byte_budget=ONE_CACHE)
    use(prefixes, A)
    lease = prefixes.lease([*A, 7])
    assert prefixes.nbytes == 0
    assert prefixes.lease([*A, 8]).reused == 0
    use(prefixes, B)
    use(prefixes, range(300, 320))
    assert read_ids(lease.cache) == A
    prefixes.give_back(lease, [*A, 7])
    assert use(prefixes, [*A, 9]) == 20


def test_a_lease_that_computed_nothing_leaves_nothing() -> None:
    prefixes = PrefixCache(Parrot())
    prefixes.give_back(prefixes.lease(A), A)
    assert prefixes.nbytes == 0


PROMPTS = st.lists(st.integers(8, 10), min_size=1, max_size=12)


@given(requests=st.lists(st.tuples(PROMPTS, st.integers(0, 12)), max_size=25), budget=st.integers(0, 4))
def test_a_lease_holds_the_best_of_what_is_kept_and_nothing_else(
    requests: list[tuple[list[int], int]], budget: int
) -> None:
    """Requests that compute only so much of their prompt, as cancelled ones do."""
    prefixes = PrefixCache(Parrot(), byte_budget=budget * ONE_CACHE)
    last: list[int] = []
    for ids, computed in requests:
        lease = prefixes.lease(ids)
        assert read_ids(lease.cache) == ids[: lease.reused]
        assert min(common_prefix(last, ids), len(ids) - 1) <= lease.reused < len(ids)
        remember(lease.cache, ids[lease.reused : computed])
        prefixes.give_back(lease, ids)
        last = ids[: lease.cache.length] or last
        assert prefixes.nbytes <= max(budget, 1) * 1.1 * ONE_CACHE


# The same through the engine, with a real decoder.


def edits(rng: random.Random) -> Iterator[list[int]]:
    """A prompt that grows, shrinks, jumps and comes back, as someone's typing makes it."""
    documents = [[rng.randrange(8, 260) for _ in range(1500)] for _ in range(3)]
    ids = documents[0][:700]
    while True:
        yield ids
        action = rng.random()
        if action < 0.5:
            ids = ids + [rng.randrange(8, 260) for _ in range(rng.randint(1, 8))]
        elif action < 0.65:
            ids = ids[: -rng.randint(1, 20)]
        elif action < 0.8:
            cut = rng.randrange(1, len(ids))
            ids = ids[:cut] + [rng.randrange(8, 260) for _ in range(rng.randint(1, 200))]
        else:
            ids = rng.choice(documents)[: rng.randint(1, 1500)]


def ask_and_cancel(engine: Engine, ids: list[int], layer: int | None) -> tuple[list[Token], Finished]:
    """Tokens and end of a request that is cancelled while the decoder computes that layer, counted from 0."""
    job: list[Job] = []
    layers = itertools.count()

    def on_layer(*_: object) -> None:
        if next(layers) == layer:
            job[0].cancel()

    hooks = [module.register_forward_pre_hook(on_layer) for module in engine.model.decoder.layers]
    try:
        _, *tokens, end = ask(engine, Request(tuple(ids), max_new_tokens=6), lambda j, _: job.append(j))
    finally:
        for hook in hooks:
            hook.remove()
    assert isinstance(end, Finished)
    return tokens, end


@pytest.mark.parametrize("seed", range(4))
def test_a_warm_cache_gives_what_a_cold_one_gives(talkative: LoadedModel, seed: int) -> None:
    rng = random.Random(seed)
    reused = cancelled = 0
    with running(talkative) as engine:
        engine.prefixes = PrefixCache(talkative.decoder, byte_budget=2**20)
        for ids in itertools.islice(edits(rng), 25):
            tokens, end = ask_and_cancel(engine, ids, rng.choice([0, 1, 3, 5, 7, None, None, None]))
            fresh = list(talkative.generate(ids, max_new_tokens=6))[: len(tokens)]
            assert [t.id for t in tokens] == [t.id for t in fresh]
            assert [t.logprob for t in tokens] == pytest.approx([t.logprob for t in fresh], abs=1e-4)
            assert end.reason == ("length" if len(tokens) == 6 else "cancelled")
            reused += end.reused
            cancelled += end.reason == "cancelled"
    assert reused > 5000 and cancelled > 3


def test_what_a_cancelled_prefill_finished_stays(talkative: LoadedModel) -> None:
    ids = list(range(8, 258)) * 5
    with running(talkative) as engine:
        _, first = ask_and_cancel(engine, ids, layer=4)  # in the third chunk of 512
        _, second = ask_and_cancel(engine, ids, layer=None)
    assert (first.reason, first.reused, first.prefilled, first.generated) == ("cancelled", 0, 1024, 0)
    assert (second.reason, second.reused, second.prefilled, second.generated) == ("length", 1024, 226, 6)
