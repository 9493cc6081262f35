"""Drafts: the tokens, their log-probabilities and the cache are those of plain decoding, in fewer
passes."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch

from model import LoadedModel, Tokenizer
from model.decoder.decoder import DecoderOutput
from model.engine.request import Finished, Request
from model.generation.copying import CopyWeights
from model.generation.drafting import ACCEPTANCE, Drafter, DraftHistory, row_costs
from model.generation.generate import DecodeCounts, Token
from model.generation.sampling import Sampling
from model.generation.text_matches import TEXT_START, TextMatches, TokenIndex
from tests.conftest import STABLELM, STARCODER2, make_talkative, write_model
from tests.model.toys import MIDDLE, Parrot, ask, load, read_ids, running

FREE = {1: 1.0, 16: 1.0}  # rows that cost nothing: the longest drafts
HABIT = CopyWeights(
    -0.5, 1.0, 0.5, -0.3
)  # copies often enough that drafts come true, seldom enough that they do not
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "starcoder2": (STARCODER2, {}),
    "window": (STARCODER2, {"sliding_window": 24}),
    "one kv head": (STARCODER2, {"num_key_value_heads": 1}),
    "stablelm": (STABLELM, {}),
}


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Models of random weights that write one of three letters without an end; 256 positions."""
    base, changes = SHAPES[request.param]
    config = base | {"tie_word_embeddings": False} | changes
    folder = write_model(tmp_path_factory.mktemp("drafts"), config, seed=3)
    return load(make_talkative(folder, allowed="abc"))


def prompt(seed: int, length: int = 60) -> list[int]:
    """Letters that repeat themselves, not quite."""
    rng = random.Random(seed)
    phrase = [rng.choice("abc") for _ in range(7)]
    return [
        ord(rng.choice("abc") if rng.random() < 0.15 else phrase[i % 7]) - ord("!") + 7
        for i in range(length)
    ]


def same(drafted: list[Token], plain: list[Token]) -> None:
    assert [(t.id, t.text) for t in drafted] == [(t.id, t.text) for t in plain]
    assert [t.logprob for t in drafted] == pytest.approx([t.logprob for t in plain], abs=1e-4)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"copying": HABIT},
    {"copying": HABIT, "begin_with": "abca"},
    {"sampling": Sampling(temperature=0.7, top_p=0.9, seed=5), "copying": HABIT},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "copying", "healing", "sampling"])
def test_drafts_change_nothing_but_the_passes(model: LoadedModel, options: dict[str, Any]) -> None:
    history, total = DraftHistory(FREE), DecodeCounts()
    for seed in range(6):
        ids, counts = prompt(seed), DecodeCounts()
        plain = list(model.generate(ids, max_new_tokens=40, **options))
        for _ in range(2):  # the second time from what was said the first
            counts.passes = 0
            same(
                list(
                    model.generate(
                        ids, max_new_tokens=40, history=history, counts=counts, **options
                    )
                ),
                plain,
            )
            assert len(plain) == 40
        assert counts.passes < 20
        total.drafted += counts.drafted
        total.accepted += counts.accepted
    assert 0 < total.accepted < total.drafted


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 8, 15, 16, 17, 18, 33])
def test_an_answer_ends_at_its_limit_wherever_a_draft_does(model: LoadedModel, limit: int) -> None:
    ids, history = prompt(1), DraftHistory(FREE)
    plain = list(model.generate(ids, max_new_tokens=40, copying=HABIT))
    for _ in range(3):
        counts = DecodeCounts()
        run = model.generate(
            ids, max_new_tokens=limit, copying=HABIT, history=history, counts=counts
        )
        same(list(run), plain[:limit])
        assert counts.drafted <= limit - 1 + counts.passes * limit


@pytest.mark.parametrize("stop", "abc")
def test_a_stop_id_in_a_draft_ends_the_answer(model: LoadedModel, stop: str) -> None:
    stop_ids, history = model.tokenizer.encode(stop), DraftHistory(FREE)
    for seed in range(6):
        options: dict[str, Any] = {"max_new_tokens": 40, "copying": HABIT, "stop_ids": stop_ids}
        plain = list(model.generate(prompt(seed), **options))
        same(list(model.generate(prompt(seed), history=history, **options)), plain)


