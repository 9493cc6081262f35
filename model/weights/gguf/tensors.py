"""The weights of a GGUF file under Hugging Face's names: floats, or the common types of quantized
blocks as they are. Rare types are widened by the gguf library, a few rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.decoder.config import DecoderConfig
from model.errors import ModelError
from model.families.family import Family
from model.families.weight_table import WeightSlot
from model.ggml import AT_ONCE, KINDS, Blocks
from model.weights.gguf.header import TensorInfo
from model.weights.gguf.model import ROPE_FACTORS, GgufModel

FLOATS: Mapping[str, Any] = {"F32": np.float32, "F16": np.float16}


def gguf_tensors(
    model: GgufModel, table: Mapping[str, WeightSlot], config: DecoderConfig
) -> Iterator[tuple[Path, str, Tensor | Blocks]]:
    """Each tensor with its file and its name in table, in the files' order.

    Raises ModelError for a tensor that has no place in the table.
    """
    names = {theirs: name for name, theirs in gguf_names(model.family, table, config).items()}
    rules = model.family.gguf
    # Writable for torch alone, and nobody writes: no page is copied.
    data = {file: np.memmap(file, np.uint8, "c") for file in model.parts}
    for file, info in _stored(model):
        name = names.get(info.name, info.name)
        tensor = read_tensor(data[file], info)
        if name in table and rules.interleaved and table[name].is_rotated(config):
            if isinstance(tensor, Blocks):
                tensor = replace(tensor, raw=halved(tensor.raw, config))
            else:
                tensor = halved(tensor, config)
        if name in table and rules.added_one and table[name].is_norm:
            assert isinstance(tensor, Tensor)  # blocks are matrices
            tensor = tensor.float() - 1
        yield file, name, tensor


def gguf_shapes(
    model: GgufModel, table: Mapping[str, WeightSlot], config: DecoderConfig
) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that `gguf_tensors` yields, by name and in that order."""
    names = {theirs: name for name, theirs in gguf_names(model.family, table, config).items()}
    return {names.get(info.name, info.name): info.shape for _, info in _stored(model)}


def gguf_block_kinds(
    model: GgufModel, table: Mapping[str, WeightSlot], config: DecoderConfig
) -> dict[str, str]:
    """The kinds of those of `gguf_tensors` that are blocks, by name."""
    names = {theirs: name for name, theirs in gguf_names(model.family, table, config).items()}
    return {
        names.get(info.name, info.name): info.kind.lower()
        for _, info in _stored(model)
        if _is_in_blocks(info)
    }


def _is_in_blocks(info: TensorInfo) -> bool:
    return info.kind.lower() in KINDS and len(info.shape) == 2


def _stored(model: GgufModel) -> Iterator[tuple[Path, TensorInfo]]:
    """The weights in the files' order, each with its file."""
    for file, header in model.parts.items():
        for info in header.tensors.values():
            if info.name != ROPE_FACTORS:  # the config holds them
                yield file, info


def gguf_names(
    family: Family, table: Mapping[str, WeightSlot], config: DecoderConfig
) -> dict[str, str]:
    """The table's names -> GGUF's. Raises ModelError for a tensor that GGUF has no name for."""
    import gguf

    architectures = {text: number for number, text in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(architectures[family.architecture], config.num_layers)
    found = {}
    for name in table:
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise ModelError(
                f"GGUF has no name for {name} of a {family.model_type}. Report this model."
            )
        found[name] = theirs
    return found


def read_tensor(data: np.memmap[Any, np.dtype[np.uint8]], info: TensorInfo) -> Tensor | Blocks:
    """One tensor of a mapped file. Matrices of the common types are blocks, in the file's memory;
    float16 and bfloat16 are as they are, all else is float32."""
    raw = data[info.offset : info.offset + info.bytes]
    if info.kind == "BF16":
        halves = torch.from_numpy(raw.view(np.int16).copy())
        return halves.view(torch.bfloat16).view(info.shape)
    if info.kind in FLOATS:
        return torch.from_numpy(raw.view(FLOATS[info.kind]).copy()).view(info.shape)
    width = info.shape[-1]
    rows = raw.reshape(math.prod(info.shape[:-1]), -1)
    if info.kind.lower() in KINDS:
        blocks = Blocks(info.kind.lower(), (len(rows), width), torch.from_numpy(rows))
        return blocks if _is_in_blocks(info) else blocks.floats().view(info.shape)
    result = torch.empty(len(rows), width)
    step = max(1, AT_ONCE // width)
    parts = np.split(rows, range(step, len(rows), step))
    for into, part in zip(torch.split(result, step), parts, strict=True):
        into.copy_(_widened_by_library(part, info.kind))
    return result.view(info.shape)


def _widened_by_library(rows: np.ndarray[Any, np.dtype[np.uint8]], kind: str) -> Tensor:
    """rows (n, bytes) of whole blocks -> float32."""
    import gguf

    return torch.from_numpy(gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind]))


def halved(tensor: Tensor, config: DecoderConfig) -> Tensor:
    """Queries' or keys' rows in Hugging Face's order: the two dimensions of a rotated pair stand
    half a head apart, and not side by side as llama.cpp's converter puts them."""
    pairs = tensor.view(-1, config.head_dim // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)
