"""What a configuration says about memory is what a loaded decoder holds, and less than what the
model card counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from model.cpu.kernels import Plan, Widened
from model.cpu.quantized_linear import Int8Factory
from model.decoder.decoder import Decoder
from model.decoder.factory import Factory
from model.families.registry import FAMILIES
from model.footprint import Footprint, Scheme, footprint, footprints
from model.precision.bitsandbytes_linear import BitsFactory
from model.weights.checkpoint import Checkpoint
from model.weights.folder import find_model
from tests.conftest import STARCODER2, write_model
from tests.model.families.test_families import TOYS
from tests.model.toys import CPU

# The published configuration, and the figures of the model card in MB.
STARCODER2_7B: dict[str, Any] = {
    "model_type": "starcoder2",
    "vocab_size": 49152,
    "hidden_size": 4608,
    "intermediate_size": 18432,
    "num_hidden_layers": 32,
    "num_attention_heads": 36,
    "num_key_value_heads": 4,
    "max_position_embeddings": 16384,
    "sliding_window": 4096,
    "use_bias": True,
}
CARD = {"float32": 29232.57, "bfloat16": 14616.29, "8-bit": 7670.52, "4-bit": 4197.64}
# The same recipe at a size that can be loaded.
TOY_7B = STARCODER2_7B | {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "sliding_window": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
MODELS = TOYS | {
    "StarCoder2-7B's recipe": TOY_7B,
    "untied": STARCODER2 | {"tie_word_embeddings": False, "use_bias": False},
    "norms on heads": TOYS["stablelm"] | {"qk_layernorm": True, "use_parallel_residual": True},
    "odd sizes": STARCODER2 | {"intermediate_size": 63, "vocab_size": 321},
}


def of(raw: dict[str, Any]) -> dict[str, Footprint]:
    family = FAMILIES[raw["model_type"]]
    config = family.decoder_config(raw)
    return footprints(config, family.weight_table(config))


@pytest.mark.parametrize("precision", CARD)
def test_starcoder2_7b_takes_a_little_less_than_its_card_says(precision: str) -> None:
    mine = of(STARCODER2_7B)[precision].total / 1e6
    assert 0.95 * CARD[precision] <= mine <= CARD[precision]


def test_the_cards_figures_follow_the_arithmetic_that_the_module_states() -> None:
    found = of(STARCODER2_7B)
    layers = 32
    frequencies = layers * 64 * 4
    for precision, float_bytes in (("float32", 4), ("bfloat16", 2), ("8-bit", 2), ("4-bit", 2)):
        tables = layers * 2 * 16384 * 128 * float_bytes
        counted = found[precision].matrices + found[precision].others + tables + frequencies
        assert round(counted / 1e6, 2) == CARD[precision]


def factory_of(scheme: Scheme, dtype: torch.dtype, checkpoint: Checkpoint) -> Factory:
    if scheme == "floats":
        return Factory(CPU, dtype)
    if scheme == "int8":
        plan = Plan("widened", "widened", 8)
        return Int8Factory(CPU, torch.float32, plan, checkpoint.config)
    pytest.importorskip("bitsandbytes")
    return BitsFactory(CPU, dtype, scheme)


@pytest.fixture(scope="module", params=MODELS)
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("toy"), MODELS[request.param])


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [
        ("floats", torch.float32),
        ("floats", torch.bfloat16),
        ("llm.int8", torch.bfloat16),
        ("nf4", torch.bfloat16),
        ("nf4-double", torch.bfloat16),
        ("nf4-double", torch.float32),
        ("int8", torch.float32),
    ],
)
def test_a_loaded_decoder_holds_what_its_configuration_says(
    toy: Path, scheme: Scheme, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.cpu.quantized_linear.kernels", lambda: {"widened": Widened()})
    checkpoint = Checkpoint.open(find_model(toy))
    factory = factory_of(scheme, dtype, checkpoint)
    decoder = Decoder(checkpoint.config, factory).eval().requires_grad_(False)
    checkpoint.fill(decoder, factory, lambda share: None)
    _ = decoder.rotations  # made at the first pass
    expected = footprint(checkpoint.config, checkpoint.table, scheme, dtype.itemsize)
    assert held_bytes(decoder) == expected.total


def held_bytes(decoder: Decoder) -> int:
    """The bytes of every tensor that can be reached from the decoder, each storage once."""
    storages = {}
    for tensor in tensors_in(decoder, set()):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    storages.pop(0, None)  # empty ones
    return sum(storages.values())


def tensors_in(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item, seen)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name), seen)
    elif type(value).__module__.startswith(("model.", "torch.nn.", "bitsandbytes.")):
        yield from tensors_in(vars(value), seen)