@pytest.mark.parametrize("length", [240, 250, 254, 255, 256])
def test_the_models_last_position_is_no_place_for_drafts(model: LoadedModel, length: int) -> None:
    ids, history = prompt(2, length), DraftHistory(FREE)
    plain = list(model.generate(ids, max_new_tokens=99))
    assert len(plain) == 257 - length
    for _ in range(2):
        same(list(model.generate(ids, max_new_tokens=99, history=history)), plain)


@pytest.mark.parametrize("reused", [0, 20, 58, 59])
def test_a_cache_that_has_served_drafts_is_as_good_as_new(model: LoadedModel, reused: int) -> None:
    """Closed after any token, it goes on with another text as a fresh one does."""
    ids, history = prompt(4), DraftHistory(FREE)
    for count in range(1, 30):
        cache = model.decoder.new_cache()
        list(model.generate(ids, max_new_tokens=0, cache=cache))
        cache.trim(reused)
        said = [
            t.id
            for t in islice(
                model.generate(ids, max_new_tokens=40, cache=cache, history=history), count
            )
        ]
        assert len(ids) <= cache.length <= len(ids) + count - 1
        other = [*(ids + said)[: cache.length], *prompt(9, 5)]
        fresh = list(model.generate(other, max_new_tokens=3))
        same(list(model.generate(other, max_new_tokens=3, cache=cache)), fresh)


class Counting(Parrot):
    """Says its script, and counts passes and positions."""

    passes = positions = 0

    def __call__(self, input_ids: torch.Tensor, **options: Any) -> DecoderOutput:
        self.passes, self.positions = self.passes + 1, self.positions + input_ids.shape[1]
        return super().__call__(input_ids, **options)


SCRIPT = "abcdefgh abcdefgh abcdXfgh abcdefgh"


@pytest.fixture
def parrot(byte_tokenizer: Tokenizer) -> Counting:
    return Counting(byte_tokenizer.encode(SCRIPT))


def test_at_every_token_the_cache_holds_what_was_said_before(
    parrot: Counting, byte_tokenizer: Tokenizer
) -> None:
    m, cache, counts = parrot.as_model(byte_tokenizer), parrot.new_cache(), DecodeCounts()
    held = [40, 41, MIDDLE]
    for token in m.generate(
        held[:], max_new_tokens=99, cache=cache, history=DraftHistory(FREE), counts=counts
    ):
        assert read_ids(cache) == held
        held.append(token.id)
    assert byte_tokenizer.decode(held[3:]) == SCRIPT
    assert 0 < counts.accepted < counts.drafted
    assert counts.passes == parrot.passes - 1 == len(SCRIPT) - counts.accepted
    assert parrot.positions == 3 + counts.passes + counts.drafted


@pytest.mark.parametrize("count", range(1, len(SCRIPT) + 1))
def test_should_stop_is_asked_between_drafted_tokens_too(
    parrot: Counting, byte_tokenizer: Tokenizer, count: int
) -> None:
    m, cache, said = parrot.as_model(byte_tokenizer), parrot.new_cache(), list[Token]()
    options: dict[str, Any] = {
        "cache": cache,
        "history": DraftHistory(FREE),
        "should_stop": lambda: len(said) >= count,
    }
    for token in m.generate([MIDDLE], max_new_tokens=99, **options):
        said.append(token)
    assert "".join(t.text for t in said) == SCRIPT[:count]
    assert read_ids(cache) == [MIDDLE, *byte_tokenizer.encode(SCRIPT[: count - 1])]


