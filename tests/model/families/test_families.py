"""A family is one file: all are found, and what cannot be run is refused with the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.errors import ModelError
from model.families import native
from model.families.registry import FAMILIES
from tests.conftest import (
    GEMMA,
    GPT_BIGCODE,
    GRANITE,
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    STABLELM,
    STARCODER2,
)

ALL = (GEMMA, GPT_BIGCODE, GRANITE, LLAMA, MISTRAL, QWEN2, QWEN3, STABLELM, STARCODER2)
TOYS = {config["model_type"]: config for config in ALL}


def test_every_file_of_the_folder_is_a_family() -> None:
    folder = Path(native.__path__[0])
    assert list(FAMILIES) == sorted({path.stem for path in folder.glob("*.py")} - {"__init__"})
    assert FAMILIES.keys() == TOYS.keys()
    for model_type, family in FAMILIES.items():
        assert family.model_type == model_type


@pytest.mark.parametrize("family", TOYS)
def test_a_key_that_nobody_reads_is_refused(family: str) -> None:
    with pytest.raises(ModelError, match="may change the result: new_switch"):
        FAMILIES[family].decoder_config(TOYS[family] | {"new_switch": 1})


@pytest.mark.parametrize("family", ["starcoder2", "stablelm", "qwen2"])
def test_what_is_harmless_in_one_family_is_not_so_in_others(family: str) -> None:
    FAMILIES["llama"].decoder_config(LLAMA | {"pretraining_tp": 2})
    with pytest.raises(ModelError, match="may change the result: pretraining_tp"):
        FAMILIES[family].decoder_config(TOYS[family] | {"pretraining_tp": 2})


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": True, "max_window_layers": 1},
        {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]},
        {"use_sliding_window": True, "layer_types": ["chunked_attention"] * 2},
        {"layer_types": ["sliding_attention"] * 2},
    ],
)
def test_a_window_over_some_layers_is_refused_with_the_remedy(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"only some of the layers.*use_sliding_window to false"):
        FAMILIES["qwen2"].decoder_config(QWEN2 | {"sliding_window": 16} | changes)


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"max_window_layers": 0}, 4096),  # as transformers takes it where it is not stated
        ({"max_window_layers": 0, "sliding_window": None}, None),
        ({"max_window_layers": 0, "sliding_window": 16}, 16),
        ({"sliding_window": 16}, None),  # of 28 layers without a window two are there
    ],
)
def test_the_window_of_all_layers(changes: dict[str, Any], window: int | None) -> None:
    config = QWEN2 | {"use_sliding_window": True} | changes
    assert FAMILIES["qwen2"].decoder_config(config).sliding_window == window


@pytest.mark.parametrize(("size", "reason"), [(0, "must be positive"), (7, "cannot be rotated")])
def test_a_size_of_heads_that_cannot_be_is_refused(size: int, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        FAMILIES["llama"].decoder_config(LLAMA | {"head_dim": size})
