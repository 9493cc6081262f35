"""What config.json does not state is what the reference means by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from model.families.registry import FAMILIES
from model.heads.passes import Dropouts
from model.weights.folder import find_model
from tests.conftest import write_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_configuration_is_the_references(family: str, tmp_path: Path) -> None:
    reference = transformers.AutoConfig.for_model(family).to_dict()
    decoder_config = FAMILIES[family].decoder_config
    empty = {"model_type": family}
    ours = decoder_config(empty)
    assert ours == decoder_config(reference)
    assert Dropouts.of(empty, FAMILIES[family]) == Dropouts.of(reference, FAMILIES[family])

    (tmp_path / "config.json").write_text(json.dumps(empty))
    write_tokenizer(tmp_path)
    assert find_model(tmp_path).max_positions == ours.max_positions


@pytest.mark.parametrize("family", FAMILIES)
def test_null_says_that_no_token_ends_a_text(family: str) -> None:
    decoder_config = FAMILIES[family].decoder_config
    assert decoder_config({"model_type": family, "eos_token_id": None}).stop_ids == ()
