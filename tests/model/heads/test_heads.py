"""The heads against transformers' classes of the same heads, in float32 at toy sizes: outputs,
losses and gradients in training mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from model import load_model
from model.families.registry import FAMILIES
from model.heads import BareModel, CausalLM, SequenceClassifier, TokenClassifier
from model.heads.heads import Head
from model.heads.passes import run
from tests.conftest import GPT_BIGCODE, GRANITE, LLAMA, STABLELM, STARCODER2, write_tokenizer
from tests.model.families.test_rope import ORIGINAL, STRETCHED, newer

BATCH, LENGTH, WINDOW, PAD, LABELS = 3, 24, 8, 5, 3
HEADS: dict[type[Head], Any] = {
    BareModel: transformers.AutoModel,
    CausalLM: transformers.AutoModelForCausalLM,
    SequenceClassifier: transformers.AutoModelForSequenceClassification,
    TokenClassifier: transformers.AutoModelForTokenClassification,
}
NO_DROPOUT = {"classifier_dropout": 0.0}
CONFIGS: dict[str, dict[str, Any]] = {
    "starcoder2": STARCODER2 | NO_DROPOUT,
    "starcoder2, window, untied": STARCODER2
    | NO_DROPOUT
    | {"sliding_window": WINDOW, "tie_word_embeddings": False},
    "stablelm": STABLELM,
    "stablelm, parallel, all switches": STABLELM
    | {"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True},
    "llama": LLAMA | NO_DROPOUT,
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
heads = pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)


def make_reference(head: type[Head], folder: Path, config: dict[str, Any], **changes: Any) -> Any:
    """A model of transformers' with random weights, written to the folder."""
    torch.manual_seed(0)
    whole = transformers.AutoConfig.for_model(
        **(config | {"pad_token_id": PAD, "num_labels": LABELS} | changes)
    )
    reference = HEADS[head].from_config(whole)
    with torch.no_grad():  # larger than at initialization: near-uniform logits would hide mistakes
        for name, parameter in reference.named_parameters():
            gain = "norm" in name and name.endswith("weight")
            parameter.normal_(1.0 if gain else 0.0, 0.2)
    reference.save_pretrained(folder)
    write_tokenizer(folder)
    return reference.eval()


def both(
    head: type[Head], folder: Path, config: dict[str, Any], **changes: Any
) -> tuple[Head, Any]:
    """Ours, loaded from what theirs wrote, and theirs."""
    theirs = make_reference(head, folder, config, **changes)
    ours = head.load(folder, device="cpu")
    assert not ours.report.missing
    assert not ours.report.left_over
    return ours, theirs


def random_ids(batch: int = BATCH, length: int = LENGTH) -> Tensor:
    return torch.randint(10, 320, (batch, length), generator=torch.Generator().manual_seed(1))


def padded(side: str) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and positions of texts of different lengths, padded at one side."""
    ids = random_ids()
    mask = torch.ones_like(ids)
    for row in range(1, BATCH):
        where = slice(LENGTH - 4 * row, None) if side == "right" else slice(0, 4 * row)
        mask[row, where] = 0
    ids[mask == 0] = PAD
    return ids, mask, (mask.cumsum(-1) - 1).clamp(min=0)


def close(ours: Any, theirs: Any, bound: float = 1e-4) -> None:
    if isinstance(theirs, tuple):
        assert len(ours) == len(theirs)
        for o, t in zip(ours, theirs, strict=True):
            close(o, t, bound)
    else:
        torch.testing.assert_close(ours, theirs, atol=bound, rtol=bound)


def labels_of(head: type[Head], ids: Tensor, mask: Tensor) -> Tensor:
    """Labels for the head's loss, of which some do not count."""
    if head is SequenceClassifier:
        return torch.arange(BATCH) % LABELS
    labels = (ids if head is CausalLM else ids % LABELS).masked_fill(mask == 0, -100)
    labels[:, 3:5] = -100
    return labels


def gradients(ours: Head, theirs: Any) -> list[tuple[str, Tensor, Tensor]]:
    """Each weight's gradients, ours in the reference's shape: the names are the checkpoint's."""
    found = []
    prefix = "" if isinstance(ours, BareModel) else "model."
    table = FAMILIES[ours.files.model_type].weight_table(ours.decoder.config)
    reference = dict(theirs.named_parameters())
    for name, slot in table.items():
        whole = ours.decoder.get_parameter(slot.parameter).grad
        assert whole is not None
        rows = 1 if whole.dim() > len(slot.shape) else slot.shape[0]
        part = whole[slot.first_row : slot.first_row + rows].reshape(slot.shape)
        theirs_name = prefix + name.removeprefix("model.") if name.startswith("model.") else name
        found.append((name, part, reference.pop(theirs_name).grad))
    for name, parameter in ours.named_parameters():
        if name.startswith("score."):
            found.append((name, parameter.grad, reference.pop(name).grad))
    assert not reference  # every weight was compared
    return found