def test_what_was_said_lately_takes_a_pass(parrot: Counting, byte_tokenizer: Tokenizer) -> None:
    """Also a prompt that has grown by what was accepted; the engine tells."""
    with running(parrot.as_model(byte_tokenizer)) as engine:
        engine.history = DraftHistory(FREE)
        ends = []
        for more in ("", "", "abcd"):
            event = ask(
                engine, Request((40, 41, MIDDLE, *byte_tokenizer.encode(more)), max_new_tokens=12)
            )[-1]
            assert isinstance(event, Finished)
            ends.append(event)
        assert [(e.generated, e.drafted >= e.accepted) for e in ends] == [(12, True)] * 3
        assert ends[0].passes > 4
        assert [(e.passes, e.accepted) for e in ends[1:]] == [(1, 11), (2, 10)]
        assert engine.passes == parrot.passes
        assert engine.positions == parrot.positions


def test_an_engine_without_drafts_makes_none(parrot: Counting, byte_tokenizer: Tokenizer) -> None:
    with running(parrot.as_model(byte_tokenizer)) as engine:
        engine.history = None
        for _ in range(2):
            end = ask(engine, Request((40, 41, MIDDLE), max_new_tokens=12))[-1]
            assert isinstance(end, Finished)
            assert (end.passes, end.drafted, end.accepted) == (12, 0, 0)


# Sampling.

