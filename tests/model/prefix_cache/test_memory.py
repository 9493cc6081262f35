"""A new prompt starts from what earlier ones have computed, and gets what a fresh start would
give."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import LoadedModel, load_model
from model.engine.queue import Job
from model.engine.request import Finished, Request
from model.engine.worker import Engine
from model.generation.generate import Token
from model.prefix_cache.memory import PrefixCache
from model.prefix_cache.packed_ids import contains, pack, shared_ids
from tests.model.toys import Parrot, ask, read_ids, remember, running, toy_config

A, B, C = (list(range(first, first + 200)) for first in (1000, 2000, 3000))
ONE_CACHE = 2 * 2 * 512 * 4 * 4  # bytes of a parrot's cache of up to 512 positions


def use(prefixes: PrefixCache, ids: Sequence[int]) -> int:
    """One request that computes its whole prompt; returns how many positions it did not have to."""
    lease = prefixes.lease(ids)
    assert read_ids(lease.cache) == list(ids[: lease.reused])
    remember(lease.cache, ids[lease.reused :])
    prefixes.give_back(lease, ids)
    return lease.reused


SMALL_IDS = st.lists(st.integers(254, 258), max_size=40)


@given(
    common=st.lists(st.integers(0, 2**31 - 1)),
    a=SMALL_IDS,
    b=SMALL_IDS,
    long=st.integers(0, 10_000),
)
def test_packed_ids_compare_as_lists_do(
    common: list[int], a: list[int], b: list[int], long: int
) -> None:
    common = [*range(long), *common]
    a, b = common + a, common + b
    expected = next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    assert shared_ids(pack(a), pack(b)) == expected


@given(ids=SMALL_IDS, part=st.lists(st.integers(254, 258), max_size=3))
def test_packed_ids_are_found_only_whole(ids: list[int], part: list[int]) -> None:
    found = any(ids[i : i + len(part)] == part for i in range(len(ids) + 1))
    assert contains(pack(ids), pack(part)) == found


def test_ids_are_not_found_across_two() -> None:
    assert pack([1]) in pack([256, 1 << 24, 0])[1:]
    assert not contains(pack([256]), pack([1])) and not contains(pack([0x0100, 0]), pack([1]))


@pytest.mark.parametrize(
    ("earlier", "prompt", "reused"),
    [
        ([], A, 0),
        ([A], B, 0),
        ([A], [*A, 7], 200),
        ([A], [*A[:150], 7], 150),
        ([A], [*A[:5], 7], 5),
        ([A], A, 199),  # one id is always left to compute
        ([A], A[:8], 7),
        ([A], A[:1], 0),
        ([A], [7, *A], 0),  # a prefix, not a part
        ([A, A[:10] + B], [*A[:10], *B, 7], 210),
        ([A[:10] + B, A], [*A[:10], *B, 7], 210),
    ],
)
def test_the_longest_common_prefix_is_reused(
    earlier: list[list[int]], prompt: list[int], reused: int
) -> None:
    prefixes = PrefixCache(Parrot())
    for ids in earlier:
        use(prefixes, ids)
    assert use(prefixes, prompt) == reused


LONG = list(range(10_000, 18_000))


@pytest.mark.parametrize(
    ("first", "prompt", "kept"),
    [
        (A, [*A, 7], 1),  # goes on from it
        (A, [*A[:120], 7], 1),  # leaves it late: the rest is what was suggested or typed over
        (A, [*A[:50], *C], 2),  # leaves it early: the rest is another text's
        (
            A,
            [*A[:50], 7, *A[50:]],
            1,
        ),  # the rest has moved: the same text, edited, as the prompt of layout psm is
        (A, [*A[:50], 7, 8, *A[53:]], 1),
        (A, B, 2),
        (A, A, 1),
        (A, A[:8], 1),  # a prefix of what is kept serves nobody
        ([*LONG, *A], [*LONG, *B], 1),  # copying all that costs more than computing the rest again
        ([*LONG[:6000], *A], [*LONG[:6000], *B], 2),
    ],
)
def test_a_sequence_is_taken_over_or_copied_by_what_is_left_of_it(
    first: list[int], prompt: list[int], kept: int
) -> None:
    prefixes = PrefixCache(Parrot())
    use(prefixes, first)
    use(prefixes, prompt)
    assert len(prefixes) == kept
    if kept == 2:
        assert use(prefixes, [*first, 8]) == len(first)


def test_a_prefix_of_what_is_kept_is_not_kept_beside_it() -> None:
    prefixes = PrefixCache(Parrot(), byte_budget=2 * ONE_CACHE)
    use(prefixes, A)
    use(prefixes, B)
    use(prefixes, A[:8])
    assert len(prefixes) == 2
    use(prefixes, C)  # but it was a use of the whole
    assert use(prefixes, [*A, 7]) == 200


def test_the_budget_drops_the_least_recently_used() -> None:
    prefixes = PrefixCache(Parrot(), byte_budget=2 * ONE_CACHE)
    for first in (1000, 2000, 3000):
        use(prefixes, range(first, first + 500))
    assert len(prefixes) == 2
    assert use(prefixes, range(2000, 2501)) == 500  # and is now the most recent
    assert use(prefixes, range(4000, 4500)) == 0
    assert [use(prefixes, range(first, first + 502)) for first in (2000, 4000, 3000)] == [
        501,
        500,
        0,
    ]
    assert prefixes.nbytes <= 2.1 * ONE_CACHE


def test_spare_room_is_given_up_before_what_was_computed() -> None:
    prefixes = PrefixCache(Parrot(), byte_budget=2 * ONE_CACHE)
    for ids in (A, B, C):
        use(prefixes, ids)
    assert (len(prefixes), prefixes.nbytes) == (3, ONE_CACHE + 2 * ONE_CACHE * 200 // 512)
    assert use(prefixes, [*A, 7]) == 200


def test_being_copied_is_a_use() -> None:
    one, other, third = (range(first, first + 500) for first in (1000, 2000, 3000))
    prefixes = PrefixCache(Parrot(), byte_budget=int(3.2 * ONE_CACHE))
    use(prefixes, one)
    use(prefixes, other)
    assert use(prefixes, [*one[:8], *third]) == 8  # with room to grow, as large as two
    assert [use(prefixes, ids) for ids in ([*one, 7], other)] == [500, 0]


def test_the_newest_is_kept_however_large() -> None:
    prefixes = PrefixCache(Parrot(), byte_budget=1)
    use(prefixes, A)
    assert use(prefixes, [*A, 7]) == 200
    assert use(prefixes, B) == 0
    assert use(prefixes, A) == 0


def test_a_budget_of_zero_keeps_nothing() -> None:
    prefixes = PrefixCache(Parrot(), byte_budget=0)
    assert [use(prefixes, A), use(prefixes, [*A, 7]), len(prefixes), prefixes.nbytes] == [
        0,
        0,
        0,
        0,
    ]


def test_what_is_leased_is_nobody_elses_and_is_never_dropped() -> None:
    prefixes = PrefixCache(Parrot(), byte_budget=ONE_CACHE)
    use(prefixes, A)
    lease = prefixes.lease([*A, 7])
    assert prefixes.nbytes == 0
    assert prefixes.lease([*A, 8]).reused == 0
    use(prefixes, B)
    use(prefixes, C)
    assert read_ids(lease.cache) == A
    prefixes.give_back(lease, [*A, 7])
    assert use(prefixes, [*A, 9]) == 200


def test_a_lease_that_computed_nothing_leaves_nothing() -> None:
    prefixes = PrefixCache(Parrot())
    prefixes.give_back(prefixes.lease(A), A)
    assert prefixes.nbytes == 0


def test_a_long_context_that_grows_is_seldom_moved() -> None:
    """Key by key, as `generate` asks for room: the prompt and 64 tokens behind it."""
    prefixes, places = PrefixCache(Parrot(config=toy_config(16_384))), set()
    for length in range(8000, 8200):
        lease = prefixes.lease(range(length))
        lease.cache.reserve(length + 64)
        remember(lease.cache, range(lease.reused, length))
        places.add(lease.cache.capacity)
        prefixes.give_back(lease, range(length))
    assert len(places) <= 2


PROMPT = [random.Random(1).randrange(8, 260) for _ in range(80)]
PROMPTS = st.lists(st.integers(8, 10), min_size=1, max_size=12)


@given(
    requests=st.lists(st.tuples(PROMPTS, st.integers(0, 12)), max_size=25), budget=st.integers(0, 4)
)
def test_a_lease_holds_the_best_of_what_is_kept_and_nothing_else(
    requests: list[tuple[list[int], int]], budget: int
) -> None:
    """Requests that compute only so much of their prompt, as cancelled ones do."""
    prefixes = PrefixCache(Parrot(), byte_budget=budget * ONE_CACHE)
    last: list[int] = []
    for ids, computed in requests:
        lease = prefixes.lease(ids)
        assert read_ids(lease.cache) == ids[: lease.reused]
        assert shared_ids(pack(last), pack(ids[:-1])) <= lease.reused < len(ids)
        remember(lease.cache, ids[lease.reused : computed])
        prefixes.give_back(lease, ids)
        last = (ids[: lease.cache.length] or last) if budget else []
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


def ask_and_cancel(
    engine: Engine, ids: list[int], layer: int | None
) -> tuple[list[Token], Finished]:
    """Tokens and end of a request that is cancelled while the decoder computes that layer, counted
    from 0."""
    job: list[Job] = []
    layers = itertools.count()

    def on_layer(*_: object) -> None:
        if next(layers) == layer:
            job[0].cancel()

    hooks = [module.register_forward_pre_hook(on_layer) for module in engine.model.decoder.layers]
    try:
        _, *tokens, end = ask(
            engine, Request(tuple(ids), max_new_tokens=6), lambda j, _: job.append(j)
        )
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
            assert [t.logprob for t in tokens] == pytest.approx(
                [t.logprob for t in fresh], abs=1e-4
            )
            assert (
                len(tokens) == 6 or end.reason == "cancelled"
            )  # drafts: the last tokens may come with the one before
            reused += end.reused
            cancelled += end.reason == "cancelled"
    assert reused > 5000 and cancelled > 3


def test_what_a_cancelled_prefill_finished_stays(talkative: LoadedModel) -> None:
    ids = list(range(8, 258)) * 5
    with running(talkative) as engine:
        _, first = ask_and_cancel(engine, ids, layer=4)  # in the third chunk of 512
        _, second = ask_and_cancel(engine, ids, layer=None)
    assert (first.reason, first.reused, first.prefilled, first.generated) == (
        "cancelled",
        0,
        1024,
        0,
    )
    assert (second.reason, second.reused, second.prefilled, second.generated) == (
        "length",
        1024,
        226,
        6,
    )


@pytest.mark.parametrize("elsewhere", [False, True])
def test_keys_that_interrupt_each_other_come_to_an_end(
    talkative: LoadedModel, elsewhere: bool
) -> None:
    """Every key comes a layer after the one before: also where all that is cached is the beginning
    of another prompt."""
    decoder = talkative.decoder
    layers = decoder.config.num_layers
    ids = [(7 * i) % 250 + 8 for i in range(700)]
    with running(talkative) as engine:
        if elsewhere:
            ask_and_cancel(engine, [*ids[:100], *range(8, 258), *range(8, 258)], layer=None)
        held = 100 if elsewhere else 0
        ends = []
        for _ in range(layers):
            ids.append(9)
            ends.append(ask_and_cancel(engine, ids, layer=1)[1])
            assert (ends[-1].reason, ends[-1].reused) == ("cancelled", held)
        ids.append(9)
        tokens, end = ask_and_cancel(engine, ids, layer=None)
    fresh = list(talkative.generate(ids, max_new_tokens=6))
    assert [t.id for t in tokens] == [t.id for t in fresh]
    assert [t.logprob for t in tokens] == pytest.approx([t.logprob for t in fresh], abs=1e-4)
    assert [each.prefilled for each in ends] == [0, 512]
    assert end.reused == held + 512


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_cached_is_fresh_at_every_split(starcoder2_folder: Path, quantization: str | None) -> None:
    """Bit for bit in int8, whose sums are exact, as long as both parts go through the kernels for
    many rows; those for a few rows may round activations otherwise. A float's sum may depend on how
    many rows are multiplied at once.
    """
    decoder = load_model(starcoder2_folder, "cpu", "float32", quantization).decoder
    few = decoder.step.max_rows if decoder.step else len(PROMPT)
    with torch.inference_mode():
        fresh = decoder(torch.tensor([PROMPT]), cache=decoder.new_cache(), logits_to_keep=1).logits
        for split in range(1, len(PROMPT)):
            prefixes = PrefixCache(decoder)
            lease = prefixes.lease(PROMPT[:split])
            decoder(torch.tensor([PROMPT[:split]]), cache=lease.cache)
            prefixes.give_back(lease, PROMPT[:split])
            lease = prefixes.lease(PROMPT)
            assert lease.reused == split
            logits = decoder(
                torch.tensor([PROMPT[split:]]), cache=lease.cache, logits_to_keep=1
            ).logits
            if min(split, len(PROMPT) - split) > few:
                assert torch.equal(logits, fresh)
            else:
                torch.testing.assert_close(
                    logits, fresh, atol=0.3 if quantization else 1e-3, rtol=1e-4
                )
