"""Batches that are continued: as transformers continues them, and each row as if it were alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from model import load_model
from model.generation.sampling import Sampling, candidates
from model.heads import CausalLM
from tests.conftest import GPT_BIGCODE, STABLELM, STARCODER2
from tests.model.families.test_rope import ORIGINAL, newer
from tests.model.heads.test_cache import configs
from tests.model.heads.test_heads import BATCH, CONFIGS, LENGTH, PAD, both, padded, random_ids

NEW = 16
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 1.5, "top_k": 20, "top_p": 0.9}


def check_same(ours: CausalLM, theirs: Any, ids: Tensor, mask: Tensor | None, end: Any) -> Tensor:
    given = {"attention_mask": mask, "max_new_tokens": NEW, "pad_token_id": PAD}
    found = ours.generate(ids, **given, eos_token_id=end)
    expected = theirs.generate(ids, **given, eos_token_id=end or None, do_sample=False)
    assert found.tolist() == expected.tolist()
    assert found.dtype == ids.dtype
    return found


@configs
def test_greedy_batches_are_the_references(config: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = both(CausalLM, tmp_path, config)
    ids, mask, _ = padded("left")
    whole = check_same(ours, theirs, ids, mask, ())
    assert whole.shape == (BATCH, LENGTH + NEW)
    assert len(set(whole[:, LENGTH:].flatten().tolist())) > BATCH  # it says something
    # Two ends, of which each row meets another one, and one that all meet.
    ends = [int(whole[0, LENGTH + 3]), int(whole[2, LENGTH + 7])]
    ended = check_same(ours, theirs, ids, mask, ends)
    assert (ended[0, LENGTH + 4 :] == PAD).all()
    early = [int(token) for token in whole[:, LENGTH + 1]]
    assert check_same(ours, theirs, ids, mask, early).shape[1] < LENGTH + NEW
    assert check_same(ours, theirs, ids, None, ends).tolist() == ended.tolist()
    check_same(ours, theirs, ids, None, [PAD])


@pytest.mark.parametrize("name", ["dynamic", "longrope", "yarn, all fields", "llama3", "linear"])
@pytest.mark.parametrize("config", [STARCODER2, STABLELM], ids=["starcoder2", "stablelm"])
def test_every_rope_type_goes_on_beyond_its_original_length(
    config: dict[str, Any], name: str, tmp_path: Path
) -> None:
    ours, theirs = both(CausalLM, tmp_path, config | newer(name, 1.0))
    check_same(ours, theirs, random_ids(2, ORIGINAL - 5), None, ())


def test_learned_positions_are_continued(tmp_path: Path) -> None:
    ours, theirs = both(CausalLM, tmp_path, GPT_BIGCODE)
    ids, mask, _ = padded("left")
    check_same(ours, theirs, ids, mask, ())


@configs
@pytest.mark.parametrize("given", [{}, SAMPLED | {"seed": 7}], ids=["greedy", "sampled"])
def test_a_row_is_as_if_it_were_alone(
    config: dict[str, Any], given: dict[str, Any], tmp_path: Path
) -> None:
    ours, _ = both(CausalLM, tmp_path, config)
    ids, mask, _ = padded("left")
    given = given | {"max_new_tokens": NEW, "eos_token_id": ()}
    whole = ours.generate(ids, mask, **given)
    assert ours.generate(ids, mask, **given).tolist() == whole.tolist()
    for row in range(BATCH):
        alone = ids[: row + 1, 4 * row :].clone()  # less padding; the rows before keep the draws
        alone[:row] = 17
        found = ours.generate(alone, **given)
        assert found[row, -NEW:].tolist() == whole[row, -NEW:].tolist()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.5, 0.9, 7, top_k=20, min_p=0.01)])
def test_a_single_row_is_what_completions_are_made_of(sampling: Sampling, tmp_path: Path) -> None:
    ours, _ = both(CausalLM, tmp_path, CONFIGS["stablelm"])
    ids = random_ids(1)
    m = load_model(tmp_path, device="cpu", dtype="float32")
    tokens = m.generate(ids[0].tolist(), max_new_tokens=NEW, sampling=sampling)
    given = {"do_sample": sampling.temperature > 0, "temperature": sampling.temperature}
    for name in ("top_p", "seed", "top_k", "min_p"):
        given[name] = getattr(sampling, name)
    found = ours.generate(ids, max_new_tokens=NEW, eos_token_id=(), **given)
    assert found[0, LENGTH:].tolist() == [token.id for token in tokens]


# Sampling.


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities by transformers' processors, in the order of its `generate`."""
    warpers: list[Any] = [transformers.TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        warpers.append(transformers.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(transformers.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(transformers.MinPLogitsWarper(sampling.min_p))
    scores: Tensor = transformers.LogitsProcessorList(warpers)(torch.empty(1, 0), logits[None])
    return scores[0].softmax(-1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 7, 1000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 1.0])
def test_what_may_be_drawn_is_as_in_the_reference(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    sampling = Sampling(temperature, top_p, 0, top_k, min_p)
    logits = torch.randn(300, generator=torch.Generator().manual_seed(2)) * 2
    if top_p == 1:  # which of equal ones make the nucleus, nobody says
        logits[:3] = logits.max()
    expected = filtered(logits, sampling)
    tokens, probabilities = candidates(logits.log_softmax(-1).numpy(), sampling)
    found = np.zeros(len(logits))
    found[tokens] = probabilities / probabilities.sum()
    assert ((found > 0) == (expected > 0).numpy()).all()
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_tokens_come_as_often_as_in_the_reference(tmp_path: Path) -> None:
    ours, theirs = both(CausalLM, tmp_path, CONFIGS["stablelm"])
    ids = random_ids(1)
    sampling = Sampling(temperature=2.0, top_p=0.8, top_k=8, min_p=0.1)
    with torch.no_grad():
        expected = filtered(theirs(ids).logits[0, -1], sampling)
    assert 2 < int((expected > 0).sum()) < 8
    draws = 1000
    given: dict[str, Any] = {"temperature": 2.0, "top_p": 0.8, "top_k": 8, "min_p": 0.1}
    found = ours.generate(ids.expand(draws, -1), max_new_tokens=1, do_sample=True, **given)
    for token, share in enumerate(expected.tolist()):
        count = int((found[:, -1] == token).sum())
        assert abs(count - draws * share) <= 4 * math.sqrt(draws * share * (1 - share))
    again = ours.generate(ids, max_new_tokens=NEW, seed=1, do_sample=True, **given)
    other = ours.generate(ids, max_new_tokens=NEW, seed=2, do_sample=True, **given)
    assert again.tolist() != other.tolist()


# Bad inputs.


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pad_token_id": None}, "no pad_token_id.* Give pad_token_id, or one text at a time"),
        (
            {"attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])},
            "have their padding at the left",
        ),
        ({"attention_mask": torch.ones(2, 4)}, r"attention_mask is \(2, 4\), but must be \(2, 3\)"),
        ({"input_ids": torch.ones(3, dtype=torch.long)}, r"input_ids is \(3,\), but must be"),
        ({"input_ids": torch.full((2, 3), 320)}, "input_ids must be from 0 to 319"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, but must be positive"),
        ({"max_new_tokens": 255}, "need 257 positions, but the model has 256. Lower max_new_tok"),
        ({"do_sample": True, "temperature": 0}, "temperature is 0: leave do_sample out"),
        ({"do_sample": True, "top_k": -1}, "top_k -1 must be >= 0, min_p 0.0 in"),
        ({"do_sample": True, "min_p": 1.5}, "top_k 0 must be >= 0, min_p 1.5 in"),
    ],
)
def test_what_cannot_be_continued_is_named(
    given: dict[str, Any], words: str, starcoder2_folder: Path
) -> None:
    m = CausalLM.load(starcoder2_folder, device="cpu")
    fitting = {"input_ids": random_ids(2, 3), "max_new_tokens": 4, "pad_token_id": PAD}
    with pytest.raises(ValueError, match=words):
        m.generate(**(fitting | given))


def test_a_single_text_needs_no_padding_id(starcoder2_folder: Path) -> None:
    m = CausalLM.load(starcoder2_folder, device="cpu")
    assert m.config.pad_id is None
    assert m.generate(random_ids(1, 3), max_new_tokens=4).shape[1] <= 7
    assert m.generate(random_ids(2, 3), max_new_tokens=4, eos_token_id=()).shape == (2, 7)
