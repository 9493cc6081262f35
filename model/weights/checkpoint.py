"""safetensors -> Decoder. Every tensor of the checkpoint is consumed exactly once, or named in the
error.

Weights are float16, bfloat16 or float32, or, in fimls' own compact form (config.json:
quantization_config.quant_method "fimls-int8-rows"), int8 matrices `NAME` beside float32
`NAME_scale` with one scale a row.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from model.cpu.quantized_linear import Int8Factory
from model.cpu.torch_step import add_step
from model.decoder.config import DecoderConfig
from model.decoder.decoder import Decoder
from model.decoder.factory import Factory, Packed
from model.errors import ModelError
from model.families.registry import FAMILIES
from model.families.weight_table import WeightSlot
from model.gpu.bitsandbytes_linear import BITS, BitsFactory
from model.gpu.cuda_graphs import add_graphs
from model.machine import available_memory
from model.weights.folder import ModelFolder

INT8_ROWS = "fimls-int8-rows"
SCALE = "_scale"
# Buffers that older checkpoints carry and that are computed from the config.
COMPUTED = (".rotary_emb.inv_freq",)
HEAD = "lm_head.weight"  # some tools write it for tied models too, as a copy of the embeddings


def load_decoder(
    folder: ModelFolder,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantization: str | None = None,
    measured: Path | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Decoder:
    """Builds the decoder of a folder and fills it, file by file. Raises ModelError.

    quantization: "int8", on a CPU with matrices as model.quantize makes them, in float32 between;
    "int8" or "int4" on a GPU as model.bits does. They are quantized as they are read, so that no
    more than one file of the checkpoint is in memory beside them. measured: the folder where the
    speed of kernels is written down. progress is told the share of tensors loaded, 0 to 1.
    """
    config, table = read_config(folder)
    weights = read_weights(folder)
    bits = 8 * dtype.itemsize if quantization is None else BITS[quantization]
    check_memory(folder, table, device, bits / 8)
    # Not by way of the meta device: what torch imports for that (sympy, its compiler) takes longer
    # than loading.
    try:
        factory = (
            Factory(device, dtype)
            if quantization is None
            else Int8Factory.for_cpu(config, measured)
            if device.type == "cpu"
            else BitsFactory(device, dtype, bits)
        )
        decoder = Decoder(config, factory).eval().requires_grad_(False)
    except RuntimeError as error:
        first_line = str(error).splitlines()[0]
        raise ModelError(
            f"{folder.path} does not fit into the memory of {device} ({first_line}). Use a "
            "smaller model."
        ) from None
    parameters = dict(decoder.named_parameters())
    waiting = dict(table)
    left = Counter(_module(slot.parameter) for slot in table.values())
    head_copies = []
    for file, name, tensor in weights:
        if name == HEAD and config.tie_embeddings:
            head_copies.append(tensor)
            continue
        if name not in waiting:
            raise _surplus(name, file, again=name in table)
        slot = waiting.pop(name)
        _check(slot, tensor, name, file)
        module = _module(slot.parameter)
        owner = decoder.get_submodule(module)
        if isinstance(owner, Packed) and slot.parameter.endswith(".weight"):
            owner.fill(slot.first_row, tensor)
        else:
            _fill(parameters[slot.parameter], slot, tensor)
        left[module] -= 1
        if not left[module]:
            factory.finish(owner)
        progress(1 - len(waiting) / len(table))
    if waiting:
        raise ModelError(
            f"{folder.path} lacks the tensors {_some(waiting)}. Download the model again."
        )
    if not all(decoder.embed_tokens.holds(copy) for copy in head_copies):
        raise ModelError(
            f"{folder.path}: {HEAD} differs from the embeddings, to which config.json ties it. "
            "Set tie_word_embeddings to false there, or download the model again."
        )
    if isinstance(factory, Int8Factory):
        add_step(decoder, factory.plan, measured)
    elif device.type == "cuda" and quantization is None:
        add_graphs(decoder)
    return decoder


def check_memory(
    folder: ModelFolder, table: Mapping[str, WeightSlot], device: torch.device, itemsize: float
) -> None:
    """Raises ModelError where the weights, of itemsize bytes each, cannot fit into what is free."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    needed = sum(math.prod(slot.shape) for slot in table.values()) * itemsize
    if free is not None and needed > free:
        smaller = (
            'fimls.engine.quantization "int8" or a smaller model'
            if itemsize > 1
            else "a smaller model"
        )
        raise ModelError(
            f"{folder.path} needs {needed / 1e9:.1f} GB for its weights, but {free / 1e9:.1f} GB "
            "of the memory of "
            f"{device} are free. Use {smaller}, or close what else uses the memory."
        )


