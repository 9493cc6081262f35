"""safetensors -> Decoder. Every tensor of the checkpoint is consumed exactly once, or named in the error.

Weights are float16, bfloat16 or float32, or, in fimls' own compact form (config.json: quantization_config.quant_method
"fimls-int8-rows"), int8 matrices `NAME` beside float32 `NAME_scale` with one scale a row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from model import stablelm, starcoder2
from model.config import DecoderConfig, WeightSlot
from model.decoder import Decoder
from model.errors import ModelError
from model.hub import ModelFolder

FAMILIES = {"starcoder2": starcoder2, "stablelm": stablelm}
INT8_ROWS = "fimls-int8-rows"
SCALE = "_scale"
# Buffers that older checkpoints carry and that are computed from the config.
COMPUTED = (".rotary_emb.inv_freq",)


def load_decoder(
    folder: ModelFolder,
    *,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[float], None] = lambda share: None,
) -> Decoder:
    """Builds the decoder of a folder and fills it, file by file. Raises ModelError.

    progress is told the share of tensors loaded, 0 to 1.
    """
    family = FAMILIES[folder.model_type]
    config = family.decoder_config(folder.config)
    quantized = _is_quantized(folder)
    with torch.device("meta"):
        decoder = Decoder(config)
    decoder = decoder.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    parameters = dict(decoder.named_parameters())
    table = family.weight_table(config)
    waiting = dict(table)
    for file in folder.weight_files:
        try:
            with safe_open(file, framework="pt") as tensors:
                names = set(tensors.keys())
                for name in sorted(names):
                    if name.endswith(COMPUTED) or (quantized and name.removesuffix(SCALE) in names - {name}):
                        continue
                    slot = waiting.pop(name, None)
                    if slot is None:
                        slot = _surplus(name, table, config, file)
                    tensor = tensors.get_tensor(name)
                    if quantized and tensor.dtype == torch.int8:
                        if name + SCALE not in names:
                            raise ModelError(f"{file}: {name} has no {name}{SCALE}. Download the model again.")
                        tensor = _dequantize(tensor, tensors.get_tensor(name + SCALE), name, file)
                    _fill(parameters[slot.parameter], slot, tensor, name, file)
                    progress(1 - len(waiting) / len(table))
        except SafetensorError as error:
            raise ModelError(f"{file} is damaged ({error}). Download it again.") from None
    if waiting:
        raise ModelError(f"{folder.path} lacks the tensors {_some(waiting)}. Download the model again.")
    return decoder


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


def _surplus(name: str, table: dict[str, WeightSlot], config: DecoderConfig, file: Path) -> WeightSlot:
    """A tensor that nothing waits for: fine only as the copy of tied embeddings that some tools write."""
    if name == "lm_head.weight" and config.tie_embeddings:
        return table["model.embed_tokens.weight"]
    if name in table:
        raise ModelError(f"{file}: {name} comes a second time. Download the model again.")
    raise ModelError(
        f"{file}: {name} has no place in the decoder that config.json describes. "
        "Check that weights and config.json belong together."
    )


def _dequantize(weight: torch.Tensor, scale: torch.Tensor, name: str, file: Path) -> torch.Tensor:
    if scale.shape != weight.shape[:1]:
        raise ModelError(f"{file}: {name}{SCALE} is {tuple(scale.shape)}, expected {tuple(weight.shape[:1])}")
    return weight.float() * scale.float()[:, None]


def _fill(parameter: torch.nn.Parameter, slot: WeightSlot, tensor: torch.Tensor, name: str, file: Path) -> None:
    if tuple(tensor.shape) != slot.shape:
        raise ModelError(
            f"{file}: {name} is {tuple(tensor.shape)}, but config.json asks for {slot.shape}. "
            "Check that weights and config.json belong together."
        )
    if not tensor.is_floating_point():
        raise ModelError(f"{file}: {name} is {tensor.dtype}, which is no weight. Download the model again.")
    rows = 1 if parameter.dim() > tensor.dim() else tensor.shape[0]
    parameter[slot.first_row : slot.first_row + rows] = tensor


def _some(names: dict[str, WeightSlot]) -> str:
    first = list(names)[:4]
    return ", ".join(first) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
