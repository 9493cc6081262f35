"""The network that is trained computes what the decoder that ships computes, and keeps documents
apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model import load_model
from training.checkpoint import save
from training.data import IGNORED
from training.export import main as export
from training.network import Network, Shape, attend, document_mask

SHAPE = Shape(320, 32, 64, 2, 4, 2, 64)


def network() -> Network:
    torch.manual_seed(0)
    made = Network(SHAPE)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn_like(p) * 0.05)  # biases and norms, too
    return made


def losses(made: Network, ids: torch.Tensor, documents: torch.Tensor | None = None) -> torch.Tensor:
    """The loss of each single position, the others being ignored."""
    mask = None if documents is None else document_mask(documents)
    found = []
    for at in range(ids.shape[1] - 1):
        labels = torch.full_like(ids, IGNORED)
        labels[:, at] = ids[:, at + 1]
        found.append(made(ids, labels, mask))
    return torch.stack(found)


def test_parameters_are_counted_right() -> None:
    matrices = sum(p.numel() for p in network().parameters() if p.dim() == 2)
    assert matrices == SHAPE.parameters


@torch.no_grad()
def test_the_decoder_runs_what_was_trained(data: Path, tmp_path: Path) -> None:
    trained = network()
    state = {
        "model": trained.state_dict(),
        "shape": vars(SHAPE),
        "step": 1,
        "tokens": 1,
        "bits": 1.0,
    }
    save(data, state)  # where the tokenizer is
    export(data, tmp_path / "model", quantized=False)
    decoder = load_model(tmp_path / "model", device="cpu", dtype="float32").decoder
    ids = torch.randint(0, 320, (1, 40))
    expected = F.cross_entropy(decoder(ids).logits[0, :-1], ids[0, 1:], reduction="none")
    torch.testing.assert_close(losses(trained, ids), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_document_does_not_see_the_one_packed_before_it() -> None:
    trained = network()
    first, second = torch.randint(0, 320, (1, 20)), torch.randint(0, 320, (1, 30))
    ids = torch.cat((first, second), dim=1)
    documents = torch.tensor([[1] * 20 + [2] * 30])
    packed, alone = losses(trained, ids, documents), losses(trained, second)
    # rotary positions are relative: the second document computes the same from position 20 on
    torch.testing.assert_close(packed[20:], alone, atol=1e-4, rtol=1e-4)
    assert (
        losses(trained, ids)[20:] - alone
    ).abs().max() > 1e-3  # without the mask it sees the first


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_the_mask_for_cuda_is_the_same_mask() -> None:
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    documents = torch.tensor([[1] * 50 + [2] * 70 + [0] * 8, [1] * 128])
    q, k, v = torch.randn(2, 4, 128, 16), torch.randn(2, 2, 128, 16), torch.randn(2, 2, 128, 16)
    block_mask = flex.create_block_mask(
        lambda row, _, a, b: (a >= b) & (documents[row, a] == documents[row, b]),
        2,
        None,
        128,
        128,
        device="cpu",
    )
    torch.testing.assert_close(
        attend(q, k, v, block_mask), attend(q, k, v, document_mask(documents))
    )


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": 30}, {"num_key_value_heads": 3}, {"num_hidden_layers": 0}],
    ids=lambda c: next(iter(c)),
)
def test_a_shape_that_cannot_be_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(SystemExit, match=r"\[model\]"):
        Shape(**{**vars(SHAPE), **change})
