"""What only training has: gradient checkpointing, new weights, training from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from model.decoder.layers import MLP
from model.errors import ModelError
from model.families.registry import FAMILIES
from model.heads import BareModel, CausalLM, SequenceClassifier, TokenClassifier
from model.heads.heads import Head
from model.heads.layers import Dropouts
from tests.conftest import (
    GEMMA,
    GPT_BIGCODE,
    GRANITE,
    LLAMA,
    STABLELM,
    STARCODER2,
    write_model,
)
from tests.model.heads.test_heads import (
    CONFIGS,
    HEADS,
    PAD,
    both,
    close,
    labels_of,
    make_reference,
    padded,
    random_ids,
)

DROPOUTS = {
    "starcoder2": ("attention_dropout", "embedding_dropout", "residual_dropout"),
    "stablelm": ("attention_dropout", "hidden_dropout"),
}


def loss_and_gradients(m: Head, **given: Any) -> tuple[Tensor, ...]:
    m.zero_grad()
    torch.manual_seed(3)
    loss = m(**given).loss
    loss.backward()
    return (loss.detach(), *(p.grad.clone() for p in m.parameters()))


@pytest.mark.parametrize("share", [0.0, 0.3], ids=["no dropout", "dropout"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("head", [CausalLM, SequenceClassifier, TokenClassifier])
@pytest.mark.parametrize("name", ["starcoder2, window, untied", "stablelm"])
def test_gradient_checkpointing_changes_nothing(
    name: str, head: type[Head], implementation: str, share: float, tmp_path: Path
) -> None:
    config = CONFIGS[name]
    shares = dict.fromkeys(DROPOUTS[config["model_type"]], share)
    make_reference(head, tmp_path, config | shares)
    m = head.load(tmp_path, device="cpu", attn_implementation=implementation)
    ids, mask, _ = padded("left")
    given = {"input_ids": ids, "attention_mask": mask, "labels": labels_of(head, ids, mask)}
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    for module in m.modules():
        if isinstance(module, MLP):
            module.register_forward_pre_hook(count)
    m.train()
    plain = loss_and_gradients(m, **given)
    assert runs == 2
    m.gradient_checkpointing_enable()
    saved = loss_and_gradients(m, **given)
    assert runs == 6  # each layer a second time in the backward pass
    close(saved, plain, 1e-6)
    m.gradient_checkpointing_disable()
    close(loss_and_gradients(m, **given), plain, 1e-6)
    assert runs == 8
    m.gradient_checkpointing_enable()
    m.eval()  # as in the reference, in training only
    loss_and_gradients(m, **given)
    assert runs == 10


def test_gradient_checkpointing_gives_what_is_inside(tmp_path: Path) -> None:
    ours, theirs = both(CausalLM, tmp_path, CONFIGS["stablelm"])
    theirs.set_attn_implementation("eager")
    ours.train()
    ours.gradient_checkpointing_enable()
    asked = {"output_hidden_states": True, "output_attentions": True}
    ids = random_ids()
    a, b = ours(ids, labels=ids, **asked), theirs(ids, labels=ids, **asked)
    a.loss.backward()
    close(a.hidden_states, b.hidden_states)
    close(a.attentions, b.attentions)


@pytest.mark.parametrize(
    "config",
    [STARCODER2, STABLELM, LLAMA, GRANITE, GEMMA, GPT_BIGCODE],
    ids=lambda config: config["model_type"],
)
def test_dropouts_that_the_config_does_not_state(config: dict[str, Any], tmp_path: Path) -> None:
    theirs = transformers.AutoConfig.for_model(**config).to_dict()
    m = BareModel.from_config(config, device="cpu")
    expected = dict.fromkeys(("attention", "embedding", "residual", "hidden"), 0.0)
    for place, key in FAMILIES[config["model_type"]].dropouts.items():
        expected[place] = theirs[key]
    assert m.config.dropouts == Dropouts(**expected)
    if config is GPT_BIGCODE:
        assert m.config.dropouts.residual == 0.1
    with pytest.raises(ModelError, match=r"from_config: config.json: .* is 1.5, but must be from"):
        BareModel.from_config(
            config | dict.fromkeys(FAMILIES[config["model_type"]].dropouts.values(), 1.5)
        )


def test_padding_is_trained_where_the_reference_does(tmp_path: Path) -> None:
    ids = padded("right")[0]
    for config in (GPT_BIGCODE | {"attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0}, LLAMA):
        ours, theirs = both(CausalLM, tmp_path, config | {"tie_word_embeddings": False})
        for m in (ours, theirs):
            m.train()(input_ids=ids, labels=ids).loss.backward()
        row = ours.decoder.embed_tokens.weight.grad[PAD]
        close(row, theirs.get_input_embeddings().weight.grad[PAD])
        assert bool(row.any()) == (config["model_type"] == "gpt_bigcode")


# New weights.

WIDE = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 512, "initializer_range": 0.3}


@pytest.mark.parametrize(
    "config",
    [
        STARCODER2 | WIDE,
        STARCODER2 | WIDE | {"tie_word_embeddings": False, "use_bias": False},
        STABLELM | WIDE | {"use_qkv_bias": True, "qk_layernorm": True},
        STABLELM | WIDE | {"use_parallel_residual": True},
        GEMMA | WIDE,
        GPT_BIGCODE | {"n_embd": 64, "n_inner": 128, "vocab_size": 512, "initializer_range": 0.3},
    ],
    ids=["starcoder2", "untied, no bias", "stablelm", "parallel", "gemma", "gpt_bigcode"],
)
@pytest.mark.parametrize("head", [CausalLM, TokenClassifier])
def test_new_weights_are_the_references(
    head: type[Head], config: dict[str, Any], tmp_path: Path
) -> None:
    config = config | {"pad_token_id": PAD, "num_labels": 40}
    torch.manual_seed(0)
    ours = head.from_config(config, device="cpu")
    assert head is CausalLM or {"score.bias", "classifier.bias"} & set(ours.report.missing)
    assert not ours.report.left_over
    assert not ours.training
    ours.save(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    ours_by_name = HEADS[head].from_pretrained(tmp_path).state_dict()
    theirs = HEADS[head].from_config(transformers.AutoConfig.for_model(**config)).state_dict()
    assert ours_by_name.keys() == theirs.keys()
    for name, b in theirs.items():
        a = ours_by_name[name]
        if b.std() > 0:
            assert abs(a.mean()) < 0.05, name
            assert 0.9 < a.std() / b.std() < 1.1, name
        else:
            close(a, b, 0.0)  # norms and biases
    embeddings = ours.decoder.get_parameter("embed_tokens.weight")
    assert bool(embeddings[PAD].any()) == (config["model_type"] == "gpt_bigcode")


def test_a_model_is_trained_from_scratch(tmp_path: Path) -> None:
    write_model(tmp_path / "toy", STARCODER2)
    torch.manual_seed(0)
    m = CausalLM.from_config(tmp_path / "toy", device="cpu").train()
    optimizer = torch.optim.AdamW(m.parameters(), lr=0.01)
    ids = random_ids()
    losses = []
    for _ in range(10):
        loss = m(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    m.eval().save(tmp_path / "trained")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    close(m(ids).logits, theirs(ids).logits)
    close(CausalLM.load(tmp_path / "trained", device="cpu")(ids).logits, m(ids).logits, 1e-6)


def test_configurations_of_new_models_that_are_refused() -> None:
    with pytest.raises(ModelError, match="None is no native"):
        CausalLM.from_config({"hidden_size": 32})
    with pytest.raises(ModelError, match=r"from_config: config.json: .*hidden_size"):
        CausalLM.from_config(STARCODER2 | {"hidden_size": "wide"})
    with pytest.raises(ModelError, match=r"from_config needs .* GB .* are free. Use a smaller"):
        CausalLM.from_config(STARCODER2 | {"vocab_size": 10**11}, device="cpu")
    with pytest.raises(ModelError, match="initializer_range is -1"):
        CausalLM.from_config(STARCODER2 | {"initializer_range": -1.0})
