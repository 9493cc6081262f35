"""Measures how fast this machine reads weights and multiplies: from these two figures the speed of
any model can be estimated.

    python -m model.probe [--device auto] [--threads 0] [--cache FOLDER]

Prints JSON. One row through matrices of StarCoder2-3B's shape is bound by reading them, as a decode
step is; 512 rows are bound by arithmetic, as a prefill is. On a CPU the weights have 8 bits: in
blocks, where an engine has made machine code for those in the cache folder, else with the best of
torch's kernels for each figure. On a GPU they are bfloat16.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.cpu import code_cache
from model.cpu.blocks.kernel import PRODUCT
from model.cpu.blocks.layout import BY_NAME
from model.cpu.blocks.linear import BlockLinear
from model.cpu.kernels import Int8Pack, Kernel, kernels
from model.machine import available_memory, processor, usable_cores

OUT = 12288
WIDTH = 3072
COPIES = 4  # more than a CPU's cache holds
ROWS = 512
PATIENCE_S = 0.6  # for each figure
# Of the speed of one product, what a whole step on a CPU reaches, which also attends, norms and
# waits for threads: with torch's products 0.4 and 0.5 (0.5B and 1.5B parameters,
# benchmarks/RESULTS.md), compiled 0.9 (six layers of 3B's shape).
STEP_SHARE = 0.45
COMPILED_SHARE = 0.9


def best_seconds(product: Callable[[int], object]) -> float:
    """The least time of one call, over the copies of the matrix in turn."""
    best = float("inf")
    end = time.perf_counter() + PATIENCE_S
    n = 0
    while n < 2 * COPIES or time.perf_counter() < end:
        started = time.perf_counter()
        product(n % COPIES)
        seconds = time.perf_counter() - started
        if n >= COPIES:  # the first round warms up
            best = min(best, seconds)
        n += 1
    return best


def on_cpu() -> tuple[float, float]:
    """Seconds for one row and for many: in blocks of 8 bits where there is machine code for that,
    else with the best of torch's int8 kernels."""
    if PRODUCT.ready:
        matrices = [BlockLinear(WIDTH, OUT, False, BY_NAME["q8_0"]) for _ in range(COPIES)]
        for matrix in matrices:
            matrix.fill(0, torch.randn(OUT, WIDTH))
        one, many = torch.randn(1, WIDTH), torch.randn(ROWS, WIDTH)
        return best_seconds(lambda n: matrices[n](one)), best_seconds(lambda n: matrices[n](many))
    numbers = [torch.randint(-127, 128, (OUT, WIDTH), dtype=torch.int8) for _ in range(COPIES)]
    found = list(kernels().values())
    for_many = [kernel for kernel in found if kernel.name != Int8Pack.name]
    return (
        min(_kernel_seconds(kernel, numbers, 1) for kernel in found),
        min(_kernel_seconds(kernel, numbers, ROWS) for kernel in for_many),
    )


def float_operations_per_s() -> float:
    """Of float32 products with many rows, on a CPU."""
    weight = torch.randn(WIDTH, WIDTH)
    x = torch.randn(ROWS, WIDTH)
    return 2 * WIDTH * WIDTH * ROWS / best_seconds(lambda _: x @ weight.T)


def _kernel_seconds(kernel: Kernel, matrices: list[Tensor], rows: int) -> float:
    scale = torch.full((OUT,), 0.01)
    packed = [kernel.pack(matrix, scale) for matrix in matrices]
    x = torch.randn(rows, WIDTH).to(kernel.takes)
    return best_seconds(lambda n: kernel.product(x, packed[n]))


def on_gpu(device: torch.device) -> tuple[float, float]:
    """Seconds for one row and for many."""
    random = partial(torch.randn, dtype=torch.bfloat16, device=device)
    weights = [random(OUT, WIDTH) for _ in range(COPIES)]

    def seconds(x: Tensor) -> float:
        def product(n: int) -> None:
            _ = x @ weights[n].T
            torch.cuda.synchronize()

        return best_seconds(product)

    return seconds(random(1, WIDTH)), seconds(random(ROWS, WIDTH))


def choose_device(name: str) -> torch.device:
    """A GPU where it is asked for or, with "auto", where there is one; else the CPU."""
    if name.startswith("cuda"):
        return torch.device(name)
    if name == "auto" and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads or usable_cores())
    code = None if options.cache is None else code_cache.code_folder(options.cache)
    if code is not None and code_cache.is_intact(code):
        PRODUCT.load(code)
    device = choose_device(options.device)
    found: dict[str, Any] = {
        "device": str(device),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    with torch.inference_mode():
        if device.type == "cuda":
            one, many = on_gpu(device)
            weight_bytes = 2
            found |= {
                "precision": "bfloat16",
                "gpu": torch.cuda.get_device_name(device),
                "available_memory": torch.cuda.mem_get_info(device)[0],
            }
        else:
            one, many = on_cpu()
            one /= COMPILED_SHARE if PRODUCT.ready else STEP_SHARE
            weight_bytes = 1
            found |= {
                "precision": "int8",
                "available_memory": available_memory(),
                "float_operations_per_s": float_operations_per_s(),
            }
    found["bytes_a_weight"] = weight_bytes
    found["read_bytes_per_s"] = OUT * WIDTH * weight_bytes / one
    found["operations_per_s"] = 2 * OUT * WIDTH * ROWS / many
    print(json.dumps(found))


if __name__ == "__main__":
    main()
