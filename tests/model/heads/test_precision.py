"""Heads in every precision: on half floats, and on a frozen decoder of few bits (QLoRA, Dettmers et
al. 2023)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.errors import ModelError
from model.heads import CausalLM, SequenceClassifier, TokenClassifier
from model.heads.heads import Head
from model.precision.bitsandbytes_linear import KINDS, BitsLinear
from tests.conftest import STABLELM, STARCODER2, write_model
from tests.model.heads.test_heads import LABELS, random_ids

WIDE = {"hidden_size": 128, "intermediate_size": 256, "pad_token_id": 5}
# How far logits may be from float32's, relative to them.
FAR = {"float16": 0.01, "bfloat16": 0.05, "llm.int8": 0.05, "nf4": 0.35, "nf4-double": 0.35}
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module", params=["starcoder2", "stablelm"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = STARCODER2 if request.param == "starcoder2" else STABLELM
    return write_model(tmp_path_factory.mktemp("wide"), config | WIDE, scale=0.08)


def load(
    head: type[Head], folder: Path, dtype: str = "float32", quantization: str | None = None
) -> Head:
    torch.manual_seed(0)  # for the weights that only the head has
    return head.load(
        folder, device="cpu", dtype=dtype, quantization=quantization, num_labels=LABELS
    )


def distance(found: Tensor, expected: Tensor) -> float:
    expected = expected.detach()
    return float((found.detach().float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("precision", FAR)
def test_outputs_are_close_to_float32s(folder: Path, precision: str) -> None:
    ids = random_ids()
    expected = load(CausalLM, folder)(ids, labels=ids)
    if precision in KINDS:
        head = load(CausalLM, folder, quantization=precision)
    else:
        head = load(CausalLM, folder, precision)
    found = head(ids, labels=ids)
    assert distance(found.logits, expected.logits) < FAR[precision]
    torch.testing.assert_close(
        found.loss.float(), expected.loss, rtol=FAR[precision], atol=FAR[precision]
    )
    assert any(p.requires_grad for p in head.parameters()) != (precision in KINDS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gradients_in_half_floats_are_close_to_float32s(folder: Path, dtype: str) -> None:
    ids = random_ids()
    exact, half = load(CausalLM, folder).train(), load(CausalLM, folder, dtype).train()
    for head in (exact, half):
        head(ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    grads = dict(half.named_parameters())
    for name, parameter in exact.named_parameters():
        assert grads[name].grad is not None and grads[name].grad.dtype == getattr(torch, dtype)
        assert parameter.grad is not None
        assert distance(grads[name].grad, parameter.grad) < 0.1, name


@kinds
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gradients_are_those_of_floats_with_the_rounded_weights(
    folder: Path, kind: str, dtype: str
) -> None:
    head = load(CausalLM, folder, dtype, kind).train()
    found = gradient_at_embeddings(head)
    for name, module in list(head.named_modules()):
        if isinstance(module, BitsLinear):
            head.set_submodule(name, unpacked(module))
    expected = gradient_at_embeddings(head)
    assert found.dtype == getattr(torch, dtype)
    assert distance(found, expected) < (1e-5 if dtype == "float32" else 0.02)


def gradient_at_embeddings(head: Head) -> Tensor:
    """Of the loss, through all layers."""
    embeds = head.decoder.embed_tokens(random_ids()).detach().requires_grad_()
    head(inputs_embeds=embeds, labels=random_ids()).loss.backward()
    assert embeds.grad is not None
    return embeds.grad


@torch.no_grad()
def unpacked(module: BitsLinear) -> nn.Linear:
    """The floats that the bits stand for."""
    linear = nn.Linear(module.in_features, module.out_features, module.bias is not None)
    dtype = module._factory.dtype
    zero = module(torch.zeros(1, module.in_features, dtype=dtype))
    eye = torch.eye(module.in_features, dtype=dtype)
    bias, module.bias = module.bias, None
    linear.weight.copy_(module(eye).T)
    if bias is not None:
        assert torch.equal(zero[0], bias)
        linear.bias.copy_(bias)
    return linear.to(dtype).requires_grad_(False)


@kinds
@pytest.mark.parametrize("head_class", [SequenceClassifier, TokenClassifier])
def test_a_classifiers_own_weights_learn_on_a_frozen_decoder(
    folder: Path, kind: str, head_class: type[Head]
) -> None:
    head = load(head_class, folder, "bfloat16", kind).train()
    trained = {name: p for name, p in head.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith("score.") for name in trained)
    ids = random_ids()
    labels = torch.tensor([0, 1, 2])
    if head_class is TokenClassifier:
        labels = ids % LABELS
    before = {name: p.detach().clone() for name, p in head.named_parameters()}
    optimizer = torch.optim.Adam(trained.values(), lr=0.02)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = head(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    changed = {n for n, p in head.named_parameters() if not torch.equal(p, before[n])}
    assert changed == trained.keys()


@kinds
def test_embeddings_can_be_resized_and_stay_frozen(folder: Path, kind: str) -> None:
    head = load(CausalLM, folder, quantization=kind)
    before = head(random_ids()).logits
    head.resize_embeddings(330)
    torch.testing.assert_close(head(random_ids()).logits[..., :320], before)
    assert not any(p.requires_grad for p in head.parameters())


@kinds
def test_quantized_weights_are_not_saved(folder: Path, kind: str, tmp_path: Path) -> None:
    head = load(SequenceClassifier, folder, quantization=kind)
    with pytest.raises(ModelError, match=rf"{kind} by .* Load the head without a quantization"):
        head.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_int8_of_a_cpu_has_no_gradients_and_names_what_has(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no gradients\. Set the quantization to 'llm\.int8'"):
        load(CausalLM, folder, quantization="int8")


def test_too_large_a_head_names_the_smaller_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("model.heads.loading.free_memory", lambda device: 1_000_000)
    caplog.set_level("INFO")
    with pytest.raises(ModelError, match=r"Set the quantization to 'llm\.int8', use a smaller"):
        load(CausalLM, folder)
    head = load(CausalLM, folder, quantization="auto")
    assert head.decoder.scheme == "llm.int8 by bitsandbytes, float32"
    assert "would not fit" in caplog.text
