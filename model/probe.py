"""How fast this machine reads weights and multiplies: two figures from which the speed of any model
can be guessed.

    python -m model.probe [--device auto] [--threads 0]

Prints JSON. One row through matrices of StarCoder2-3B's shape is bound by reading them, as a decode
step is; 512 rows are bound by arithmetic, as a prefill is. On a CPU the weights are int8, with the
best kernel for each; on a GPU they are bfloat16.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

from model.cpu.kernels import kernels
from model.machine import available_memory, usable_cores

OUT, WIDTH, COPIES, MANY = 12288, 3072, 4, 512  # four copies are more than a cache holds
PATIENCE_S = 0.4  # for each figure


def best_seconds(
    product: Callable[[int], object], settle: Callable[[], None] = lambda: None
) -> float:
    """The least time of one call, over the copies in turn."""
    best, end, n = float("inf"), time.perf_counter() + PATIENCE_S, 0
    while n < 2 * COPIES or time.perf_counter() < end:
        started = time.perf_counter()
        product(n % COPIES)
        settle()
        if n >= COPIES:  # the first round warms up
            best = min(best, time.perf_counter() - started)
        n += 1
    return best


def on_cpu() -> tuple[float, float]:
    """Seconds for one row and for many, each with the best of the int8 kernels."""
    q = [torch.randint(-127, 128, (OUT, WIDTH), dtype=torch.int8) for _ in range(COPIES)]
    scale = torch.full((OUT,), 0.01)
    one = many = float("inf")
    for kernel in kernels().values():
        packed = [kernel.pack(each, scale) for each in q]
        if min(kernel.counts) == 1:
            row = torch.randn(1, WIDTH).to(kernel.takes)
            one = min(one, best_seconds(lambda n, k=kernel, x=row, p=packed: k.product(x, p[n])))  # type: ignore[misc]
        if max(kernel.counts) > 16:
            rows = torch.randn(MANY, WIDTH).to(kernel.takes)
            many = min(many, best_seconds(lambda n, k=kernel, x=rows, p=packed: k.product(x, p[n])))  # type: ignore[misc]
    return one, many


def on_gpu(device: torch.device) -> tuple[float, float]:
    weights = [torch.randn(OUT, WIDTH, dtype=torch.bfloat16, device=device) for _ in range(COPIES)]

    def seconds(x: Tensor) -> float:
        return best_seconds(lambda n: x @ weights[n].T, torch.cuda.synchronize)

    one, many = (
        torch.randn(rows, WIDTH, dtype=torch.bfloat16, device=device) for rows in (1, MANY)
    )
    return seconds(one), seconds(many)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads or usable_cores())
    gpu = options.device.startswith("cuda") or (
        options.device == "auto" and torch.cuda.is_available()
    )
    device = (
        torch.device(options.device if options.device != "auto" else "cuda")
        if gpu
        else torch.device("cpu")
    )
    with torch.inference_mode():
        one, many = on_gpu(device) if gpu else on_cpu()
    size = 2 if gpu else 1
    memory = torch.cuda.mem_get_info(device)[0] if gpu else available_memory()
    print(
        json.dumps(
            {
                "device": str(device),
                "precision": "bfloat16" if gpu else "int8",
                "bytes_a_weight": size,
                "read_bytes_per_s": OUT * WIDTH * size / one,
                "operations_per_s": 2 * OUT * WIDTH * MANY / many,
                "available_memory": memory,
            }
        )
    )


if __name__ == "__main__":
    main()
