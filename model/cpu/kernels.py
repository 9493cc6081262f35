"""Products with int8 weights on a CPU: the kernels that torch has, and which of them to use here.

A kernel multiplies rows x (rows, in) with int8 weights q (out, in) that have one scale a row, and
returns (y, factor): y * factor, which is one a row or nothing, is x @ (q * scale).T. The caller
adds its bias in the same call.

Which kernel is right on a CPU shows in a trial (some add in 16 bits and overflow), which is fast
depends on the shape, the rows, the CPU and torch's version: it is measured once a machine and
written down (model/machine.py's cache folder).
"""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.machine import processor
from model.private_files import write_private_file

log = logging.getLogger(__name__)

FEW = (1, 2, 4, 8, 16)  # rows of a decode step with drafts, or of a few typed tokens
MANY = 128  # rows of a piece of a prefill; more behave alike
ROWS = (*FEW, MANY)
REPEATS, PATIENCE_S = 7, 0.05  # fewer repeats of what takes long
BUSY_US = 3000.0  # for a product of 256 x 256 matrices, which takes 50 to 300 on a machine at rest
SMALL_BYTES = 256 * 2**20  # weights above this are kept in one form only
CLEAR = 1.2  # a second form has to be so much faster
SMALLEST = 1e-20  # divides a row of zeros
# oneDNN takes three times as long for 49,152 rows of weights at once as for six times 8,192
PIECE = 8192

Product = tuple[Tensor, Tensor | None]
"""(y, factor)"""


def piece_rows(width: int) -> int:
    """How many rows to turn into floats at once: as few as a CPU's cache holds, which is six times
    as fast."""
    return max(1, 2**19 // width)


class Kernel(ABC):
    """One way to multiply. Instances hold no weights: `pack` makes what `product` takes."""

    name: str
    raw = False  # the packed form is the int8 matrix itself, shared between kernels
    takes = torch.float32  # what x has to be, and y then is
    counts: tuple[int, ...] = ROWS  # numbers of rows for which it is worth a try

    @abstractmethod
    def pack(self, q: Tensor, scale: Tensor) -> Any:
        """q (out, in) int8, scale (out,) float32."""

    @abstractmethod
    def product(self, x: Tensor, packed: Any) -> Product:
        """x (rows, in). Each row's result is its own: the other rows do not change a bit of it."""


class Int8Pack(Kernel):
    """aten's weight-only product for few rows: bfloat16 activations, sums in float32. Memory-bound
    at one row."""

    name, raw, counts, takes = "int8pack", True, FEW, torch.bfloat16

    def pack(self, q: Tensor, scale: Tensor) -> Any:
        return q, scale.bfloat16()

    def product(self, x: Tensor, packed: Any) -> Product:
        return torch._weight_int8pack_mm(x, *packed), None


class Fbgemm(Kernel):
    """FBGEMM's integer product, on x86: exact sums of 8-bit activations with one scale a row.

    Without VNNI it adds pairs of products in 16 bits, where only weights of 7 bits do not overflow.
    (Weights of 8 and activations of 7 would not either; their error is larger:
    benchmarks/RESULTS.md.)
    """

    def __init__(self, bits: int) -> None:
        """bits: of the weights."""
        self.name = f"fbgemm{bits}"
        self._largest = 127 if bits == 8 else 64

    def pack(self, q: Tensor, scale: Tensor) -> Any:
        if self._largest != 127:
            fine, rows = q, piece_rows(q.shape[1])
            q = torch.empty_like(fine)
            for coarse, part in zip(torch.split(q, rows), torch.split(fine, rows), strict=True):
                coarse.copy_((part * (self._largest / 127)).round_())
        with _quantized_engine("fbgemm"), warnings.catch_warnings():
            # torch 2.13 announces that quantized tensors will go. Where they have gone, `kernels`
            # finds no FBGEMM.
            warnings.simplefilter("ignore")
            factors = scale.double() * (127 / self._largest)
            matrix = torch._make_per_channel_quantized_tensor(
                q, factors, torch.zeros(len(q), dtype=torch.long), 0
            )
            return torch.ops.quantized.linear_prepack(matrix, None)

    def product(self, x: Tensor, packed: Any) -> Product:
        largest = x.abs().amax(-1, True).add_(SMALLEST)
        y = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x / largest, 1 / 127, 128, packed
        )
        return y, largest


