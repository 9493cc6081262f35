"""Which kernels a model multiplies with: chosen by the times of each kernel on this machine.

Which kernel is fast depends on the shape of the matrix, the number of rows, the CPU and the version
of torch. So each is measured once a machine (measurements.py).
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from model.cpu.interleaved.kernel import INTERLEAVED, can_be_made, load_made
from model.cpu.kernels import FEW, MANY, PIECE, Int8Pack, kernels
from model.cpu.measurements import Busy, Measurements, Times, fastest_us, threads

log = logging.getLogger(__name__)

SMALL_BYTES = 256 * 2**20  # weights above this are kept in one form only
CLEAR = 1.2  # a second form has to be so much faster

MatrixShape = tuple[int, int]
"""out, in"""


@dataclass(frozen=True, slots=True)
class Plan:
    """The kernels of a model, by name: `few` for up to few_rows rows, and `many` for more.

    With `few` the result of a row does not depend on the other rows.

    prefill_chunk: the chunk size from which larger chunks are no faster per row.
    small: the weights are few enough to be kept in several forms. The plain one is among them, for
    a step that is compiled or runs on one thread.
    """

    many: str
    few: str
    few_rows: int
    prefill_chunk: int = MANY
    small: bool = False

    @property
    def names(self) -> frozenset[str]:
        return frozenset((self.many, self.few))


def make_plan(shapes: Mapping[MatrixShape, int], folder: Path | None = None) -> Plan:
    """The plan for a model whose step multiplies with `shapes`, each so many times.

    folder: where the times are kept (Measurements). On a machine that is too busy to measure, the
    plan follows rules of thumb, and the next start measures again. A large model's weights are
    interleaved also where the machine code for that is still to be compiled, to which a small one's
    start does not pay attention (compiled_step.py).
    """
    small = is_small(shapes)
    if not small and folder is not None and not load_made(folder) and can_be_made(folder):
        return Plan(INTERLEAVED.name, INTERLEAVED.name, FEW[-1])
    measurements = Measurements(folder)
    wanted = {name: kernel.counts for name, kernel in kernels().items()}
    totals: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    try:
        for (out, width), count in shapes.items():
            measure = partial(product_us, (out, width))
            times = measurements.times(f"{out}x{width}", wanted, measure)
            for name, counts in wanted.items():
                for rows in counts:
                    totals[name][rows] += count * times[name][rows]
    except Busy:
        log.info("the machine is busy: kernels are chosen by rules of thumb")
        return by_thumb(small=small)
    return choose(totals, small=small, mappable=[k.name for k in kernels().values() if k.mappable])


def is_small(shapes: Mapping[MatrixShape, int]) -> bool:
    """Whether a model that multiplies with these is one whose Plan is small."""
    return sum(out * width * count for (out, width), count in shapes.items()) <= SMALL_BYTES


def by_thumb(*, small: bool) -> Plan:
    """The plan that is likely to be right where nothing could be measured."""
    many = next(name for name in kernels() if name != Int8Pack.name)
    if INTERLEAVED.name in kernels():
        many = INTERLEAVED.name
    few = many
    if small and Int8Pack.name in kernels():
        few = Int8Pack.name
    return Plan(many, few, 8, small=small)


def choose(times: Times, *, small: bool, mappable: Sequence[str] = ()) -> Plan:
    """The plan for a model whose step takes so many microseconds with each kernel.

    A small model may keep its weights in two forms, and then takes the fastest kernel for one row
    and the fastest for a prefill. A large one takes the best compromise, and of nearly equal ones
    one that can be mapped: its next start then takes seconds less (model/prepared).
    """
    for_any_count = [name for name in times if MANY in times[name]]
    if small:
        few = min(times, key=lambda name: times[name][1])
        many = min(for_any_count, key=lambda name: times[name][MANY])
        if times[few][1] * CLEAR > times[many][1]:
            few = many
    else:
        scores = {name: _mean_log(times[name]) for name in for_any_count}
        many = min(scores, key=scores.__getitem__)
        candidates = [name for name in scores if name in mappable]
        best = min(candidates, key=scores.__getitem__, default=many)
        if scores[best] < scores[many] + math.log(CLEAR):
            many = best
        few = many
    few_rows = FEW[-1]
    if few != many:
        as_fast = [rows for rows in FEW if times[few][rows] <= CLEAR * times[many][rows]]
        few_rows = max(as_fast, default=1)
    chunk = MANY
    if times[many][FEW[-1]] / FEW[-1] <= CLEAR * times[many][MANY] / MANY:
        chunk = 2 * FEW[-1]
    return Plan(many, few, few_rows, chunk, small)


def _mean_log(times: Mapping[int, float]) -> float:
    return sum(map(math.log, times.values())) / len(times)


def product_us(shape: MatrixShape, name: str, counts: Sequence[int]) -> dict[int, float]:
    """Microseconds by rows of a kernel's product with a matrix of that shape."""
    out, width = shape
    measured = min(out, PIECE)  # a piece of a vocabulary's rows tells enough
    kernel = kernels()[name]
    q = torch.randint(-127, 128, (measured, width), dtype=torch.int8)
    packed = kernel.pack(q, torch.rand(measured))
    found = {}
    for rows in counts:
        product = partial(kernel.product, torch.randn(rows, width).to(kernel.takes), packed)
        us = fastest_us(product)
        if rows != MANY:  # a step has one thread where that is faster
            with threads(1):
                us = min(us, fastest_us(product))
        found[rows] = us * out / measured
    return found