def _module(parameter: str) -> str:
    """The path of the module that a parameter belongs to."""
    return parameter.rpartition(".")[0]


def read_config(folder: ModelFolder) -> tuple[DecoderConfig, dict[str, WeightSlot]]:
    """What config.json describes, and the weights that belong to it by name. Raises ModelError."""
    family = FAMILIES[folder.model_type]
    try:
        config = family.decoder_config(folder.config)
    except ModelError as error:  # begins with config.json
        raise ModelError(
            f"{folder.path}/{error}. Download the model again; if it stays so, use another or "
            "report this one."
        ) from None
    return config, family.weight_table(config)


def read_weights(folder: ModelFolder) -> Iterator[tuple[Path, str, torch.Tensor]]:
    """A folder's tensors in the order of its files and their names, each with its file; int8 rows
    as float32.

    Raises ModelError.
    """
    quantized = _is_quantized(folder)
    return (
        (file, name, tensor)
        for file in folder.weight_files
        for name, tensor in _tensors(file, quantized)
    )


def _tensors(file: Path, quantized: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """A file's tensors one after the other; int8 rows as the floats that they stand for."""
    try:
        with safe_open(file, framework="pt") as tensors:
            names = set(tensors.keys())
            scaled = {name for name in names if name + SCALE in names} if quantized else set()
            for name in sorted(names - {name + SCALE for name in scaled}):
                if name.endswith(COMPUTED):
                    continue
                tensor = tensors.get_tensor(name)
                if name in scaled:
                    tensor = _dequantize(tensor, tensors.get_tensor(name + SCALE), name, file)
                yield name, tensor
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} cannot be read ({error}). Download it again.") from None


def _is_quantized(folder: ModelFolder) -> bool:
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


def _surplus(name: str, file: Path, *, again: bool) -> ModelError:
    """What to say of a tensor that nothing waits for."""
    if again:
        return ModelError(f"{file}: {name} comes a second time. Download the model again.")
    return ModelError(
        f"{file}: {name} has no place in the decoder that config.json describes. "
        "Check that weights and config.json belong together."
    )


def _dequantize(weight: torch.Tensor, scale: torch.Tensor, name: str, file: Path) -> torch.Tensor:
    if weight.dtype != torch.int8 or scale.shape != weight.shape[:1]:
        raise ModelError(
            f"{file}: {name} is {weight.dtype} {tuple(weight.shape)} with a {name}{SCALE} of "
            f"{tuple(scale.shape)}, "
            "but only int8 rows with one scale each are known. Download the model again."
        )
    return weight.float() * scale.float()[:, None]


def _check(slot: WeightSlot, tensor: torch.Tensor, name: str, file: Path) -> None:
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


def _fill(parameter: torch.nn.Parameter, slot: WeightSlot, tensor: torch.Tensor) -> None:
    rows = 1 if parameter.dim() > tensor.dim() else tensor.shape[0]
    parameter[slot.first_row : slot.first_row + rows] = tensor


def _some(names: dict[str, WeightSlot]) -> str:
    first = list(names)[:4]
    return ", ".join(first) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
