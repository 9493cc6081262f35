"""Every rope type in both spellings against transformers, within the original context and beyond
it, and with a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model import LoadedModel, load_model
from model.cpu.blocks.decoder_step import BlockStep
from model.cpu.blocks.kernel import PRODUCT
from model.errors import ModelError
from model.weights.folder import find_model
from tests.conftest import STABLELM, STARCODER2, write_model
from tests.model.cpu.test_quantized_linear import distance
from tests.model.families.test_parity import WINDOW, both, logits_of, random_ids
from tests.model.toys import load
from tests.model.weights.test_refused_folders import configure

ORIGINAL, STRETCHED = 40, 80
LENGTHS = (1, WINDOW, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, 60, STRETCHED)
PAIRS = 4  # rotated pairs of a head
LONG = {"original_max_position_embeddings": ORIGINAL}
DIVISORS = {"short_factor": [1.0, 1.1, 1.3, 1.5], "long_factor": [1.0, 2.5, 4.0, 8.0]}
YARN = {"beta_fast": 2.0, "beta_slow": 0.2}
BANDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "dynamic, not whole": {"factor": 2.51},
    "yarn": {"factor": 2.0, **LONG},
    "yarn, all fields": {"factor": 2.0, **LONG, **YARN, "attention_factor": 1.3},
    "yarn, mscale": {"factor": 2.0, **LONG, **YARN, "mscale": 0.7, "mscale_all_dim": 0.3},
    "yarn, half an mscale": {"factor": 2.0, **LONG, "mscale": 0.7},
    "yarn, no whole pairs": {"factor": 2.0, **LONG, **YARN, "truncate": False},
    "longrope": DIVISORS | LONG,
    "yarn, factor by the contexts": LONG | {"factor": None},
    "longrope, factor": DIVISORS | LONG | {"factor": 4.0},
    "longrope, attention_factor": DIVISORS | LONG | {"factor": 4.0, "attention_factor": 0.9},
    "longrope that is never long": DIVISORS,
    "llama3": {"factor": 8.0, **BANDS, **LONG},
}
VARYING = [name for name in ROPES if name.startswith(("dynamic", "longrope"))]


def newer(name: str, partial: float) -> dict[str, Any]:
    """The configuration's keys in the newer spelling."""
    kind = name.split(",")[0].split(" ")[0]
    fields = {"rope_type": kind, "rope_theta": 500.0, "partial_rotary_factor": partial}
    return {"rope_parameters": fields | ROPES[name]} | positions(kind)


def older(name: str, partial: float) -> dict[str, Any]:
    kind = name.split(",")[0].split(" ")[0]
    keys = {"rope_theta": 500.0, "partial_rotary_factor": partial, "rope_parameters": None}
    scaling = None if kind == "default" else {"type": kind} | ROPES[name]
    return keys | {"rope_scaling": scaling} | positions(kind)


def positions(kind: str) -> dict[str, Any]:
    """The kind dynamic goes on behind max_position_embeddings."""
    return {"max_position_embeddings": ORIGINAL if kind == "dynamic" else STRETCHED}


FAMILIES = {
    "starcoder2": (STARCODER2 | {"sliding_window": WINDOW}, 1.0),
    "stablelm": (STABLELM | {"hidden_size": 64}, 0.5),
}
CASES = [
    pytest.param(plain | spelled(name, partial), id=f"{family} {name} {spelled.__name__}")
    for family, (plain, partial) in FAMILIES.items()
    for name in ROPES
    for spelled in (newer, older)
]
VARYING_CASES = [
    pytest.param(plain | newer(name, partial), id=f"{family} {name}")
    for family, (plain, partial) in FAMILIES.items()
    for name in VARYING
]


