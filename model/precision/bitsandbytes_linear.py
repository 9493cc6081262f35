"""Weights of 8 or 4 bits by bitsandbytes: LLM.int8() (Dettmers et al. 2022) and NF4, also with
scales that are quantized in turn (Dettmers et al. 2023, QLoRA). They save memory, not time: a step
is often slower than with the floats, and on a CPU it is far slower.

Gradients go through a matrix to its inputs; the matrix itself has none.
bitsandbytes is imported where it is first used.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from model.decoder.config import DecoderConfig
from model.decoder.factory import Factory, Packed
from model.errors import ModelError

Kind = Literal["llm.int8", "nf4", "nf4-double"]
KINDS: tuple[Kind, ...] = get_args(Kind)
BLOCK = 64  # weights to a scale of NF4
OUTLIER = 6.0  # LLM.int8(): inputs beyond it are multiplied as floats


def keep_quiet() -> None:
    """Comes before bitsandbytes is imported, by whomever."""
    # Some versions look on the hub for kernels.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # It warns where it finds no such kernels, and at every product that it rounds to float16.
    logger = logging.getLogger("bitsandbytes")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)


def library() -> Any:
    """bitsandbytes. Raises ModelError with the remedy."""
    keep_quiet()
    try:
        # Imported by name: its types differ from version to version.
        return importlib.import_module("bitsandbytes")
    except Exception as error:  # a library that does not fit its torch fails in ways of its own
        raise ModelError(
            "Weights of 8 or 4 bits need the package bitsandbytes, which cannot be imported "
            f"({error}). Install it (pip install 'fimls[gpu]'), or set the quantization to 'none'."
        ) from None


class BitsLinear(Packed):
    """y = x W^T + b. `fill` collects rows of W as they are read, `finish` quantizes them on the
    device."""

    def __init__(self, width: int, out: int, bias: bool, factory: BitsFactory) -> None:
        super().__init__()
        self.in_features = width
        self.out_features = out
        self._factory = factory
        library()
        self._rows: Tensor | None = None
        self.bias: nn.Parameter | None = None
        if bias:
            zeros = torch.zeros(out, device=factory.device, dtype=factory.dtype)
            self.bias = nn.Parameter(zeros)
        self.packed: Tensor
        self._state: Any

    def fill(self, first: int, weights: Tensor) -> None:
        if self._rows is None:
            shape = (self.out_features, self.in_features)
            self._rows = torch.empty(shape, dtype=self._factory.dtype, device=weights.device)
        self._rows[first : first + len(weights)] = weights

    def finish(self) -> None:
        """Raises ModelError where the device has no room."""
        assert self._rows is not None
        kind = self._factory.kind
        try:
            self._quantize(self._rows.to(self._factory.device))
        except torch.OutOfMemoryError as error:
            first_line = str(error).partition("\n")[0]
            remedy = "Use a smaller model."
            if kind == "llm.int8":
                remedy = "Set the quantization to 'int4', or use a smaller model."
            raise ModelError(
                f"The {kind} weights do not fit into the memory of {self._factory.device} "
                f"({first_line}). {remedy}"
            ) from None
        self._rows = None

    def _quantize(self, rows: Tensor) -> None:
        kind = self._factory.kind
        if kind != "llm.int8":
            self.packed, self._state = library().functional.quantize_4bit(
                rows, blocksize=BLOCK, quant_type="nf4", compress_statistics=kind == "nf4-double"
            )
            return
        self.packed, scale, _ = library().functional.int8_vectorwise_quant(rows.half())
        self._state = library().MatmulLtState()
        self._state.CB = self.packed
        self._state.SCB = scale
        self._state.has_fp16_weights = False
        self._state.threshold = OUTLIER

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> (..., out) of the same type."""
        # The library's gradient of a bias is right for two dimensions only.
        flat = x.reshape(-1, self.in_features)
        y: Tensor
        if self._factory.kind == "llm.int8":
            self._state.is_training = self.training
            y = library().matmul(flat, self.packed, state=self._state, bias=self.bias)
        else:
            y = library().matmul_4bit(
                flat, self.packed.t(), quant_state=self._state, bias=self.bias
            )
        return y.view(*x.shape[:-1], self.out_features)

    @property
    def qweight(self) -> Tensor:
        """The matrix as it is kept, under a name by which peft finds its device."""
        return self.packed

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to` calls. Bits and scales keep their types and follow to another device."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._rows is None:
            self.packed = fn(self.packed)
            if self._factory.kind == "llm.int8":
                self._state.CB = self.packed
                self._state.SCB = self._state.SCB.to(self.packed.device)
            else:
                self._state.to(self.packed.device)
        return self

    @property
    def nbytes(self) -> int:
        """The memory of the matrix with its scales."""
        state = self._state
        if self._factory.kind == "llm.int8":
            return int(self.packed.nbytes + state.SCB.nbytes)
        total = self.packed.nbytes
        while state is not None:  # the scales may have scales of their own
            total += state.absmax.nbytes
            state = state.state2
        return int(total)


@dataclass(frozen=True)
class BitsFactory(Factory):
    """Makes the modules of a decoder whose layers have matrices of few bits.

    Embeddings and the head stay floats, as in transformers. kind: one of KINDS.
    """

    kind: str

    @property
    def scheme(self) -> str:
        return f"{self.kind} by bitsandbytes, {super().scheme}"

    def linear(self, width: int, out: int, bias: bool) -> nn.Module:
        return BitsLinear(width, out, bias, self)

    def head(self, config: DecoderConfig) -> nn.Module:
        return super().linear(config.hidden_size, config.vocab_size, False)
