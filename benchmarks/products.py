"""One product with quantized weights by each kernel of this machine, beside each other.

    python -m benchmarks.products [--rows 1,4,16,128,512] [--seconds 1] [SHAPE ...]

A shape is out x width, as 4864x896; those of Qwen2.5-Coder-0.5B are the default. Every call has
other weights than the one before, more of them than the cache of a CPU holds, as in a decode step.
The kernels take turns; figures are medians of microseconds, the best of each line is bold.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor

from benchmarks.figures import machine, table
from lsp_server.folders import cache_folder
from model.cpu import code_cache
from model.cpu.blocks.kernel import PRODUCT
from model.cpu.blocks.layout import BY_NAME
from model.cpu.blocks.linear import BlockLinear
from model.cpu.kernels import Int8Pack, Kernel, Product, kernels
from model.machine import usable_cores

SHAPES = ["896x896", "1152x896", "9728x896", "896x4864", "151936x896"]
BEYOND_CACHES = 64 * 2**20  # bytes of weights


class InBlocks(Kernel):
    """Our own product."""

    def __init__(self, name: str) -> None:
        """name: of the format."""
        self.name = name

    def pack(self, weights: Tensor, scale: Tensor) -> BlockLinear:
        out, width = weights.shape
        linear = BlockLinear(width, out, False, BY_NAME[self.name])
        linear.fill(0, weights * scale[:, None])
        return linear

    def product(self, inputs: Tensor, packed: BlockLinear) -> Product:
        return packed(inputs), None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shapes", nargs="*", default=SHAPES)
    parser.add_argument("--rows", default="1,4,16,128,512")
    parser.add_argument("--seconds", type=float, default=1.0, help="for a kernel and a figure")
    options = parser.parse_args()
    torch.set_num_threads(usable_cores())
    torch.set_grad_enabled(False)
    folder = code_cache.code_folder(cache_folder())
    found = list(kernels().values())
    if folder is not None:
        if not code_cache.is_intact(folder):
            with code_cache.start(folder, awaited=True) as compiler:
                compiler.wait()
        PRODUCT.load(folder)
        found += [InBlocks(name) for name in ("q4_0", "q5_0", "q8_0")]
    lines = []
    for shape in options.shapes:
        out, width = map(int, shape.split("x"))
        for rows in map(int, options.rows.split(",")):
            suitable = [k for k in found if rows <= 16 or k.name != Int8Pack.name]
            times = measure(suitable, out, width, rows, options.seconds)
            best = min(times.values())
            cells = [None if k not in times else f"{times[k]:,.0f}" for k in found]
            cells = [
                f"**{cell}**" if times.get(k) == best else cell
                for k, cell in zip(found, cells, strict=True)
            ]
            lines.append([f"{shape}, {rows} rows", *cells])
    print(machine())
    print(table(["µs a call", *(kernel.name for kernel in found)], lines))


def measure(
    found: list[Kernel], out: int, width: int, rows: int, seconds: float
) -> dict[Kernel, float]:
    """Microseconds of a call of each kernel."""
    weights = torch.randint(-127, 128, (out, width), dtype=torch.int8)
    copies = max(2, BEYOND_CACHES // (out * width))
    calls: dict[Kernel, Callable[[], object]] = {}
    for kernel in found:
        packed = cycle([kernel.pack(weights.clone(), torch.rand(out)) for _ in range(copies)])
        x = torch.randn(rows, width).to(kernel.takes)
        calls[kernel] = lambda kernel=kernel, x=x, packed=packed: kernel.product(x, next(packed))
    times: dict[Kernel, list[float]] = {kernel: [] for kernel in found}
    for call in calls.values():
        call()
    until = time.perf_counter() + seconds * len(found)
    while time.perf_counter() < until or min(map(len, times.values())) < 5:
        for kernel, call in calls.items():
            started = time.perf_counter()
            call()
            times[kernel].append(time.perf_counter() - started)
    return {kernel: statistics.median(seen) * 1e6 for kernel, seen in times.items()}


if __name__ == "__main__":
    main()
