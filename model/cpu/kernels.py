"""torch's products with int8 weights on a CPU, one class each.

A kernel multiplies inputs (rows, in) with int8 weights (out, in) that have one scale a row. It
returns (result, factor): result * factor is inputs @ (weights * scale).T, and factor is (rows, 1)
or None, which stands for 1. So the caller can add its bias in the same call.

Whether a kernel is right on a CPU is tried out, since some add in 16 bits and overflow.
"""

from __future__ import annotations

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.cpu.measurements import threads

FEW_ROWS = 8  # up to so many, a kernel for few rows is as fast as one for any number
SMALLEST = 1e-20  # divides a row of zeros
REFERENCE_CODE = 30  # times slower than float32 weights: no kernel is that slow by itself
READ_AT_ONCE = 16  # weights, by aten's product, which reads past the end of other widths
# oneDNN takes three times as long for 49,152 rows of weights at once as for six times 8,192
PIECE = 8192

Product = tuple[Tensor, Tensor | None]
"""(result, factor)"""


def piece_rows(width: int) -> int:
    """How many rows to widen at once: as few as a CPU's cache holds, which is six times as fast."""
    return max(1, 2**19 // width)


class Kernel(ABC):
    """One way to multiply. Instances hold no weights: `product` takes what `pack` makes."""

    name: str
    raw = False  # the packed form is the int8 matrix itself, which kernels can share
    takes = torch.float32  # the type of inputs and result

    @abstractmethod
    def pack(self, weights: Tensor, scale: Tensor) -> Any:
        """weights (out, in) int8, scale (out,) float32."""

    @abstractmethod
    def product(self, inputs: Tensor, packed: Any) -> Product:
        """inputs (rows, in). No bit of a row's result depends on the other rows."""


class Int8Pack(Kernel):
    """aten's product for few rows: bfloat16 activations, sums in float32. Bound by memory."""

    name = "int8pack"
    raw = True
    takes = torch.bfloat16

    def pack(self, weights: Tensor, scale: Tensor) -> Any:
        if weights.shape[1] % READ_AT_ONCE:
            weights = _padded(weights)
        return weights, scale.bfloat16()

    def product(self, inputs: Tensor, packed: Any) -> Product:
        if inputs.shape[1] % READ_AT_ONCE:
            inputs = _padded(inputs)
        return torch._weight_int8pack_mm(inputs, *packed), None


class Fbgemm(Kernel):
    """FBGEMM's integer product, on x86: exact sums of 8-bit activations with one scale a row.

    Without VNNI it adds pairs of products in 16 bits, where only weights of 7 bits do not overflow.
    (Weights of 8 and activations of 7 would not either; their error is larger:
    benchmarks/RESULTS.md.)
    """

    def __init__(self, bits: int) -> None:
        """bits: of the weights, 7 or 8."""
        self.name = f"fbgemm{bits}"
        self._largest = 127 if bits == 8 else 64

    def pack(self, weights: Tensor, scale: Tensor) -> Any:
        if self._largest != 127:
            weights = self._rounded(weights)
        with _quantized_engine("fbgemm"), warnings.catch_warnings():
            # torch 2.13 announces that quantized tensors will go. Where they have gone, `kernels`
            # finds no FBGEMM.
            warnings.simplefilter("ignore")
            factors = scale.double() * (127 / self._largest)
            zeros = torch.zeros(len(weights), dtype=torch.long)
            matrix = torch._make_per_channel_quantized_tensor(weights, factors, zeros, 0)
            return torch.ops.quantized.linear_prepack(matrix, None)

    def _rounded(self, weights: Tensor) -> Tensor:
        """The weights in fewer bits."""
        rows = piece_rows(weights.shape[1])
        coarse = torch.empty_like(weights)
        for into, part in zip(torch.split(coarse, rows), torch.split(weights, rows), strict=True):
            into.copy_((part * (self._largest / 127)).round_())
        return coarse

    def product(self, inputs: Tensor, packed: Any) -> Product:
        largest = inputs.abs().amax(-1, True).add_(SMALLEST)
        result = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            inputs / largest, 1 / 127, 128, packed
        )
        return result, largest


class OneDnn(Kernel):
    """oneDNN's integer product, exact sums as FBGEMM's: the fastest with AMX or VNNI."""

    name = "onednn"

    def pack(self, weights: Tensor, scale: Tensor) -> Any:
        parts = []
        for part, factors in _pieces(weights, scale):
            matrix = torch.ops.onednn.qlinear_prepack(part, None)
            parts.append((matrix, factors, torch.zeros(len(part), dtype=torch.int32)))
        return parts

    def product(self, inputs: Tensor, packed: Any) -> Product:
        # The scale stays float32: with a coarser one inputs / scale may round to 128, which wraps
        # to -128.
        scale = inputs.abs().amax(-1, True).add_(SMALLEST).div_(127)
        rounded = torch.round(inputs / scale).to(torch.int8)
        one = torch.ones(1)
        zero = torch.zeros(1, dtype=torch.int32)
        multiply = torch.ops.onednn.qlinear_pointwise
        # no bias, an output scale of 1 and zero point of 0, nothing applied to the result
        rest: Any = (None, 1.0, 0, torch.float32, "none", [], "")
        parts = [multiply(rounded, one, zero, *part, *rest) for part in packed]
        return _joined(parts), scale


