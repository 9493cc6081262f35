from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pytest

from model.errors import ModelError
from model.generation.copying import Copying, CopyWeights
from model.generation.text_matches import (
    LONGEST_MATCH,
    PLACES,
    TEXT_START,
    TextMatches,
    TokenIndex,
    common_prefix,
)
from model.loading import LoadedModel
from model.weights.folder import ModelFolder

EVEN = CopyWeights(0.0, 0.0, 0.0, 0.0)  # half votes, half model
SURE = CopyWeights(30.0, 0.0, 0.0, 0.0)


def matches(ids: Sequence[int], never: Collection[int] = ()) -> TextMatches:
    return TextMatches(TokenIndex([TEXT_START, *ids], never))


@pytest.mark.parametrize(
    ("ids", "match", "votes"),
    [
        ([], 0, {}),
        ([1], 0, {}),
        ([1, 2, 3], 0, {}),
        ([1, 2, 1], 1, {2: 3}),
        ([1, 2, 3, 1, 2], 2, {3: 3}),
        ([1, 2, 3, 9, 2, 4, 1, 2], 2, {3: 3}),  # the longer match alone
        ([1, 2, 3, 1, 2, 4, 1, 2, 4, 1, 2], 5, {4: 3}),
        (
            [5, 2, 3, 6, 2, 4, 7, 2, 4, 8, 2],
            1,
            {4: 3 + 2, 3: 2},
        ),  # the newest counts half as much again
        ([1, 1, 1, 1], 3, {1: 3}),
        ([0, 1, 0, 9, 0], 1, {1: 3}),  # 9 is a sentinel
        ([0, 9, 0], 0, {}),
    ],
)
def test_what_followed_the_longest_match_votes(
    ids: list[int], match: int, votes: dict[int, int]
) -> None:
    assert matches(ids, never=[9]).votes() == (match, votes)


def votes_by_a_scan(ids: list[int], never: int) -> tuple[int, Counter[int]]:
    """The same without an index: every place of the last token, newest first."""
    end, longest, found = len(ids) - 1, 0, Counter[int]()
    places = [p for p in range(end) if ids[p] == ids[end] and ids[p + 1] != never]
    for place in reversed(places[-PLACES:]):
        match = 1
        while match < LONGEST_MATCH and match <= place and ids[place - match] == ids[end - match]:
            match += 1
        if match > longest:
            longest, found = match, Counter()
        if match == longest:
            found[ids[place + 1]] += 2 if found else 3
    return longest, found


@pytest.mark.parametrize("seed", range(24))
def test_votes_are_those_of_a_scan_while_the_text_grows_and_changes(seed: int) -> None:
    """Of texts that repeat themselves at length too, of tokens with more places than count, of an
    index used again."""
    rng = random.Random(seed)
    kinds, never = rng.choice([2, 3, 6, 50]), rng.choice([0, 99])
    phrases = [[rng.randrange(kinds) for _ in range(rng.choice([1, 3, 60]))] for _ in range(4)]
    ids = [token for _ in range(rng.choice([0, 3, 40])) for token in rng.choice(phrases)]
    index = TokenIndex((), [never])
    for _ in range(3):
        index.change_to([TEXT_START, *ids])
        assert index.ids == [TEXT_START, *ids]
        assert {t: p for t, p in index.places.items() if p} == TokenIndex(
            [TEXT_START, *ids], [never]
        ).places
        found = TextMatches(index)
        for token in [
            token for _ in range(12) for token in rng.choice([*phrases, [rng.randrange(kinds)]])
        ]:
            found.push(token)
            ids.append(token)
            assert found.votes() == votes_by_a_scan(ids, never)
        keep = rng.randrange(len(ids))
        ids = [*ids[:keep], rng.randrange(kinds)]


@pytest.mark.parametrize(
    ("a", "b"), [([], []), ([1], []), ([1], [1]), ([1, 2], [1, 3]), ([2], [3]), ([1, 2], [1, 2, 3])]
)
def test_a_common_prefix_is_as_long_as_can_be(a: list[int], b: list[int]) -> None:
    for more in range(40):
        front = list(range(more))
        first = next(
            (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
        )
        assert common_prefix(front + a, front + b) == more + first
        assert common_prefix(bytes(front + a), bytes(front + b)) == more + first


def test_the_mixture_is_a_distribution_of_both() -> None:
    model = np.exp(np.arange(5, dtype=np.float32))
    model /= model.sum()
    row = np.log(model)
    Copying(EVEN, matches([1, 2, 3, 1, 2, 4, 1, 2])).process(row)
    assert np.exp(row) == pytest.approx(0.5 * model + 0.5 * np.array([0.0, 0.0, 0.0, 0.4, 0.6]))


def test_without_a_match_the_model_speaks_alone() -> None:
    row = np.log(np.array([0.2, 0.3, 0.1, 0.4], np.float32))
    before = row.copy()
    Copying(SURE, matches([1, 2, 3])).process(row)
    assert (row == before).all()


def test_longer_matches_and_an_unsure_model_give_the_votes_more() -> None:
    weights = CopyWeights(-2.0, 0.8, 0.5, -0.4)
    assert weights.share(8, 1.0, 0.5) > weights.share(2, 1.0, 0.5) > weights.share(2, 0.4, 0.5)
    assert weights.share(2, 1.0, 0.2) > weights.share(2, 1.0, 0.9)
    assert 0 < weights.share(1, 1.0, 1.0) < weights.share(32, 1.0, 0.0) < 1
    with pytest.raises(ValueError, match="finite"):
        CopyWeights(float("nan"), 0, 0, 0)


def test_a_generation_copies_and_its_cache_stays_true(talkative: LoadedModel) -> None:
    ids = talkative.tokenizer.encode("the quick brown fox; the quick")
    copied = list(talkative.generate(ids, max_new_tokens=10, copying=SURE))
    assert "".join(t.text for t in copied) == " brown fox"
    assert all(t.logprob > -0.01 for t in copied)
    plain = talkative.generate(ids, max_new_tokens=10)
    unmoved = talkative.generate(ids, max_new_tokens=10, copying=CopyWeights(-30.0, 0, 0, 0))
    assert [t.id for t in plain] == [t.id for t in unmoved]


def test_copying_spells_what_has_to_be_healed_first(talkative: LoadedModel) -> None:
    ids = talkative.tokenizer.encode("the quick brown fox; the")
    healed = talkative.generate(ids, max_new_tokens=10, copying=SURE, begin_with=" qu")
    assert "".join(t.text for t in healed) == "ick bro"


NONE = dict.fromkeys(("bias", "length", "agreement", "confidence"), 0)


@pytest.mark.parametrize(
    "copying",
    [
        {"bias": 1},
        *(NONE | {"length": w} for w in ("x", float("nan"), float("-inf"), 10**400, -1e6)),
        [1],
        3,
    ],
)
def test_preferences_with_other_weights_are_refused(tmp_path: Path, copying: object) -> None:
    (tmp_path / "fimls.json").write_text(json.dumps({"copying": copying}))
    with pytest.raises(ModelError, match="copying is"):
        _ = ModelFolder(tmp_path, {}).preferences