@configs
@heads
@pytest.mark.parametrize("side", ["left", "right"])
def test_outputs_losses_and_gradients_are_the_references(
    head: type[Head], config: dict[str, Any], side: str, tmp_path: Path
) -> None:
    ours, theirs = both(head, tmp_path, config)
    ids, mask, positions = padded(side)
    given: dict[str, Any] = {"attention_mask": mask, "position_ids": positions}
    ours.train()
    theirs.train()
    if head is BareModel:
        a, b = ours(ids, **given), theirs(ids, **given)
        close(a.last_hidden_state[mask == 1], b.last_hidden_state[mask == 1])
        weights = torch.randn(a.last_hidden_state.shape) * mask[..., None]
        losses = [(x.last_hidden_state * weights).mean() for x in (a, b)]
    else:
        given["labels"] = labels_of(head, ids, mask)
        a, b = ours(ids, **given), theirs(ids, **given)
        rows = slice(None) if head is SequenceClassifier else mask == 1
        close(a.logits[rows], b.logits[rows])
        losses = [a.loss, b.loss]
    close(losses[0], losses[1], 1e-5)
    for loss in losses:
        loss.backward()
    for _, o, t in gradients(ours, theirs):
        close(o, t)


@configs
def test_masks_positions_and_what_is_inside(config: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = both(BareModel, tmp_path, config)
    theirs.set_attn_implementation("eager")
    ids, mask, _ = padded("right")
    asked = {"output_hidden_states": True, "output_attentions": True}
    a, b = ours(ids, attention_mask=mask, **asked), theirs(ids, attention_mask=mask, **asked)
    rows = mask == 1  # padding beyond the window sees nothing, of which eager and SDPA differ there
    for o, t in zip(a.hidden_states, b.hidden_states, strict=True):
        close(o[rows], t[rows])
    for o, t in zip(a.attentions, b.attentions, strict=True):
        close(o.transpose(1, 2)[rows], t.transpose(1, 2)[rows])
    assert len(a.hidden_states) == len(a.attentions) + 1 == 3
    for side in ("left", "right"):  # SDPA is eager, everywhere
        ids, mask, _ = padded(side)
        eager = ours(ids, attention_mask=mask, output_attentions=True)
        close(ours(ids, attention_mask=mask).last_hidden_state, eager.last_hidden_state)


@pytest.mark.parametrize(
    "config", [*CONFIGS.values(), GRANITE | NO_DROPOUT], ids=[*CONFIGS, "granite"]
)
def test_embeddings_in_place_of_ids(config: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = both(CausalLM, tmp_path, config)
    ids = random_ids()
    embeds = theirs.get_input_embeddings()(ids)
    close(ours(inputs_embeds=embeds).logits, theirs(inputs_embeds=embeds).logits)
    close(ours(inputs_embeds=ours.decoder.embed_tokens(ids)).logits, ours(ids).logits, 1e-6)


def test_a_packed_batch_keeps_its_texts_apart(tmp_path: Path) -> None:
    ours, theirs = both(CausalLM, tmp_path, CONFIGS["starcoder2, window, untied"])
    ids = random_ids(1)
    positions = torch.cat((torch.arange(10), torch.arange(LENGTH - 10)))[None]
    packed = ours(ids, position_ids=positions).logits
    # It makes a cache otherwise, and takes the positions for those of one text then.
    close(packed, theirs(ids, position_ids=positions, use_cache=False).logits)
    close(packed[:, 10:], ours(ids[:, 10:]).logits)


@pytest.mark.parametrize("length", [ORIGINAL - 1, ORIGINAL + 1, STRETCHED])
@pytest.mark.parametrize("name", ["linear", "dynamic", "yarn, all fields", "longrope", "llama3"])
@pytest.mark.parametrize("config", [STARCODER2, STABLELM], ids=["starcoder2", "stablelm"])
def test_rope_types_on_both_sides_of_the_original_length(
    config: dict[str, Any], name: str, length: int, tmp_path: Path
) -> None:
    ours, theirs = both(BareModel, tmp_path, config | newer(name, 1.0))
    ids = random_ids(length=length)
    close(ours(ids).last_hidden_state, theirs(ids).last_hidden_state)
    positions = torch.arange(length)[None] + 3
    given = {"position_ids": positions, "attention_mask": torch.ones_like(ids)}
    close(ours(ids, **given).last_hidden_state, theirs(ids, **given).last_hidden_state)


@pytest.mark.parametrize("keep", [1, 5, torch.tensor([0, 7, -1])], ids=str)
def test_logits_to_keep(keep: int | Tensor, tmp_path: Path) -> None:
    ours, theirs = both(CausalLM, tmp_path, CONFIGS["stablelm"])
    ids = random_ids()
    close(ours(ids, logits_to_keep=keep).logits, theirs(ids, logits_to_keep=keep).logits)


def test_the_causal_head_is_the_decoder_that_generates(tmp_path: Path) -> None:
    ours, _ = both(CausalLM, tmp_path, CONFIGS["starcoder2, window, untied"])
    ids = random_ids(1)
    close(ours(ids).logits, ours.decoder(ids).logits, 1e-6)


def test_an_int8_decoder_runs_with_masks_too(tmp_path: Path) -> None:
    make_reference(CausalLM, tmp_path, STABLELM)
    decoder = load_model(tmp_path, device="cpu", quantization="int8").decoder
    ids = random_ids(1)
    with torch.inference_mode():
        alone = decoder(ids).logits
        left = torch.cat((torch.full((1, 4), PAD), ids), dim=1)
        mask = torch.ones_like(left)
        mask[:, :4] = 0
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        states = run(decoder, left, attention_mask=mask, position_ids=positions)
        close(decoder.logits_of(states.last_hidden_state[:, 4:]), alone)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@heads
def test_half_precision_is_near(head: type[Head], dtype: str, tmp_path: Path) -> None:
    ours, _ = both(head, tmp_path, CONFIGS["starcoder2, window, untied"])
    half = head.load(tmp_path, device="cpu", dtype=dtype)
    ids, mask, _ = padded("left")
    given = {"attention_mask": mask, "output_attentions": True, "output_hidden_states": True}
    a, b = half(ids, **given), ours(ids, **given)
    for field in ("hidden_states", "attentions"):
        for x, y in zip(getattr(a, field), getattr(b, field), strict=True):
            assert x.dtype == getattr(torch, dtype)
            assert (x.float() - y).abs().mean() < 0.02
    if head is not BareModel:
        labels = labels_of(head, ids, mask)
        loss = half(ids, attention_mask=mask, labels=labels).loss
        close(loss.float(), ours(ids, attention_mask=mask, labels=labels).loss, 0.03)
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in half.parameters())


@pytest.mark.parametrize("items", [None, 7, torch.tensor(7)], ids=repr)
@pytest.mark.parametrize("shifted", [False, True], ids=["labels", "shift_labels"])
def test_losses_of_gradient_accumulation(items: Any, shifted: bool, tmp_path: Path) -> None:
    ours, theirs = both(CausalLM, tmp_path, CONFIGS["stablelm"])
    ids, mask, _ = padded("right")
    labels = labels_of(CausalLM, ids, mask)
    given: dict[str, Any] = {"labels": labels, "num_items_in_batch": items}
    if shifted:
        given["shift_labels"] = labels.roll(3, dims=1)
    expected = theirs(ids, **given).loss
    close(ours(ids, **given).loss, expected, 1e-5)
    if shifted:
        del given["labels"]
        close(ours(ids, **given).loss, expected, 1e-5)


# Sequences.


@pytest.mark.parametrize(
    ("problem", "count", "labels"),
    [
        (None, 1, torch.tensor([0.3, -1.0, 2.0])),
        (None, LABELS, torch.tensor([2, 0, 1])),
        (None, LABELS, torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 1]])),
        ("regression", LABELS, torch.randn(BATCH, LABELS)),
        ("regression", 1, torch.randn(BATCH, 1)),
        ("single_label_classification", LABELS, torch.tensor([[2], [-100], [1]])),
        ("multi_label_classification", LABELS, torch.ones(BATCH, LABELS)),
    ],
)
def test_losses_of_sequences(
    problem: str | None, count: int, labels: Tensor, tmp_path: Path
) -> None:
    ours, theirs = both(
        SequenceClassifier,
        tmp_path,
        CONFIGS["stablelm"],
        num_labels=count,
        problem_type=problem,
    )
    ids, mask, _ = padded("right")
    a = ours(ids, attention_mask=mask, labels=labels)
    b = theirs(ids, attention_mask=mask, labels=labels)
    close(a.logits, b.logits)
    close(a.loss, b.loss, 1e-5)


