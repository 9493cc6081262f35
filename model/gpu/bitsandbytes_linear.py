"""Weights of 8 or 4 bits on a CUDA device, by bitsandbytes: LLM.int8() (Dettmers et al. 2022) and
NF4 (Dettmers et al. 2023, QLoRA). They save memory, not time: a step is often slower than with the
floats.

bitsandbytes is imported where it is first used.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.decoder.factory import Factory, Packed
from model.errors import ModelError

BITS = {"int8": 8, "int4": 4}
BLOCK = 64  # weights to a scale of NF4
OUTLIER = 6.0  # LLM.int8(): inputs beyond it are multiplied as floats


def library() -> Any:
    """bitsandbytes. Raises ModelError with the remedy."""
    # Some versions look on the hub for kernels.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        # Imported by name: its types differ from version to version.
        module = importlib.import_module("bitsandbytes")
    except Exception as error:  # a library that does not fit its torch fails in ways of its own
        raise ModelError(
            "int8 and int4 weights on a GPU need the package bitsandbytes, which cannot be "
            f"imported ({error}). "
            "Install it (pip install 'fimls[gpu]'), or set the quantization to 'none'."
        ) from None
    return module


class BitsLinear(Packed):
    """y = x W^T + b. `fill` collects rows of W as they are read, `finish` quantizes them on the
    device."""

    def __init__(self, width: int, out: int, bias: bool, bits: int, factory: Factory) -> None:
        super().__init__()
        self.bits = bits
        self.shape = (out, width)
        self._factory = factory
        self._library = library()
        self._rows: Tensor | None = None
        self.bias: nn.Parameter | None = None
        if bias:
            zeros = torch.zeros(out, device=factory.device, dtype=factory.dtype)
            self.bias = nn.Parameter(zeros)
        self.packed: Tensor
        self._state: Any

    def fill(self, first: int, weights: Tensor) -> None:
        if self._rows is None:
            self._rows = torch.empty(self.shape, dtype=self._factory.dtype, device=weights.device)
        self._rows[first : first + len(weights)] = weights

    def finish(self) -> None:
        """Raises ModelError where the device has no room."""
        assert self._rows is not None
        try:
            self._quantize(self._rows.to(self._factory.device))
        except torch.OutOfMemoryError as error:
            first_line = str(error).partition("\n")[0]
            remedy = "Use a smaller model."
            if self.bits == 8:
                remedy = "Set the quantization to 'int4', or use a smaller model."
            raise ModelError(
                f"The weights of {self.bits} bits do not fit into the memory of "
                f"{self._factory.device} ({first_line}). {remedy}"
            ) from None
        self._rows = None

    def _quantize(self, rows: Tensor) -> None:
        library = self._library
        if self.bits == 4:
            self.packed, self._state = library.functional.quantize_4bit(
                rows, blocksize=BLOCK, quant_type="nf4", compress_statistics=True
            )
            return
        self.packed, scale, _ = library.functional.int8_vectorwise_quant(rows.half())
        self._state = library.MatmulLtState()
        self._state.CB = self.packed
        self._state.SCB = scale
        self._state.has_fp16_weights = False
        self._state.is_training = False
        self._state.threshold = OUTLIER

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> (..., out) of the same type."""
        y: Tensor
        if self.bits == 4:
            y = self._library.matmul_4bit(
                x, self.packed.t(), quant_state=self._state, bias=self.bias
            )
            return y
        # LLM.int8() works on float16, and says at every call where it had to cast to it.
        y = self._library.matmul(x.half(), self.packed, state=self._state).to(x.dtype)
        if self.bias is None:
            return y
        return y + self.bias

    @property
    def nbytes(self) -> int:
        """The memory of the matrix with its scales."""
        if self.bits == 8:
            return int(self.packed.nbytes + self._state.SCB.nbytes)
        total = self.packed.nbytes
        state = self._state
        while state is not None:  # the scales have scales of their own
            total += state.absmax.nbytes
            state = state.state2
        return int(total)


@dataclass(frozen=True)
class BitsFactory(Factory):
    """Makes the modules of a decoder whose matrices have few bits. Embeddings, and a head tied to
    them, stay floats."""

    bits: int

    @property
    def scheme(self) -> str:
        return f"bitsandbytes {self.bits} bits, {super().scheme}"

    def linear(self, width: int, out: int, bias: bool) -> nn.Module:
        return BitsLinear(width, out, bias, self.bits, self)
