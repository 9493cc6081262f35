"""New weights, drawn as transformers draws them, and models made of nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from model.decoder.config import DecoderConfig
from model.decoder.decoder import Decoder
from model.decoder.factory import Embedding, RMSNormPlusOne
from model.decoder.layers import DecoderLayer
from model.errors import ModelError
from model.families.family import Family
from model.families.registry import FAMILIES
from model.weights.files import ModelFiles
from model.weights.folder import ModelFolder, find_model


@dataclass(frozen=True)
class Unstored(ModelFolder):
    """A configuration that is on no disk."""

    before_config: ClassVar[str] = ": "

    def tokenizer_json(self) -> str:
        """None: ""."""
        return ""


def read_config(config: str | Path | Mapping[str, Any]) -> tuple[ModelFiles, DecoderConfig]:
    """A model's name, or what its config.json holds. Raises ModelError."""
    files: ModelFiles
    if isinstance(config, Mapping):
        files = Unstored(Path("from_config"), config)
    else:
        files = find_model(config, to_run=False)
    family = FAMILIES.get(files.model_type)
    if family is None:
        raise ModelError(
            f"{files.path}{files.before_config}config.json: {files.model_type} is no native "
            f"architecture. Use one of {', '.join(FAMILIES)}."
        )
    try:
        return files, family.decoder_config(files.config)
    except ModelError as error:  # begins with config.json
        raise ModelError(f"{files.path}{files.before_config}{error}") from None


@torch.no_grad()
def draw(parameter: Tensor, deviation: float) -> None:
    """Matrices normal, biases 0."""
    if parameter.dim() == 1:
        parameter.zero_()
    else:
        parameter.normal_(0.0, deviation)


@torch.no_grad()
def draw_all(head: nn.Module, decoder: Decoder, family: Family, deviation: float) -> None:
    """Draws all weights of a head and its decoder. Norms multiply by 1, and padding is 0."""
    for part in head.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            draw(part.weight, deviation)
            if getattr(part, "bias", None) is not None:
                draw(cast(Tensor, part.bias), deviation)
        elif isinstance(part, RMSNormPlusOne):
            part.weight.zero_()
    if decoder.config.rope is None:
        draw(decoder.embed_positions, deviation)
    if family.small_residuals:
        for layer in decoder.layers:
            layer = cast(DecoderLayer, layer)
            for matrix in (layer.attention.out, layer.mlp.down):
                smaller = deviation / (2 * decoder.config.num_layers) ** 0.5
                draw(cast(nn.Linear, matrix).weight, smaller)
    embeddings = cast(Embedding, decoder.embed_tokens)
    if embeddings.padding_idx is not None:
        embeddings.weight[embeddings.padding_idx].zero_()


def mark_padding(decoder: Decoder, family: Family, pad: int | None) -> None:
    """Keeps the embedding of padding from being trained, as the reference does."""
    if pad is not None and 0 <= pad < decoder.config.vocab_size and not family.trains_padding:
        cast(Embedding, decoder.embed_tokens).padding_idx = pad
