"""The type of what each family's file states."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from model.decoder.config import Activation, DecoderConfig
from model.families.hf_config import Defaults
from model.families.weight_table import WeightSlot

DropoutPlace = Literal["attention", "embedding", "residual", "hidden"]


def _nothing(config: DecoderConfig) -> dict[str, bool]:
    return {}


@dataclass(frozen=True, slots=True)
class GgufRules:
    """How GGUF files and llama.cpp state the family, as far as it differs from our decoder."""

    activation: Activation  # the only one that llama.cpp knows for the family
    partly_rotated: bool = False  # whether llama.cpp can rotate a part of each head
    interleaved: bool = False  # llama.cpp rotates neighbouring dimensions of queries and keys
    # Reasons for which a model of the family is refused -> whether they hold.
    refusals: Callable[[DecoderConfig], Mapping[str, bool]] = _nothing
    # Keys of the file, without the architecture in front -> their values.
    metadata: Callable[[DecoderConfig], Mapping[str, bool | float]] = _nothing
    added_one: bool = False  # norms hold 1 + weight there, and the weight here
    architecture: str = ""  # general.architecture, where it is not the model_type
    # Keys of the file, without the architecture in front -> keys of config.json, beside the common
    # ones in model/weights/gguf/model.py.
    config_keys: Mapping[str, str] = field(default_factory=dict)
    # Keys of the file that change no result.
    harmless_keys: Collection[str] = ()
    # The tensors by name -> what only their presence tells, as keys of config.json.
    config_of_tensors: Callable[[Collection[str]], Mapping[str, bool]] = lambda tensors: {}


@dataclass(frozen=True, slots=True)
class Family:
    """A family of models by the model_type of its config.json."""

    model_type: str
    defaults: Defaults
    # The content of config.json -> DecoderConfig. Raises ModelError.
    decoder_config: Callable[[Mapping[str, Any]], DecoderConfig]
    # The names of the checkpoint's tensors -> where each goes.
    weight_table: Callable[[DecoderConfig], dict[str, WeightSlot]]
    gguf: GgufRules
    # What follows is for heads (model/heads/).
    # Where the family drops values in training -> the key of config.json that states the share.
    dropouts: Mapping[DropoutPlace, str] = field(
        default_factory=lambda: {"attention": "attention_dropout"}
    )
    # Where config.json states none: that share, what a classifier of tokens drops, and the standard
    # deviation of new weights.
    dropout: float = 0.0
    classifier_dropout: float = 0.1
    initializer_range: float = 0.02
    # New weights of the matrices that add to the residual stream are smaller, by the root of twice
    # the number of layers (GPT-2).
    small_residuals: bool = False
    trains_padding: bool = False  # the embedding of pad_token_id, too
    token_classifier: str = "score"  # the name of its layer in a checkpoint

    @property
    def architecture(self) -> str:
        """GGUF's general.architecture."""
        return self.gguf.architecture or self.model_type