class OneDnn(Kernel):
    """oneDNN's integer product: exact sums of 8-bit activations with one scale a row; the fastest
    with AMX or VNNI."""

    name = "onednn"

    def pack(self, q: Tensor, scale: Tensor) -> Any:
        pieces = zip(torch.split(q, PIECE), torch.split(scale, PIECE), strict=True)
        return [
            (
                torch.ops.onednn.qlinear_prepack(part, None),
                factors,
                torch.zeros(len(part), dtype=torch.int32),
            )
            for part, factors in pieces
        ]

    def product(self, x: Tensor, packed: Any) -> Product:
        # The scale stays float32: a coarser one lets x / scale round to 128, which wraps to -128.
        scale = x.abs().amax(-1, True).add_(SMALLEST).div_(127)
        rounded = torch.round(x / scale).to(torch.int8)
        one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int32)
        parts = [
            torch.ops.onednn.qlinear_pointwise(
                rounded,
                one,
                zero,
                matrix,
                factors,
                zeros,
                None,
                1.0,
                0,
                torch.float32,
                "none",
                [],
                "",
            )
            for matrix, factors, zeros in packed
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1), scale


class Widened(Kernel):
    """The weights made float32 again piece by piece: for many rows where torch has no integer
    product (Arm)."""

    name, raw = "widened", True

    def pack(self, q: Tensor, scale: Tensor) -> Any:
        return q, scale

    def product(self, x: Tensor, packed: Any) -> Product:
        q, scale = packed
        pieces = zip(torch.split(q, PIECE), torch.split(scale, PIECE), strict=True)
        parts = [F.linear(x, part.float() * factors[:, None]) for part, factors in pieces]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1), None


@contextmanager
def _quantized_engine(name: str) -> Iterator[None]:
    """torch's setting for packing; products follow what was packed."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def _is_right(kernel: Kernel) -> bool:
    """Whether a kernel works on this CPU, also on the largest values there are."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(33, 192, generator=generator)
    x[:5] = torch.tensor([[1.0], [-1.0], [0.0], [1e-3], [1e3]])
    q = torch.randint(-127, 128, (160, 192), generator=generator, dtype=torch.int8)
    q[:32], q[32:64] = 127, -127
    scale = torch.rand(160, generator=generator) + 0.01
    wanted = x.double() @ (q.double() * scale.double()[:, None]).T
    try:
        packed = kernel.pack(q, scale)
        for rows in (1, 5, 33):
            y, factor = kernel.product(x[:rows].to(kernel.takes), packed)
            y = y.double() if factor is None else y.double() * factor.double()
            error = (y - wanted[:rows]).norm() / wanted[:rows].norm()
            if not error < 0.03:
                return False
    except (RuntimeError, NotImplementedError, AttributeError):  # not in this build of torch
        return False
    return True


@cache
def kernels() -> Mapping[str, Kernel]:
    """Those that are right on this machine, by name."""
    found: dict[str, Kernel] = {}
    for kernel in (Int8Pack(), OneDnn(), Fbgemm(8)):
        if _is_right(kernel):
            found[kernel.name] = kernel
    for resort in (Fbgemm(7), Widened()):  # coarser, and slower
        if found.keys() <= {Int8Pack.name} and _is_right(resort):
            found[resort.name] = resort
    return found


@dataclass(frozen=True, slots=True)
class Plan:
    """Which kernel multiplies: `few` up to few_rows rows, each of which comes out as it would
    alone; `many` beyond.

    piece: how many rows of a long prefill cost as little each as more of them would. small: the
    weights are few enough to be kept in several forms, the plain one among them, for a step on one
    thread, or one that is compiled.
    """

    many: str
    few: str
    few_rows: int
    piece: int = MANY
    small: bool = False

    @property
    def names(self) -> frozenset[str]:
        return frozenset((self.many, self.few))


Shape = tuple[int, int]
"""out, in"""
Times = Mapping[str, Mapping[int, float]]
"""way -> rows -> microseconds"""
Measure = Callable[[str, Sequence[int]], Mapping[int, float]]
"""A way, and numbers of rows -> the microseconds of each."""


def make_plan(shapes: Mapping[Shape, int], folder: Path | None = None) -> Plan:
    """The plan for a model that multiplies with `shapes`, so many times each, in a step.

    Reads what was measured before from a file in `folder`, and writes there what is new. Any doubt
    about the file, or trouble with it, only means measuring. A machine too busy for that is judged
    by rules of thumb, for this time.
    """
    size = sum(out * width * count for (out, width), count in shapes.items())
    small = size <= SMALL_BYTES
    book = Book(folder)
    wanted = {name: kernel.counts for name, kernel in kernels().items()}
    try:
        measured = {
            shape: book.times(f"{shape[0]}x{shape[1]}", wanted, partial(_measure, shape))
            for shape in shapes
        }
    except Busy:
        log.info("the machine is busy: kernels are chosen by rules of thumb")
        return by_thumb(small=small)
    total: dict[str, dict[int, float]] = {}
    for name, kernel in kernels().items():
        total[name] = {
            rows: sum(count * measured[shape][name][rows] for shape, count in shapes.items())
            for rows in kernel.counts
        }
    return choose(total, small=small)