def test_without_a_padding_id_the_last_token_is_read(tmp_path: Path) -> None:
    ours, theirs = both(SequenceClassifier, tmp_path, CONFIGS["starcoder2"], pad_token_id=None)
    ids = random_ids(1)
    ids[0, -1] = PAD
    close(ours(ids).logits, theirs(ids).logits)
    with pytest.raises(ValueError, match="pad_token_id"):
        ours(random_ids())


# Dropouts.


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        (STARCODER2, ("attention_dropout", "embedding_dropout", "residual_dropout")),
        (STABLELM, ("attention_dropout", "hidden_dropout")),
        (STABLELM | {"use_parallel_residual": True}, ("attention_dropout", "hidden_dropout")),
        (GPT_BIGCODE, ("attn_pdrop", "embd_pdrop", "resid_pdrop")),
        (STARCODER2, ()),  # the token classifier's own
    ],
    ids=["starcoder2", "stablelm", "stablelm, parallel", "gpt_bigcode", "head"],
)
def test_in_training_the_same_seed_drops_the_same(
    config: dict[str, Any], keys: tuple[str, ...], tmp_path: Path
) -> None:
    ours, theirs = both(TokenClassifier, tmp_path, config | dict.fromkeys(keys, 0.3))
    theirs.set_attn_implementation("eager")
    results = []
    ids = random_ids()
    for model in (ours, theirs):
        model.train()
        torch.manual_seed(7)
        out = model(ids, output_attentions=True)
        results.append((out.logits, *out.attentions))
    close(*results)
    ours.eval()
    assert (ours(ids).logits - results[0][0]).abs().max() > 0.01
