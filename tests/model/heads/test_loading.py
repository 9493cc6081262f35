"""Checkpoints of one head in another, what is written, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from model import load_model
from model.errors import ModelError
from model.heads import BareModel, CausalLM, SequenceClassifier, TokenClassifier
from model.heads.heads import Head
from tests.conftest import GPT_BIGCODE, LLAMA, STABLELM, STARCODER2, write_model
from tests.model.folders import WEIGHTS, Weights, configure, rewrite
from tests.model.heads.test_heads import HEADS, LABELS, close, make_reference, random_ids

UNTIED = STARCODER2 | {"tie_word_embeddings": False}


@pytest.mark.parametrize(
    ("stored", "wanted", "missing", "left_over"),
    [
        (CausalLM, BareModel, (), ("lm_head.weight",)),
        (CausalLM, SequenceClassifier, ("score.weight",), ("lm_head.weight",)),
        (CausalLM, TokenClassifier, ("score.weight", "score.bias"), ("lm_head.weight",)),
        (BareModel, CausalLM, ("lm_head.weight",), ()),
        (BareModel, SequenceClassifier, ("score.weight",), ()),
        (SequenceClassifier, CausalLM, ("lm_head.weight",), ("score.weight",)),
        (SequenceClassifier, TokenClassifier, ("score.bias",), ()),
        (TokenClassifier, SequenceClassifier, (), ("score.bias",)),
    ],
)
def test_what_is_missing_and_what_is_left_over_is_told(
    stored: type[Head],
    wanted: type[Head],
    missing: tuple[str, ...],
    left_over: tuple[str, ...],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reference = make_reference(stored, tmp_path, UNTIED)
    with caplog.at_level(logging.WARNING):
        m = wanted.load(tmp_path, device="cpu")
    assert (m.report.missing, m.report.left_over) == (missing, left_over)
    assert all(name in caplog.text for name in missing + left_over)
    assert all(torch.isfinite(p).all() for p in m.parameters())
    bare = reference if stored is BareModel else reference.model
    ids = random_ids()
    close(m.states(ids, {}).last_hidden_state, bare(ids).last_hidden_state)


def test_new_weights_are_drawn_as_the_config_says(tmp_path: Path) -> None:
    make_reference(BareModel, tmp_path, UNTIED, initializer_range=0.5)
    lm_head = CausalLM.load(tmp_path, device="cpu").decoder.get_parameter("head.weight")
    assert abs(float(lm_head.detach().std()) - 0.5) < 0.05
    classifier = TokenClassifier.load(tmp_path, device="cpu", num_labels=7)
    assert classifier.score.weight.shape == (7, 32)
    assert not classifier.score.bias.any()


@pytest.mark.parametrize("config", [STARCODER2, UNTIED, STABLELM | {"qk_layernorm": True}])
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_what_is_saved_is_loaded_here_and_by_transformers(
    head: type[Head], config: dict[str, Any], tmp_path: Path
) -> None:
    make_reference(head, tmp_path / "theirs", config)
    ours = head.load(tmp_path / "theirs", device="cpu")
    with torch.no_grad():  # a step of training
        for parameter in ours.parameters():
            parameter.add_(0.01)
    ours.save(tmp_path / "ours")
    ids = random_ids()
    again = head.load(tmp_path / "ours", device="cpu")
    assert again.report.missing == again.report.left_over == ()
    theirs, told = HEADS[head].from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(told.values())
    first = "last_hidden_state" if head is BareModel else "logits"
    for other in (again, theirs.eval()):
        close(getattr(other(ids), first), getattr(ours(ids), first))
    if head is CausalLM:
        generates = load_model(tmp_path / "ours", device="cpu", dtype="float32")
        close(generates.decoder(ids).logits, ours(ids).logits)


@pytest.mark.parametrize("config", [STARCODER2, STABLELM, LLAMA], ids=lambda c: c["model_type"])
def test_what_the_config_does_not_state_is_as_in_the_reference(
    config: dict[str, Any], tmp_path: Path
) -> None:
    ours = TokenClassifier.load(write_model(tmp_path, config)).config
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    head = transformers.AutoModelForTokenClassification.from_config(theirs)
    assert ours.classifier_dropout == head.dropout.p
    assert ours.initializer_range == theirs.initializer_range
    assert (ours.num_labels, ours.problem_type, ours.pad_id) == (2, None, theirs.pad_token_id)
    assert ours.use_cache == theirs.use_cache


def test_labels_are_saved(tmp_path: Path) -> None:
    write_model(tmp_path / "toy", STARCODER2)
    m = SequenceClassifier.load(
        tmp_path / "toy", num_labels=4, problem_type="multi_label_classification"
    )
    m.save(tmp_path / "saved")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "saved")
    assert (config.num_labels, config.problem_type) == (4, "multi_label_classification")
    assert SequenceClassifier.load(tmp_path / "saved").config == m.config


def test_every_family_and_the_bundled_model_have_heads(tmp_path: Path) -> None:
    m = SequenceClassifier.load("bundled", device="cpu")
    assert m(random_ids(1)).logits.shape == (1, 2)
    write_model(tmp_path, GPT_BIGCODE)
    ids = random_ids()
    m = CausalLM.load(tmp_path, device="cpu")
    close(m(ids).logits, load_model(tmp_path, device="cpu", dtype="float32").decoder(ids).logits)
    with pytest.raises(ValueError, match="positions must be from 0 to 255"):
        m(ids, position_ids=torch.arange(ids.shape[1])[None] + 250)


@pytest.mark.parametrize("size", [331, 300])
@pytest.mark.parametrize("config", [STARCODER2, UNTIED], ids=["tied", "untied"])
def test_embeddings_are_resized(config: dict[str, Any], size: int, tmp_path: Path) -> None:
    theirs = make_reference(CausalLM, tmp_path / "theirs", config)
    ours = CausalLM.load(tmp_path / "theirs", device="cpu")
    theirs.resize_token_embeddings(size)
    ours.resize_embeddings(size)
    # The reference adds noise to the mean, which shows in products and norms, not in the matrices.
    close(ours.decoder.get_parameter("embed_tokens.weight"), theirs.get_input_embeddings().weight)
    if not config.get("tie_word_embeddings", True):
        close(ours.decoder.get_parameter("head.weight"), theirs.lm_head.weight)
    old = torch.tensor([[10, 299, 20]])
    columns = slice(min(size, config["vocab_size"]))
    close(ours(old).logits[..., columns], theirs(old).logits[..., columns])
    ids = torch.tensor([[10, 299, size - 1, 20]])
    assert ours(ids).logits.shape[-1] == size
    ours(ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in ours.parameters())
    ours.save(tmp_path / "ours")
    close(CausalLM.load(tmp_path / "ours", device="cpu")(ids).logits, ours(ids).logits)
    with pytest.raises(ValueError, match="vocab_size"):
        ours.resize_embeddings(0)


# Bad checkpoints.


def check_refused(head: type[Head], folder: Path, *words: str) -> None:
    with pytest.raises(ModelError) as caught:
        head.load(folder, device="cpu")
    assert all(word in str(caught.value) for word in (str(folder), *words)), str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("model.norm.bias"), ["lacks", "model.norm.bias", "Download"]),
        (lambda w: w.update({"extra.weight": torch.ones(3)}), ["extra.weight", "no place"]),
        (lambda w: w.update({"score.weight": torch.ones(4, 32)}), ["score.weight", "(3, 32)"]),
        (lambda w: w["score.weight"].fill_(float("nan")), ["score.weight", "not finite"]),
    ],
)
def test_bad_weights_are_refused(
    change: Callable[[Weights], Any], words: list[str], tmp_path: Path
) -> None:
    make_reference(SequenceClassifier, tmp_path, STARCODER2)
    rewrite(tmp_path, change)
    check_refused(SequenceClassifier, tmp_path, *words)


def test_bad_configurations_are_refused(tmp_path: Path) -> None:
    make_reference(CausalLM, tmp_path, STARCODER2)
    configure(tmp_path, problem_type="ranking")
    check_refused(SequenceClassifier, tmp_path, "problem_type", "ranking", "regression")
    configure(tmp_path, problem_type=None, attention_dropout="much")
    check_refused(BareModel, tmp_path, "attention_dropout", "much")
    configure(tmp_path, attention_dropout=1.5)
    check_refused(BareModel, tmp_path, "attention_dropout", "1.5")
    with pytest.raises(ModelError, match="num_labels is 0"):
        SequenceClassifier.load(tmp_path, num_labels=0)


def test_a_copy_of_the_tied_embeddings_is_no_left_over(tmp_path: Path) -> None:
    make_reference(CausalLM, tmp_path, STARCODER2)
    embeddings = load_file(tmp_path / WEIGHTS)["model.embed_tokens.weight"]
    rewrite(tmp_path, lambda w: w.update({"lm_head.weight": embeddings.clone()}))
    assert CausalLM.load(tmp_path).report.left_over == ()
    rewrite(tmp_path, lambda w: w["lm_head.weight"].add_(1))
    check_refused(CausalLM, tmp_path, "lm_head.weight", "tie_word_embeddings")


# Bad inputs.


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "give either input_ids or inputs_embeds"),
        ({"input_ids": torch.ones(3, dtype=torch.long)}, "input_ids is"),
        ({"input_ids": torch.ones(1, 0, dtype=torch.long)}, "input_ids is"),
        ({"input_ids": torch.ones(0, 4, dtype=torch.long)}, r"input_ids is \(0, 4\), but must be"),
        ({"input_ids": torch.ones(1, 4)}, "input_ids is torch.float32, but must be torch.int64"),
        ({"input_ids": torch.tensor([[320]])}, "from 0 to 319"),
        ({"inputs_embeds": torch.ones(1, 4, 31)}, "inputs_embeds is"),
        ({"attention_mask": torch.ones(1, 3)}, "attention_mask is .* but must be"),
        ({"position_ids": torch.zeros(2, 4, dtype=torch.long)}, "position_ids is"),
        ({"labels": torch.full((1, 4), 320)}, "labels must be whole numbers from 0 to 319"),
        ({"labels": torch.ones(1, 4)}, "labels must be whole numbers"),
        ({"shift_labels": torch.full((1, 4), -1)}, "shift_labels must be .* or -100 to be ignored"),
        ({"shift_labels": torch.ones(1, 3).long()}, r"shift_labels is \(1, 3\), but must be"),
        ({"labels": torch.ones(1, 3, dtype=torch.long)}, "labels is"),
        ({"labels": torch.ones(1, 4, dtype=torch.long), "logits_to_keep": 1}, "logits_to_keep"),
    ],
)
def test_bad_inputs_are_named(given: dict[str, Any], words: str, starcoder2_folder: Path) -> None:
    m = CausalLM.load(starcoder2_folder, device="cpu")
    if given and not {"input_ids", "inputs_embeds"} & given.keys():
        given = given | {"input_ids": torch.ones(1, 4, dtype=torch.long)}
    with pytest.raises(ValueError, match=words):
        m(**given)


def test_labels_of_sequences_that_do_not_fit_are_named(starcoder2_folder: Path) -> None:
    m = SequenceClassifier.load(starcoder2_folder, device="cpu", num_labels=LABELS)
    ids = random_ids(1)
    with pytest.raises(ValueError, match="labels must be whole numbers from 0 to 2"):
        m(ids, labels=torch.tensor([3]))
    with pytest.raises(ValueError, match="multi_label_classification"):
        m(ids, labels=torch.ones(1, 2))
