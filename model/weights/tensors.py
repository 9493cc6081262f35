"""The weights of safetensors files, one after the other.

Weights are float16, bfloat16 or float32. In fimls' own compact form (config.json:
quantization_config.quant_method "fimls-int8-rows") a matrix NAME is int8 and has a float32
NAME_scale with one scale a row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.errors import ModelError
from model.regular_files import open_regular, reason
from model.weights.folder import SCALE, header_length

# Buffers that older checkpoints carry and that are computed from the config.
COMPUTED = (".rotary_emb.inv_freq",)


def safetensors_tensors(
    files: Sequence[Path], int8_rows: bool
) -> Iterator[tuple[Path, str, Tensor]]:
    """The tensors in the order of their files and names, each with its file; int8 rows as
    float32.

    Raises ModelError.
    """
    for file in files:
        for name, tensor in _tensors(file, int8_rows):
            yield file, name, tensor


def _tensors(file: Path, int8_rows: bool) -> Iterator[tuple[str, Tensor]]:
    """A file's tensors one after the other; int8 rows as the floats that they stand for."""
    try:
        with os.fdopen(open_regular(file), "rb") as raw:
            header_length(raw)
        with safe_open(file, framework="pt") as tensors:
            names = set(tensors.keys())
            scaled = set()
            if int8_rows:
                scaled = {name for name in names if name + SCALE in names}
            for name in sorted(names - {name + SCALE for name in scaled}):
                if name.endswith(COMPUTED):
                    continue
                tensor = tensors.get_tensor(name)
                if name in scaled:
                    tensor = _dequantize(tensor, tensors.get_tensor(name + SCALE), name, file)
                yield name, tensor
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({reason(error)}). Download it again.") from None


def _dequantize(weight: Tensor, scale: Tensor, name: str, file: Path) -> Tensor:
    if weight.dtype != torch.int8 or scale.shape != weight.shape[:1]:
        raise ModelError(
            f"{file}: {name} is {weight.dtype} {tuple(weight.shape)} with a {name}{SCALE} of "
            f"{tuple(scale.shape)}, but only int8 rows with one scale each are known. Download the "
            "model again."
        )
    return weight.float() * scale.float()[:, None]
