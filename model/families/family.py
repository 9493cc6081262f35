"""The type of what each family's file states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from model.decoder.config import Activation, DecoderConfig
from model.families.weight_table import WeightSlot


def _nothing(config: DecoderConfig) -> dict[str, bool]:
    return {}


@dataclass(frozen=True, slots=True)
class GgufRules:
    """How llama.cpp computes the family, as far as it differs from our decoder."""

    activation: Activation  # the only one that llama.cpp knows for the family
    partly_rotated: bool = False  # whether llama.cpp can rotate a part of each head
    interleaved: bool = False  # llama.cpp rotates neighbouring dimensions of queries and keys
    # Reasons for which a model of the family is refused -> whether they hold.
    refusals: Callable[[DecoderConfig], Mapping[str, bool]] = _nothing
    # Keys of the file, without the family's name in front -> their values.
    metadata: Callable[[DecoderConfig], Mapping[str, bool]] = _nothing


@dataclass(frozen=True, slots=True)
class Family:
    """A family of models by the model_type of its config.json."""

    model_type: str
    # The content of config.json -> DecoderConfig. Raises ModelError.
    decoder_config: Callable[[Mapping[str, Any]], DecoderConfig]
    # The names of the checkpoint's tensors -> where each goes.
    weight_table: Callable[[DecoderConfig], dict[str, WeightSlot]]
    gguf: GgufRules
