from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from model.copying import PLACES, Copier, CopyWeights
from model.errors import ModelError
from model.hub import ModelFolder
from model.loading import LoadedModel

EVEN = CopyWeights(0.0, 0.0, 0.0, 0.0)  # half votes, half model
SURE = CopyWeights(30.0, 0.0, 0.0, 0.0)


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
        ([5, 2, 3, 6, 2, 4, 7, 2, 4, 8, 2], 1, {4: 3 + 2, 3: 2}),  # the newest counts half as much again
        ([1, 1, 1, 1], 3, {1: 3}),
        ([0, 1, 0, 9, 0], 1, {1: 3}),  # 9 is a sentinel
        ([0, 9, 0], 0, {}),
    ],
)
def test_what_followed_the_longest_match_votes(ids: list[int], match: int, votes: dict[int, int]) -> None:
    found = Copier(EVEN, ids, never=[9]).votes()
    assert found == (match if votes else found[0], votes)


def test_pushing_is_the_same_as_beginning_with_all() -> None:
    rng = random.Random(0)
    ids = [rng.randrange(4) for _ in range(3 * PLACES)]
    copier = Copier(EVEN, ids[:10], never=[])
    for end in range(10, len(ids)):
        copier.push(ids[end])
        if end % 97 == 0:
            assert copier.votes() == Copier(EVEN, ids[: end + 1], never=[]).votes()


def test_the_mixture_is_a_distribution_of_both() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    mixed = Copier(EVEN, [1, 2, 3, 1, 2, 4, 1, 2], never=[]).mix(logits).exp()
    votes = torch.tensor([0.0, 0.0, 0.0, 0.4, 0.6])
    torch.testing.assert_close(mixed, 0.5 * logits.softmax(-1) + 0.5 * votes)


def test_without_a_match_the_model_speaks_alone() -> None:
    logits = torch.randn(8)
    torch.testing.assert_close(Copier(SURE, [1, 2, 3], never=[]).mix(logits), logits.log_softmax(-1))


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
    "copying", [{"bias": 1}, *(NONE | {"length": w} for w in ("x", float("nan"), float("-inf"), 10**400, -1e6)), [1], 3]
)
def test_preferences_with_other_weights_are_refused(tmp_path: Path, copying: object) -> None:
    (tmp_path / "fimls.json").write_text(json.dumps({"copying": copying}))
    with pytest.raises(ModelError, match="copying is"):
        _ = ModelFolder(tmp_path, {}).preferences