class Widened(Kernel):
    """Float32 products, the weights widened piece by piece: where torch has no integer product."""

    name = "widened"
    raw = True

    def pack(self, weights: Tensor, scale: Tensor) -> Any:
        return weights, scale

    def product(self, inputs: Tensor, packed: Any) -> Product:
        parts = []
        for part, factors in _pieces(*packed):
            parts.append(F.linear(inputs, part.float() * factors[:, None]))
        return _joined(parts), None


def _padded(matrix: Tensor) -> Tensor:
    """matrix (n, width) with columns of zeros up to a width that aten's product takes."""
    return F.pad(matrix, (0, -matrix.shape[1] % READ_AT_ONCE))


def _pieces(weights: Tensor, scale: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(weights, PIECE), torch.split(scale, PIECE), strict=True)


def _joined(parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts, -1)


@contextmanager
def _quantized_engine(name: str) -> Iterator[None]:
    """torch's setting for packing; products follow what was packed."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


@cache
def kernels() -> Mapping[str, Kernel]:
    """The kernels that are right on this machine, and no mere stand-ins, by name: the fastest first
    of those for any number of rows."""
    found: dict[str, Kernel] = {}
    for kernel in (Int8Pack(), OneDnn(), Fbgemm(8)):
        if is_right(kernel) and not is_reference_code(kernel):
            found[kernel.name] = kernel
    for resort in (Fbgemm(7), Widened()):  # coarser, and slower
        if found.keys() <= {Int8Pack.name} and is_right(resort):
            found[resort.name] = resort
    return found


def is_reference_code(kernel: Kernel) -> bool:
    """Whether a kernel computes number by number, as oneDNN does on CPUs that it has no int8 code
    for. It is then a thousand times slower, and to measure it with a model's matrices would make
    the first start of an engine wait for a quarter of a minute (benchmarks/RESULTS.md)."""
    weights = torch.ones(160, 192, dtype=torch.int8)
    scale = torch.ones(160)

    def seconds(other: Kernel) -> float:
        packed = other.pack(weights, scale)
        inputs = torch.ones(16, 192, dtype=other.takes)
        times = []
        for _ in range(4):  # the first call warms up, and others on the machine slow some down
            started = time.perf_counter()
            other.product(inputs, packed)
            times.append(time.perf_counter() - started)
        return min(times)

    with threads(1):  # nor does a second thread wait for a core
        return seconds(kernel) > REFERENCE_CODE * seconds(Widened())


def is_right(kernel: Kernel) -> bool:
    """Whether a kernel works on this CPU, also on the largest values there are."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(33, 192, generator=generator)
    inputs[:5] = torch.tensor([[1.0], [-1.0], [0.0], [1e-3], [1e3]])
    weights = torch.randint(-127, 128, (160, 192), generator=generator, dtype=torch.int8)
    weights[:32] = 127
    weights[32:64] = -127
    scale = torch.rand(160, generator=generator) + 0.01
    wanted = inputs.double() @ (weights.double() * scale.double()[:, None]).T
    try:
        packed = kernel.pack(weights, scale)
        for rows in (1, 5, 33):
            result, factor = kernel.product(inputs[:rows].to(kernel.takes), packed)
            result = result.double()
            if factor is not None:
                result *= factor.double()
            error = (result - wanted[:rows]).norm() / wanted[:rows].norm()
            if not error < 0.03:  # nor is NaN
                return False
    except (RuntimeError, NotImplementedError, AttributeError):  # not in this build of torch
        return False
    return True


@dataclass(frozen=True, slots=True)
class Plan:
    """The kernels of a model, by name: `few` for up to few_rows rows, and `many` for more.

    With `few` the result of a row does not depend on the other rows.
    """

    many: str
    few: str
    few_rows: int

    @property
    def names(self) -> frozenset[str]:
        return frozenset((self.many, self.few))


def make_plan(*, small: bool) -> Plan:
    """The plan for a model. small: its weights are kept in two forms, where one is faster."""
    many = next(name for name in kernels() if name != Int8Pack.name)
    few = many
    if Int8Pack.name in kernels() and (small or kernels()[many].raw):
        few = Int8Pack.name
    return Plan(many, few, FEW_ROWS)