@pytest.mark.parametrize("config", CASES)
def test_a_pass_of_any_length_is_that_of_transformers(
    config: dict[str, Any], tmp_path: Path
) -> None:
    m, reference = both(config, tmp_path)
    for length in LENGTHS:  # growing: transformers keeps dynamic's frequencies of a longer pass
        ids = random_ids(length)
        with torch.inference_mode():
            expected = reference(torch.tensor([ids]), use_cache=False).logits[0]
        torch.testing.assert_close(logits_of(m, ids), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", VARYING_CASES)
def test_a_cache_is_rotated_for_the_longest_sequence(
    config: dict[str, Any], tmp_path: Path
) -> None:
    """In any chunks, and trimmed: as one pass of that length, whose first positions do not see how
    long it is."""
    m = load(write_model(tmp_path, config))
    ids = random_ids(m.decoder.config.max_positions)
    expected = logits_of(m, ids)
    with torch.inference_mode():
        for chunk in (1, 7, ORIGINAL, ORIGINAL + 1, len(ids)):
            cache = m.decoder.new_cache()
            pieces = torch.tensor([ids]).split(chunk, dim=1)
            ours = torch.cat([m.decoder(piece, cache=cache).logits[0] for piece in pieces])
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
            cache.trim(ORIGINAL - 3)
            again = m.decoder(torch.tensor([ids[ORIGINAL - 3 : 60]]), cache=cache).logits[0]
            torch.testing.assert_close(again, expected[ORIGINAL - 3 : 60], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", VARYING)
def test_short_and_long_sequences_are_rotated_differently(name: str, tmp_path: Path) -> None:
    """What the other tests compare would be the same if the length had no effect."""
    m = load(write_model(tmp_path, STARCODER2 | newer(name, 1.0)))
    ids = random_ids(60)
    short = logits_of(m, ids[:ORIGINAL])
    differs = not torch.allclose(short, logits_of(m, ids)[:ORIGINAL], atol=1e-3)
    assert differs == (name != "longrope that is never long")


def rows_after_a_cache(m: LoadedModel, ids: list[int], start: int) -> torch.Tensor:
    cache = m.decoder.new_cache()
    with torch.inference_mode():
        m.decoder(torch.tensor([ids[:start]]), cache=cache)
        rows = torch.tensor([ids[start:]]).split(3, dim=1)
        return torch.cat([m.decoder(piece, cache=cache).logits[0] for piece in rows])


@pytest.mark.xdist_group("compiled")
@pytest.mark.parametrize("name", ["dynamic", "yarn, all fields", "longrope, factor"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_int8_steps_rotate_as_the_layers_do(
    family: str, name: str, tmp_path: Path, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PRODUCT.load(code)
    plain, partial = FAMILIES[family]
    folder = write_model(tmp_path, plain | newer(name, partial))
    ids = random_ids(STRETCHED)
    expected = rows_after_a_cache(load(folder), ids, ORIGINAL - 5)
    rows = load_model(folder, "cpu", quantization="int8")
    assert rows.decoder.step is not None
    monkeypatch.setattr("model.loading.can_run", lambda folder: True)
    blocks = load_model(folder, "cpu", quantization="int8")
    for m, step in (
        (rows, None),
        (rows, rows.decoder.step),
        (blocks, None),
        (blocks, BlockStep(blocks.decoder, 1)),
    ):
        m.decoder.use_step(step)
        assert distance(rows_after_a_cache(m, ids, ORIGINAL - 5), expected) < 0.12


def test_dynamic_positions_are_known_without_torch(tmp_path: Path) -> None:
    folder = write_model(tmp_path, STARCODER2 | newer("dynamic, not whole", 1.0))
    assert find_model(folder).max_positions == load(folder).decoder.config.max_positions == 100


def test_the_original_context_may_stand_beside_the_scaling(tmp_path: Path) -> None:
    """As in Phi 3's configuration."""
    config = STARCODER2 | older("longrope that is never long", 1.0)
    folder = write_model(tmp_path, config | LONG)
    inside = write_model(tmp_path / "inside", STARCODER2 | newer("longrope", 1.0))
    ids = random_ids(60)
    torch.testing.assert_close(logits_of(load(folder), ids), logits_of(load(inside), ids))


def test_the_older_keys_of_stable_code_are_read(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "layer_norm_eps": 0.1}
    config = STABLELM | sizes | older("default", 0.5)
    folder = write_model(tmp_path, config)
    ids = random_ids(30)
    expected = logits_of(load(folder), ids)
    old = {"num_heads": 4, "norm_eps": 0.1, "rope_pct": 0.5, "rotary_scaling_factor": 1.0}
    configure(folder, **old)  # beside the newer ones, as some models have them
    torch.testing.assert_close(logits_of(load(folder), ids), expected)
    configure(folder, num_attention_heads=None, layer_norm_eps=None, partial_rotary_factor=None)
    torch.testing.assert_close(logits_of(load(folder), ids), expected)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_heads": 8}, "num_heads is 8, but its newer name num_attention_heads is 4. Remove"),
        ({"model_type": "stablelm_epoch"}, "Set its model_type to 'stablelm' and remove auto_map"),
        ({"rotary_scaling_factor": 2.0}, "rotary_scaling_factor is 2.0.* state .* as rope_scaling"),
    ],
)
def test_older_keys_that_do_not_fit_are_refused(
    keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_model(tmp_path, STABLELM)
    configure(folder, **keys)
    with pytest.raises(ModelError, match=message):
        load(folder)
