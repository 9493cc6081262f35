"""Prefill and decode of the bundled model on an idle and on a busy machine, by how long OpenMP's
threads spin.

    python -m benchmarks.busy_machine [--repeats 3]

"busy" runs an endless matrix product on all cores beside it, in a session of its own, as a build in
another terminal would be (Linux shares the processor among sessions first, so that its being nice
would not help).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

VARIANTS: dict[str, dict[str, str]] = {
    "OpenMP's default": {},
    "GOMP_SPINCOUNT=1000 (fimls)": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
MEASURE = """
import time, inspect
from model import load_model
from model.engine import worker
m = load_model("bundled")
ids = m.tokenizer.encode(inspect.getsource(worker))[:900]
for _ in range(2):  # the second is warm
    start = time.perf_counter()
    tokens = m.generate(ids, max_new_tokens=65)
    next(tokens)
    middle = time.perf_counter()
    count = len(list(tokens))
    end = time.perf_counter()
print(len(ids) / (middle - start), (end - middle) / count * 1000)
"""
BURN = "import torch\na = torch.randn(1500, 1500)\nwhile True: a @ a"


def main(repeats: int) -> None:
    for busy in (False, True):
        burner = (
            subprocess.Popen([sys.executable, "-c", BURN], start_new_session=True) if busy else None
        )
        try:
            rows: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
            for _ in range(repeats):
                for name, extra in VARIANTS.items():
                    done = subprocess.run(
                        [sys.executable, "-c", MEASURE],
                        env=os.environ | extra,
                        capture_output=True,
                        text=True,
                        check=True,
                    )
                    prefill, decode = map(float, done.stdout.split())
                    rows[name].append((prefill, decode))
        finally:
            if burner is not None:
                burner.kill()
                burner.wait()
        for name, figures in rows.items():
            prefill, decode = (statistics.median(column) for column in zip(*figures, strict=True))
            print(
                f"{'busy' if busy else 'idle'}  {name:28} prefill {prefill:7.0f} tokens/s   "
                f"decode {decode:6.2f} ms",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    main(parser.parse_args().repeats)
