"""Reads the tensors of safetensors files and fills a decoder with them.

Every tensor of the checkpoint is used exactly once, or the error names it. Weights are float16,
bfloat16 or float32. In fimls' own compact form (config.json: quantization_config.quant_method
"fimls-int8-rows") a matrix NAME is int8 and has a float32 NAME_scale with one scale a row.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.decoder.config import DecoderConfig
from model.decoder.decoder import Decoder
from model.decoder.factory import Factory, Packed
from model.errors import ModelError
from model.families.registry import FAMILIES
from model.families.weight_table import WeightSlot
from model.regular_files import check_regular
from model.weights.files import ModelFiles
from model.weights.folder import SCALE, ModelFolder
from model.weights.gguf.model import GgufModel
from model.weights.gguf.tensors import gguf_shapes, gguf_tensors

INT8_ROWS = "fimls-int8-rows"
# Buffers that older checkpoints carry and that are computed from the config.
COMPUTED = (".rotary_emb.inv_freq",)
HEAD = "lm_head.weight"  # some tools write it for tied models too, as a copy of the embeddings
NAMED = 4  # of the tensors that are missing


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder's configuration, and the tensors that belong to it."""

    folder: ModelFiles
    config: DecoderConfig
    table: Mapping[str, WeightSlot]  # by the tensors' names
    int8_rows: bool
    files: Sequence[Path]

    @classmethod
    def open(cls, folder: ModelFiles) -> Checkpoint:
        """Reads config.json and finds the weights. Raises ModelError."""
        family = FAMILIES.get(folder.model_type)
        if family is None:
            raise ModelError(
                f"{folder.path}: {folder.model_type} is no native architecture. Use a model in one "
                f"of {', '.join(FAMILIES)}."
            )
        try:
            config = family.decoder_config(folder.config)
        except ModelError as error:  # begins with config.json
            joined = ", as " if isinstance(folder, GgufModel) else "/"
            raise ModelError(
                f"{folder.path}{joined}{error}. Download the model again; if it stays so, use "
                "another or report this one."
            ) from None
        table = family.weight_table(config)
        return cls(folder, config, table, _has_int8_rows(folder), tuple(folder.weight_files))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the stored tensors, in the order of `tensors`. Raises ModelError."""
        if isinstance(self.folder, GgufModel):
            return gguf_shapes(self.folder, self.table, self.config)
        assert isinstance(self.folder, ModelFolder)
        return self.folder.shapes

    @property
    def parameters(self) -> int:
        return sum(math.prod(slot.shape) for slot in self.table.values())

    def tensors(self) -> Iterator[tuple[Path, str, Tensor]]:
        """The tensors in the order of their files and names, each with its file; int8 rows as
        float32.

        Raises ModelError.
        """
        if isinstance(self.folder, GgufModel):
            yield from gguf_tensors(self.folder, self.table, self.config)
            return
        for file in self.files:
            for name, tensor in _tensors(file, self.int8_rows):
                yield file, name, tensor

    def fill(self, decoder: Decoder, factory: Factory, progress: Callable[[float], None]) -> None:
        """Writes every tensor to its place in the decoder, which the factory has made.

        No more than one file is in memory beside the decoder. progress is told the share of tensors
        written, 0 to 1. Raises ModelError.
        """
        parameters = dict(decoder.named_parameters())
        waiting = dict(self.table)
        head_copies = []
        unfinished = Counter(_module(slot.parameter) for slot in self.table.values())
        for file, name, tensor in self.tensors():
            if name == HEAD and self.config.tie_embeddings:
                head_copies.append(tensor)
                continue
            if name not in waiting:
                raise _surplus(name, file, again=name in self.table)
            slot = waiting.pop(name)
            _check(slot, tensor, name, file)
            module = _module(slot.parameter)
            owner = decoder.get_submodule(module)
            if isinstance(owner, Packed) and slot.parameter.endswith(".weight"):
                owner.fill(slot.first_row, tensor)
            else:
                _write(parameters[slot.parameter], slot.first_row, tensor)
            unfinished[module] -= 1
            if not unfinished[module]:
                factory.finish(owner)
            progress(1 - len(waiting) / len(self.table))
        if waiting:
            raise ModelError(
                f"{self.folder.path} lacks the tensors {_some(waiting)}. Download the model again."
            )
        if not all(decoder.embed_tokens.holds(copy) for copy in head_copies):
            raise ModelError(
                f"{self.folder.path}: {HEAD} differs from the embeddings, to which config.json "
                "ties it. Set tie_word_embeddings to false there, or download the model again."
            )


def _has_int8_rows(folder: ModelFiles) -> bool:
    """Whether the weights are in fimls' own form. Raises ModelError for anyone else's."""
    settings = folder.config.get("quantization_config")
    if settings is None:
        return False
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    if method != INT8_ROWS:
        raise ModelError(
            f"{folder.path} holds weights quantized with {method!r}, which fimls does not read. "
            "Use the model's float16 or bfloat16 weights."
        )
    return True


def _tensors(file: Path, int8_rows: bool) -> Iterator[tuple[str, Tensor]]:
    """A file's tensors one after the other; int8 rows as the floats that they stand for."""
    try:
        check_regular(file)
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
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} cannot be read ({error}). Download it again.") from None


def _dequantize(weight: Tensor, scale: Tensor, name: str, file: Path) -> Tensor:
    if weight.dtype != torch.int8 or scale.shape != weight.shape[:1]:
        raise ModelError(
            f"{file}: {name} is {weight.dtype} {tuple(weight.shape)} with a {name}{SCALE} of "
            f"{tuple(scale.shape)}, but only int8 rows with one scale each are known. Download the "
            "model again."
        )
    return weight.float() * scale.float()[:, None]


def _check(slot: WeightSlot, tensor: Tensor, name: str, file: Path) -> None:
    if tuple(tensor.shape) != slot.shape:
        raise ModelError(
            f"{file}: {name} is {tuple(tensor.shape)}, but config.json asks for {slot.shape}. "
            "Check that weights and config.json belong together."
        )
    if not tensor.is_floating_point():
        raise ModelError(
            f"{file}: {name} is {tensor.dtype}, which is no weight by itself. Download the model "
            "again."
        )
    # One number that is not finite makes the sum so, too.
    if not torch.isfinite(tensor.sum(dtype=torch.float32)):
        raise ModelError(
            f"{file}: {name} holds numbers that are not finite. Download the model again."
        )


def _write(parameter: Tensor, first_row: int, tensor: Tensor) -> None:
    """Writes a tensor to the rows from first_row on. A vector becomes one row of a matrix."""
    if parameter.dim() > tensor.dim():
        parameter[first_row] = tensor
    else:
        parameter[first_row : first_row + tensor.shape[0]] = tensor


def _module(parameter: str) -> str:
    """The path of the module that a parameter belongs to."""
    return parameter.rpartition(".")[0]


def _surplus(name: str, file: Path, *, again: bool) -> ModelError:
    """The error for a tensor that has no place, or whose place is taken."""
    if again:
        return ModelError(f"{file}: {name} comes a second time. Download the model again.")
    return ModelError(
        f"{file}: {name} has no place in the decoder that config.json describes. "
        "Check that weights and config.json belong together."
    )


def _some(names: Mapping[str, WeightSlot]) -> str:
    first = ", ".join(list(names)[:NAMED])
    if len(names) <= NAMED:
        return first
    return f"{first} and {len(names) - NAMED} more"
