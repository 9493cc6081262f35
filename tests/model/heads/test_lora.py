"""LoRA: without effect at first, merged as unmerged, and exchanged with peft on transformers'
model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.errors import ModelError
from model.heads import BareModel, CausalLM, SequenceClassifier
from model.heads.heads import Head
from model.heads.lora import CONFIG, WEIGHTS, add_lora, load_lora, merge_lora, save_lora
from model.precision.bitsandbytes_linear import KINDS
from tests.conftest import GPT_BIGCODE, STABLELM, write_model
from tests.model.heads.test_heads import (
    BATCH,
    CONFIGS,
    HEADS,
    both,
    close,
    heads,
    labels_of,
    padded,
    random_ids,
)

# peft asks transformers' models by a name that they call deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
NO_DROPOUTS = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
configs = pytest.mark.parametrize(
    "config",
    [
        CONFIGS["starcoder2"],
        CONFIGS["starcoder2, window, untied"],
        CONFIGS["stablelm, parallel, all switches"],
        GPT_BIGCODE | NO_DROPOUTS,
    ],
    ids=["starcoder2", "untied", "stablelm", "gpt_bigcode"],
)


def first(m: Any, ids: Tensor) -> Tensor:
    """The last hidden state, or the logits."""
    out = m(ids)
    found: Tensor = out.logits if hasattr(out, "logits") else out.last_hidden_state
    return found.detach()


def train(m: Head, steps: int = 3) -> None:
    """A few large steps."""
    torch.manual_seed(1)
    m.train()
    optimizer = torch.optim.Adam([p for p in m.parameters() if p.requires_grad], lr=0.03)
    ids, mask, _ = padded("right")
    for _ in range(steps):
        out = m(ids, attention_mask=mask)
        weights = torch.linspace(-1, 1, BATCH)[:, None]
        scores = out.last_hidden_state[:, 3] if isinstance(m, BareModel) else out.logits
        (scores.reshape(BATCH, -1) * weights).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    m.eval()


@configs
@heads
def test_an_adapter_is_without_effect_then_trained_then_merged(
    head: type[Head], config: dict[str, Any], tmp_path: Path
) -> None:
    ours, _ = both(head, tmp_path / "base", config)
    ids = random_ids()
    base = first(ours, ids)
    before = {name: weight.detach().clone() for name, weight in ours.named_parameters()}
    assert add_lora(ours, 4, 8, 0.1) is ours
    close(first(ours, ids), base, 0.0)
    trained = {name for name, p in ours.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name.startswith("score.") for name in trained)
    layers = ours.decoder.config.num_layers
    assert len(trained) == layers * 4 * 2 + len(ours.own_weights)
    train(ours)
    for name, weight in ours.named_parameters():
        assert ("lora_" in name or name.startswith("score.")) or weight.grad is None
        untouched = before.get(name.replace(".base_layer", ""))
        assert name in trained or torch.equal(weight, untouched)
    after = first(ours, ids)
    assert (after - base).abs().max() > 0.01
    assert merge_lora(ours) is ours
    close(first(ours, ids), after, 1e-5)
    assert [name for name, _ in ours.named_parameters()] == list(before)
    assert all(p.requires_grad for p in ours.parameters())
    ours.save(tmp_path / "merged")
    theirs, told = HEADS[head].from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(told.values())
    close(first(theirs, ids), after)
    close(first(head.load(tmp_path / "merged", device="cpu"), ids), after, 1e-5)


@configs
@heads
def test_an_adapter_is_saved_and_loaded_here_and_by_peft(
    head: type[Head], config: dict[str, Any], tmp_path: Path
) -> None:
    ours, theirs = both(head, tmp_path / "base", config)
    untied = head is CausalLM and not ours.decoder.config.tie_embeddings
    add_lora(ours, 4, 8, lm_head=untied)
    train(ours)
    ids = random_ids()
    expected = first(ours, ids)
    save_lora(ours, tmp_path / "adapter")
    again = load_lora(head.load(tmp_path / "base", device="cpu"), tmp_path / "adapter")
    close(first(again, ids), expected, 1e-6)
    ranks = {len(p) for name, p in again.named_parameters() if "lora_A" in name}
    assert ranks == {4}
    close(first(peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter"), ids), expected)


@configs
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]], ids=str)
@pytest.mark.parametrize("head", [BareModel, CausalLM])
def test_an_adapter_of_peft_on_transformers_model_is_loaded(
    head: type[Head], targets: str | list[str], config: dict[str, Any], tmp_path: Path
) -> None:
    ours, theirs = both(head, tmp_path / "base", config)
    if config["model_type"] == "gpt_bigcode" and targets != "all-linear":
        targets = ["c_attn"]
    settings = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    if head is BareModel:
        settings.task_type = None
    adapted = peft.get_peft_model(theirs, settings).eval()
    adapted.save_pretrained(tmp_path / "theirs")
    ids = random_ids()
    expected = first(adapted, ids)
    assert (first(ours, ids) - expected).abs().max() > 0.01
    load_lora(ours, tmp_path / "theirs")
    close(first(ours, ids), expected)
    train(ours, 1)
    expected = first(ours, ids)
    save_lora(ours, tmp_path / "ours")
    _, theirs = both(head, tmp_path / "base", config)
    close(first(peft.PeftModel.from_pretrained(theirs, tmp_path / "ours"), ids), expected)
    close(first(merge_lora(ours), ids), expected, 1e-5)


@pytest.mark.parametrize("name", ["starcoder2", "stablelm"])
def test_gradient_checkpointing_with_an_adapter(name: str, tmp_path: Path) -> None:
    ours, _ = both(CausalLM, tmp_path, CONFIGS[name] | {"attention_dropout": 0.2})
    add_lora(ours, 4, dropout=0.3).train()
    ids, mask, _ = padded("left")
    for name, p in ours.named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.2)
    given = {"input_ids": ids, "attention_mask": mask, "labels": labels_of(CausalLM, ids, mask)}
    plain = adapter_gradients(ours, **given)
    ours.gradient_checkpointing_enable()
    close(adapter_gradients(ours, **given), plain, 1e-6)


def adapter_gradients(m: Head, **given: Any) -> tuple[Tensor, ...]:
    for p in m.parameters():
        p.grad = None
    torch.manual_seed(3)
    m(**given).loss.backward()
    found = tuple(p.grad for p in m.parameters() if p.grad is not None)
    assert len(found) == 2 * 4 * 2
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_on_quantized_weights(kind: str, tmp_path: Path) -> None:
    """QLoRA (Dettmers et al. 2023): trained there, merged into the floats."""
    wide = STABLELM | {"hidden_size": 128, "intermediate_size": 256}
    write_model(tmp_path / "base", wide, scale=0.08)
    m = CausalLM.load(tmp_path / "base", device="cpu", quantization=kind)
    ids = random_ids()
    base = first(m, ids)
    close(first(add_lora(m, 4), ids), base, 0.0)
    m.gradient_checkpointing_enable()
    train(m, 2)
    trained = first(m, ids)
    assert (trained - base).abs().max() > 0.1
    with pytest.raises(ModelError, match=r"into quantized weights.* load the head in floats"):
        merge_lora(m)
    save_lora(m, tmp_path / "adapter")
    floats = CausalLM.load(tmp_path / "base", device="cpu")
    base_of_floats = first(floats, ids)
    adapted = first(load_lora(floats, tmp_path / "adapter"), ids)
    close(first(merge_lora(floats), ids), adapted, 1e-5)
    # What the adapter adds is the same but for what the rounding of the weights makes of it.
    a, b = trained - base, adapted - base_of_floats
    assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.9


# What is refused.


def test_what_comes_in_the_wrong_order_is_refused(tmp_path: Path) -> None:
    ours, _ = both(CausalLM, tmp_path / "base", CONFIGS["starcoder2"])
    for call in (merge_lora, lambda m: save_lora(m, tmp_path / "none")):
        with pytest.raises(ValueError, match="no LoRA weights: add_lora"):
            call(ours)
    with pytest.raises(ValueError, match="lm_head is tied to the embeddings"):
        add_lora(ours, lm_head=True)
    with pytest.raises(ValueError, match="positive"):
        add_lora(ours, 0)
    add_lora(ours)
    with pytest.raises(ValueError, match="already: merge_lora"):
        add_lora(ours)
    with pytest.raises(ModelError, match="comes before save"):
        ours.save(tmp_path / "ours")
    with pytest.raises(ValueError, match="comes first"):
        ours.resize_embeddings(400)
    merge_lora(ours)
    add_lora(ours, 2)  # a second one, after the first is in the weights
    assert ours.adapted


def test_without_peft_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = both(CausalLM, tmp_path, CONFIGS["starcoder2"])
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"pip install 'fimls\[lora\]'"):
        add_lora(ours)
    assert not ours.adapted


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c, w: c.update(use_dora=True), [CONFIG, "use_dora", "Merge"]),
        (lambda c, w: c.update(peft_type="IA3"), [CONFIG, "no LoRA"]),
        (lambda c, w: c.pop("r"), [CONFIG, "lacks r"]),
        (lambda c, w: w.pop(f"{Q}.lora_B.weight"), [WEIGHTS, "q_proj", "lora_B", "(32, 32)"]),
        (lambda c, w: w.update({f"{Q}.lora_A.weight": torch.ones(4, 31)}), ["q_proj", "(32, 32)"]),
        (lambda c, w: w[f"{Q}.lora_A.weight"].fill_(float("inf")), ["q_proj", "not finite"]),
        (lambda c, w: w.update({"base_model.model.x": torch.ones(1)}), [": x has no place"]),
        (lambda c, w: w.update({"base_model.model.score.weight": torch.ones(9, 32)}), ["score.w"]),
        (lambda c, w: w.clear() or w.update(z=torch.ones(1)), ["z has no place"]),
    ],
)
def test_bad_adapters_are_refused(
    change: Callable[[dict[str, Any], dict[str, Tensor]], Any], words: list[str], tmp_path: Path
) -> None:
    ours, _ = both(SequenceClassifier, tmp_path / "base", CONFIGS["starcoder2"])
    save_lora(add_lora(ours, 4), tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    weights = load_file(tmp_path / WEIGHTS)
    change(config, weights)
    (tmp_path / CONFIG).write_text(json.dumps(config))
    save_file(weights, tmp_path / WEIGHTS)
    other = SequenceClassifier.load(tmp_path / "base", device="cpu")
    before = first(other, random_ids())
    with pytest.raises(ModelError) as caught:
        load_lora(other, tmp_path)
    assert all(word in str(caught.value) for word in (str(tmp_path), *words)), str(caught.value)
    assert not other.adapted
    close(first(other, random_ids()), before, 0.0)
    (tmp_path / WEIGHTS).write_bytes(b"x")
    with pytest.raises(ModelError, match=r"cannot be read|use_dora|no LoRA|lacks r"):
        load_lora(other, tmp_path)
