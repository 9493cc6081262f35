"""Loading a checkpoint of StarCoder2-3B's full size: time and peak memory, ours against
transformers.

    python -m benchmarks.loading [--layers 30] [--sides
    ours:int8,ours:bfloat16,transformers:bfloat16] [--repeats 1]

Random weights in bfloat16 shards of a gigabyte, about 6 GB with all 30 layers, in a temporary
folder (--folder keeps and reuses them). Each side loads in a process of its own, in turn, the files
in the page cache, and then computes one token, because a side that maps the files reads them only
then. Memory is RssAnon + VmSwap, sampled every 20 ms; "before" is what the imports take. Mapped
files, which the system can drop again, are in the last column only (VmHWM). The limit to keep is
1.25 times the quantized weights and one shard.
"""

from __future__ import annotations

import argparse
import json
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import machine, table
from benchmarks.peers import ROOT, SHARD_BYTES, STARCODER2_3B, write_random
from model.machine import memory_bytes
from model.weights.folder import find_model

SAMPLE_S = 0.02
LOAD = {
    "ours": """
import sys, time
precision, folder = sys.argv[1:]
import torch
from benchmarks.sides import dtype_and_quantization
from model import load_model
begin()
model = load_model(folder, "cpu", *dtype_and_quantization(precision))
loaded()
list(model.generate([17], max_new_tokens=1))
""",
    "transformers": """
import os, sys, time
os.environ["HF_HUB_OFFLINE"] = "1"
precision, folder = sys.argv[1:]
import torch, transformers
transformers.logging.disable_progress_bar()
begin()
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, precision))
loaded()
with torch.inference_mode():
    model(torch.tensor([[17]]))
""",
}
TELL = """
def begin():
    global started
    print("0", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()

def loaded():
    print(time.perf_counter() - started, flush=True)
"""
END = """
loaded()
sys.stdin.readline()
"""
COLUMNS = {
    "load": "loaded, s",
    "token": "first token, s",
    "before": "before, MB",
    "peak": "peak, MB",
    "after": "after, MB",
    "mark": "with mapped files, peak, MB",
}


def load(kind: str, precision: str, folder: Path) -> dict[str, float]:
    """Seconds from the imports to the loaded model and to the first token; MB of memory. Raises
    SystemExit."""
    code = LOAD[kind].replace("begin()", TELL + "begin()", 1) + END
    process = subprocess.Popen(
        [sys.executable, "-c", code, precision, str(folder)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdin is not None
    peak = 0

    def line() -> float:
        nonlocal peak
        assert process.stdout is not None
        while not select.select([process.stdout], [], [], SAMPLE_S)[0]:
            peak = max(peak, memory_bytes(process.pid) or 0)
        said = process.stdout.readline()
        if not said:
            raise SystemExit(f"{kind}:{precision} could not load the model: its error stands above")
        return float(said)

    try:
        line()
        before = peak = memory_bytes(process.pid) or 0
        process.stdin.write("\n")
        process.stdin.flush()
        seconds, token = line(), line()
        after = memory_bytes(process.pid) or 0
        status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        mark = next(int(entry.split()[1]) * 1024 for entry in status if entry.startswith("VmHWM"))
    finally:
        process.kill()
        process.wait()
    figures = {"before": before, "peak": max(peak, after), "after": after, "mark": mark}
    return {"load": seconds, "token": token} | {name: size / 1e6 for name, size in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--sides", default="ours:int8,transformers:bfloat16")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the checkpoint is made, or is already")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fimls-") as name:
        folder = options.folder or Path(name) / "starcoder2-3b"
        if not (folder / "config.json").exists():
            make(folder, options.layers)
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(options.repeats):
            for side in options.sides.split(","):
                kind, _, precision = side.partition(":")
                if kind not in LOAD:
                    raise SystemExit(f"there is no side {kind!r}; choose {' or '.join(LOAD)}")
                found.setdefault(side, []).append(load(kind, precision, folder))
        model = find_model(folder)
        parameters, shards = model.parameters, sum(1 for _ in folder.glob("*.safetensors"))
        limit = (1.25 * parameters + min(SHARD_BYTES, 2 * parameters)) / 1e6
    rows: list[list[Any]] = [
        [side, *(statistics.median(one[key] for one in runs) for key in COLUMNS)]
        for side, runs in found.items()
    ]
    print(
        f"{machine()}; {time.strftime('%Y-%m-%d')}; {options.layers} layers, "
        f"{parameters / 1e9:.2f} B parameters in "
        f"{shards} shards, bfloat16; medians of {options.repeats}\n"
    )
    print(table(["", *COLUMNS.values()], rows))
    print(f"\nlimit for int8: {limit:,.0f} MB (1.25 bytes a parameter, and a shard)")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


def make(folder: Path, layers: int) -> None:
    """Raises SystemExit where there is no room."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = (2 * 49152 * 3072 + layers * 2 * 97_000_000) * 1.1  # bytes
    if (free := shutil.disk_usage(folder).free) < wanted:
        raise SystemExit(
            f"{folder} has {free / 1e9:.1f} GB free, and the checkpoint takes {wanted / 1e9:.1f}: "
            "name "
            "another --folder, or fewer --layers"
        )
    write_random(folder, STARCODER2_3B | {"num_hidden_layers": layers})


if __name__ == "__main__":
    main()