SHARES = {"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05}


class Dice(Parrot):
    """Every token is drawn from SHARES, whatever came before."""

    def __call__(self, input_ids: torch.Tensor, **options: Any) -> DecoderOutput:
        logits = torch.full_like(super().__call__(input_ids, **options).logits, -math.inf)
        for letter, share in SHARES.items():
            logits[..., ord(letter) - ord("!") + 7] = math.log(share)
        return DecoderOutput(logits)


def chi_square(counts: Counter[str], shares: dict[str, float]) -> float:
    total = counts.total()
    return sum((counts[k] - total * share) ** 2 / (total * share) for k, share in shares.items())


@pytest.mark.parametrize(("top_p", "left"), [(1.0, "abcd"), (0.75, "ab")])
def test_drafts_do_not_change_how_often_a_token_is_drawn(
    byte_tokenizer: Tokenizer, top_p: float, left: str
) -> None:
    m, history, decode_counts = Dice().as_model(byte_tokenizer), DraftHistory(FREE), DecodeCounts()
    ids, counts, pairs = byte_tokenizer.encode("abcdaabacabbadacab"), Counter[str](), Counter[str]()
    for seed in range(40):
        sampling = Sampling(temperature=1.0, top_p=top_p, seed=seed)
        text, again = (
            "".join(
                t.text
                for t in m.generate(
                    ids, max_new_tokens=50, sampling=sampling, history=history, counts=decode_counts
                )
            )
            for _ in range(2)
        )
        assert text == again
        counts.update(text)
        pairs.update(text[i : i + 2] for i in range(0, 50, 2))
    assert 1000 < decode_counts.accepted < decode_counts.drafted
    shares = {k: SHARES[k] / sum(SHARES[x] for x in left) for k in left}
    assert counts.total() == 2000
    assert set(counts) == set(left)
    assert (
        chi_square(counts, shares) < 16.3
    )  # three degrees of freedom: one in a thousand by chance
    assert (
        chi_square(pairs, {a + b: shares[a] * shares[b] for a in left for b in left}) < 37.7
    )  # fifteen of them


# Drafts.


@pytest.mark.parametrize(
    ("text", "before", "length", "draft"),
    [
        ("", [], 0, ""),
        ("abc", [], 0, ""),
        ("abcdeXab", [], 2, "cde"),  # up to the sentinel
        ("abcab", [], 2, "cabcabca"),  # a text that repeats itself goes on to
        ("abc1abc2ab", [], 2, "c2abc2ab"),  # the newest
        ("zab", ["yzabcd"], 3, "cd"),  # of another text, up to its end
        ("xab1yab", ["xab2", "yab3"], 3, "3"),  # the longest
        ("ab1ab", ["ab2"], 2, "2"),  # as long: what was said
        ("aX", ["aXb"], 2, "b"),  # what was said behind a sentinel
    ],
)
def test_a_draft_is_what_followed_the_longest_match(
    text: str, before: list[str], length: int, draft: str
) -> None:
    never = [ord("X")]
    other = (
        TokenIndex([i for old in before for i in (*map(ord, old), TEXT_START - 1)], never)
        if before
        else None
    )
    matches = TextMatches(TokenIndex([TEXT_START, *map(ord, text)], never), other)
    assert matches.draft(8) == (length, list(map(ord, draft)))


def test_a_draft_is_as_long_as_pays() -> None:
    ids = [TEXT_START, *range(20), *range(4)]

    def proposed(costs: dict[int, float], odds: float, limit: int = 15, rows: int = 1) -> int:
        history = DraftHistory(costs)
        history.acceptance = [odds] * len(ACCEPTANCE)
        return len(Drafter(history, TextMatches(TokenIndex(ids))).propose(limit, rows))

    assert proposed(FREE, 0.1) == 15
    assert proposed(FREE, 0.1, limit=3) == 3
    assert proposed(FREE, 0.1, limit=0) == proposed(FREE, 0.1, limit=-1) == 0
    assert proposed({1: 1.0, 16: 16.0}, 0.99) == 0
    assert proposed({1: 1.0, 8: 1.1, 16: 9.0}, 0.99) == 7
    assert proposed({1: 1.0, 4: 1.0}, 0.99) == 3  # more rows have no price
    assert proposed({1: 1.0, 4: 1.0}, 0.99, rows=3) == 1
    assert proposed({1: 1.0, 4: 1.0}, 0.99, rows=500) == proposed({1: 1.0}, 0.99) == 0
    assert 0 < proposed({1: 1.0, 16: 4.0}, 0.6) < proposed({1: 1.0, 16: 4.0}, 0.9) < 15


def test_a_long_cache_makes_drafts_shorter() -> None:
    """Each row attends by itself, so that rows cost more the more there is in the cache."""
    ids = [TEXT_START, *range(20), *range(4)]
    history = DraftHistory({1: 1.0, 16: 2.5}, {1: 0.1, 16: 1.6})
    history.acceptance = [0.8] * len(ACCEPTANCE)
    drafter = Drafter(history, TextMatches(TokenIndex(ids)))
    lengths = [len(drafter.propose(15, positions=n)) for n in (0, 500, 2000, 8000, 100000)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]
    assert history.costs_at(1000)[16] == pytest.approx((2.5 + 1.6) / 1.1)
    assert DraftHistory({1: 1.0, 16: 2.5}).costs_at(1000)[16] == 2.5


def test_drafts_that_fail_grow_shorter_and_come_back_when_they_would_be_right() -> None:
    history, matches = DraftHistory(), TextMatches(TokenIndex([TEXT_START, *range(20), *range(4)]))
    drafter = Drafter(history, matches)
    assert len(before := drafter.propose(15)) > 3
    for _ in range(200):
        drafter.propose(15)
        assert not drafter.learn(0, 99)
    assert drafter.propose(15) == []
    for _ in range(200):
        drafter.propose(15)
        assert drafter.learn(0, 4)  # what would have been proposed
    assert len(drafter.propose(15)) >= len(before)


@pytest.mark.parametrize(
    ("measured", "costs"),
    [
        ({1: 1.0}, [0, 1]),
        ({2: 1.5}, [0, 1, 1.5]),
        ({4: 4.0, 1: 2.0}, [0, 1, 1 + 1 / 3, 1 + 2 / 3, 2]),
        ({1: 1, 2: 1, 4: 3}, [0, 1, 1, 2, 3]),
    ],
)
def test_costs_between_those_measured_lie_on_a_line(
    measured: dict[int, float], costs: list[float]
) -> None:
    assert row_costs(measured) == pytest.approx(costs)


def test_two_generations_at_the_same_time_do_not_meet(model: LoadedModel) -> None:
    history = DraftHistory(FREE)
    plain = [list(model.generate(prompt(seed), max_new_tokens=20)) for seed in (1, 2)]
    runs: list[Iterator[Token]] = [
        model.generate(prompt(seed), max_new_tokens=20, history=history) for seed in (1, 2)
    ]
    both = list(zip(*runs, strict=True))
    for number in range(2):
        same([pair[number] for pair in both], plain[number])
