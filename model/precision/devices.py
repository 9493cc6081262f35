"""Devices and floating-point types by their names, and the memory that is free."""

from __future__ import annotations

import torch

from model.errors import ModelError
from model.machine import available_memory

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one. Raises ModelError."""
    if name == "auto":
        name = "cpu"
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available():
            name = "mps"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise ModelError(
            f"The device {name!r} cannot be used ({first_line}). Set the device to 'auto'."
        ) from None
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of that name; "auto" is the fastest on the device. Raises ModelError."""
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise ModelError(
            f"The dtype {name!r} is unknown. Use 'auto', {', '.join(map(repr, DTYPES))}."
        )
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "mps":
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float16
    # On a CPU without bfloat16 kernels its matmuls are hundreds of times slower than float32's.
    if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16
    return torch.float32


def free_memory(device: torch.device) -> int | None:
    """Bytes; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return available_memory()