def by_thumb(*, small: bool) -> Plan:
    """What is likely to be right where nothing could be measured."""
    many = next(name for name in kernels() if name != Int8Pack.name)
    few = Int8Pack.name if small and Int8Pack.name in kernels() else many
    return Plan(many, few, 8, small=small)


def choose(times: Times, *, small: bool) -> Plan:
    """The plan for a model whose step takes so many microseconds. A small one may keep its weights
    twice."""
    whole = [name for name in times if MANY in times[name]]
    best = {rows: min(t[rows] for t in times.values() if rows in t) for rows in ROWS}

    def slowness(name: str) -> float:
        return sum(math.log(times[name][rows] / best[rows]) for rows in ROWS)

    many = few = min(whole, key=slowness)
    if small:
        few = min(times, key=lambda name: times[name][1])
        # A prefill, too, is then free to take what is fastest for it.
        many = min(whole, key=lambda name: times[name][MANY])
        if times[few][1] * CLEAR > times[many][1]:
            few = many
    few_rows = FEW[-1]
    if few != many:
        few_rows = max((r for r in FEW if times[few][r] <= CLEAR * times[many][r]), default=1)
    enough = times[many][FEW[-1]] / FEW[-1] <= CLEAR * times[many][MANY] / MANY
    return Plan(many, few, few_rows, 2 * FEW[-1] if enough else MANY, small)


class Busy(Exception):
    """Threads of this process wait for others' turns to end: what is measured now is not true
    tomorrow."""


class Book:
    """What was measured on this machine, as a JSON file: (what, how, rows) -> microseconds."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / "kernels.json"
        self._machine = (
            f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        )
        self._machines: dict[str, Any] = {}  # a home folder may be that of several
        if self._path is not None:
            with suppress(
                OSError, ValueError, TypeError, RecursionError
            ):  # what says anything else is measured over
                self._machines = {
                    name: dict(known)
                    for name, known in dict(json.loads(self._path.read_text())).items()
                }
        self._known = self._machines.setdefault(self._machine, {})

    def times(self, what: str, wanted: Mapping[str, Sequence[int]], measure: Measure) -> Times:
        """What `measure` says of each way and its numbers of rows, or what is written down of them.
        Raises Busy."""
        known = self._read(what, wanted)
        if known is None:
            if not quiet():
                raise Busy
            known = {way: measure(way, rows) for way, rows in wanted.items()}
            self._known[what] = {
                how: {str(r): t for r, t in by_rows.items()} for how, by_rows in known.items()
            }
            if self._path is not None:
                with suppress(OSError):  # it is only measured again
                    write_private_file(self._path, json.dumps(self._machines).encode())
        return known

    def _read(self, what: str, wanted: Mapping[str, Sequence[int]]) -> Times | None:
        try:
            entry = self._known[what]
            times = {
                how: {r: float(entry[how][str(r)]) for r in counts}
                for how, counts in wanted.items()
            }
        except (KeyError, TypeError, ValueError):
            return None
        return (
            times
            if all(0 < t < math.inf for by_rows in times.values() for t in by_rows.values())
            else None
        )


def _measure(shape: Shape, name: str, counts: Sequence[int]) -> dict[int, float]:
    out, width = shape
    measured = min(out, PIECE)  # of a vocabulary's rows a piece tells enough
    kernel = kernels()[name]
    q = torch.randint(-127, 128, (measured, width), dtype=torch.int8)
    packed, found = kernel.pack(q, torch.rand(measured)), {}
    for rows in counts:
        product = partial(kernel.product, torch.randn(rows, width).to(kernel.takes), packed)
        times = [fastest_us(product)]
        if rows != MANY:  # a step has one thread where that is faster
            with threads(1):
                times.append(fastest_us(product))
        found[rows] = min(times) * out / measured
    return found


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads compute, of those that this thread of the program may have. It costs no
    time."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fastest_us(call: Callable[[], object]) -> float:
    """Microseconds of a call, the least of a few: others on the machine only make it slower."""
    call()
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < PATIENCE_S:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times) * 1e6


def quiet() -> bool:
    """Whether threads of this process run when they are asked to, and do not wait for others' turns
    to end."""
    x = torch.randn(256, 256)
    return fastest_us(lambda: x @ x) < BUSY_US
