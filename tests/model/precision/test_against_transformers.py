"""Our decoders of few bits beside transformers' with the same library, on the same checkpoint on
the CPU: the bits are the same, so logits and gradients are, too.

Two things differ. Transformers rounds the scales of NF4 once more for a kernel of its own when it
does not train. And double quantization rounds scales around the mean of a matrix, of which our
fused one has one where transformers has three. `pytest -s` shows the distances that RESULTS.md
states.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from model import load_model
from model.heads import CausalLM
from model.precision.bitsandbytes_linear import KINDS, library
from tests.conftest import STABLELM, STARCODER2, write_model
from tests.model.families.test_parity import random_ids

# Blocks of NF4 end where rows end, so that fusing queries, keys and values moves none.
WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
CONFIGS = {
    "starcoder2": STARCODER2,
    "starcoder2, untied": STARCODER2 | {"tie_word_embeddings": False, "use_bias": False},
    "stablelm": STABLELM | {"use_qkv_bias": True},
}
IDS = torch.tensor([random_ids(48)])
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = CONFIGS[request.param] | WIDE
    return write_model(tmp_path_factory.mktemp(request.param[:8]), config, scale=0.06)


def load_theirs(folder: Path, kind: str | None, dtype: torch.dtype) -> Any:
    library()  # quiet
    settings = None
    if kind == "llm.int8":
        settings = transformers.BitsAndBytesConfig(load_in_8bit=True)
    elif kind is not None:
        settings = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=kind == "nf4-double",
            bnb_4bit_compute_dtype=dtype,
        )
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=settings, dtype=dtype, device_map="cpu"
    )


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@kinds
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.inference_mode()
def test_logits_are_theirs_and_as_near_to_the_floats(folder: Path, kind: str, dtype: str) -> None:
    exact = getattr(torch, dtype)
    floats = load_theirs(folder, None, exact)(IDS).logits.float()
    ours = load_model(folder, "cpu", dtype, kind).decoder(IDS).logits.float()
    model = load_theirs(folder, kind, exact)
    trained = model.train()(IDS).logits.float()
    theirs = model.eval()(IDS).logits.float()
    same = theirs if kind == "llm.int8" else trained  # here LLM.int8() trains on exact inputs
    assert distance(ours, same) < (0.03 if kind == "nf4-double" else 1e-5)
    far, their_far = distance(ours, floats), distance(theirs, floats)
    print(f"\n{folder.name} {kind} {dtype}: ours {far:.4f}, transformers' {their_far:.4f}")
    assert far < 1.02 * their_far
    assert far < (0.04 if kind == "llm.int8" else 0.35)


@kinds
def test_losses_and_gradients_are_theirs(folder: Path, kind: str) -> None:
    ours = CausalLM.load(folder, device="cpu", quantization=kind).train()
    theirs = load_theirs(folder, kind, torch.float32).train()
    found = []
    for model, embed in ((ours, ours.decoder.embed_tokens), (theirs, theirs.model.embed_tokens)):
        embeds = embed(IDS).detach().requires_grad_()
        loss = model(inputs_embeds=embeds, labels=IDS).loss
        loss.backward()
        found.append((loss.detach(), embeds.grad))
    for mine, other in zip(*found, strict=True):
        assert distance(mine, other) < (0.03 if kind == "nf4-double" else 1e-5)
