"""On one CUDA device: decode, prefill, few-bit weights, first token and keystrokes at
StarCoder2-3B's and 7B's shape.

    python -m benchmarks.gpu --out FOLDER [--parts peaks,decode,rows,prefill,keys,bits,start,peer]
    [--shapes 3b,7b]

Weights are random and made on the device; nothing is read or fetched. Every figure has a reference
from the same run: a step beside the time that its weights and cache take to be read, a prefill
beside a large bfloat16 matrix product, and both beside transformers' generate. The parts that would
begin after --minutes are left out and named. FOLDER gets gpu.md and gpu.json, which are written
again after each part.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import shown, table
from benchmarks.gpu_models import (
    SHAPES,
    cache_bytes,
    cache_of,
    make_decoder,
    make_reference,
    matrices,
    memory_speeds,
    random_ids,
    record,
    recorder,
    reference_speed,
    seconds,
    synchronize,
    weight_bytes,
)
from model.decoder.decoder import Decoder
from model.errors import ModelError
from model.generation.generate import GenerationOptions, generate, prefill
from model.gpu.cuda_graphs import SIZES, Graphs
from model.precision.bitsandbytes_linear import library
from model.prefix_cache.memory import PrefixCache

ROOT = Path(__file__).parent.parent
PARTS = ("peaks", "decode", "rows", "prefill", "keys", "bits", "start", "peer")
CONTEXTS = (1024, 4096, 16384)
CARD_MB = {
    "7b": {0: 14616.29, 8: 7670.52, 4: 4197.64}
}  # the model card's; 268 MB of each are tables of rotations
FIRST_TOKEN = """
import sys, time
started = time.time()
import torch
from benchmarks.gpu_models import SHAPES, make_decoder, random_ids, record
from model.generation.generate import prefill
imported = time.time()
decoder = make_decoder(SHAPES[sys.argv[1]], torch.device("cuda"), torch.bfloat16)
torch.cuda.synchronize()
record(decoder)
made = time.time()
ids = random_ids(int(sys.argv[2]), torch.device("cpu"), decoder.config.vocab_size).tolist()
logits = prefill(decoder, decoder.new_cache(), ids, None, 512)
int(logits[-1].argmax())
print(started, imported, made, time.time())
"""


class Bench:
    """One run: its device, its limits, its figures, by part and shape."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        shapes: dict[str, dict[str, Any]],
        scale: int,
    ) -> None:
        """scale: what lengths and repeats are divided by; 1, but in tests."""
        self.device, self.dtype, self.shapes, self._scale = device, dtype, shapes, scale
        self.figures: dict[str, Any] = {}
        self.bandwidth = self.peak = float("nan")
        self._decoders: dict[str, Decoder] = {}  # the one in use

    def scaled(self, number: int) -> int:
        return max(2, number // self._scale)

    def decoder(self, name: str) -> Decoder:
        if name not in self._decoders:
            self.clear()
            self._decoders[name] = make_decoder(self.shapes[name], self.device, self.dtype)
            record(self._decoders[name])
        return self._decoders[name]

    def clear(self) -> None:
        self._decoders.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # ---- parts: each takes a shape's name and returns rows of its table, by column ----

    @torch.inference_mode()
    def peaks(self) -> list[dict[str, Any]]:
        """Read bandwidth: the best of a sum, a copy (half of what it moves) and a matrix times a
        vector."""
        speeds = memory_speeds(self.device, self.dtype, self.scaled(262144), self.scaled(16384))
        self.bandwidth = max(speeds.values())
        self.clear()
        found: list[dict[str, Any]] = [
            {"": name, "GB/s": speed / 1e9, "TFLOP/s": None} for name, speed in speeds.items()
        ]
        size = self.scaled(8192)
        a = torch.randn(size, size, device=self.device, dtype=self.dtype)
        seconds(lambda: a @ a, self.device, 3)
        self.peak = 2 * size**3 / min(seconds(lambda: a @ a, self.device, 10) for _ in range(4))
        return [
            *found,
            {"": f"matrix product of {size}", "GB/s": None, "TFLOP/s": self.peak / 1e12},
        ]

    @torch.inference_mode()
    def decode(self, name: str) -> list[dict[str, Any]]:
        """Tokens/s: steps alone, without graphs too, and generate with its choice of tokens on the
        CPU."""
        decoder, steps = self.decoder(name), self.scaled(128)
        found = []
        for context in CONTEXTS:
            length = min(self.scaled(context), decoder.config.max_positions - steps - 8)
            # The rows go over the mean of what they see.
            floor = (
                weight_bytes(decoder) + cache_bytes(decoder, length + steps // 2)
            ) / self.bandwidth
            graphs = self.step_seconds(decoder, length, steps)
            few, costs = decoder.step, decoder.row_costs
            decoder.use_step(None)
            plain = self.step_seconds(decoder, length, self.scaled(32))
            decoder.use_step(few, costs)
            generated = self.generate_seconds(decoder, length, steps)
            found.append(
                {
                    "shape": name,
                    "context": length,
                    "ours, tokens/s": 1 / graphs,
                    "floor, tokens/s": 1 / floor,
                    "share of the floor": floor / graphs,
                    "without graphs": 1 / plain,
                    "through generate": 1 / generated,
                    "GB read": floor * self.bandwidth / 1e9,
                }
            )
        return found

    def step_seconds(self, decoder: Decoder, length: int, steps: int, rows: int = 1) -> float:
        """The best of three runs of so many greedy steps, the tokens left on the device."""
        cache = cache_of(decoder, length, steps * rows + 8)
        token = random_ids(rows, self.device, decoder.config.vocab_size)

        def run() -> None:
            nonlocal token
            cache.trim(length)
            for _ in range(steps):
                token = decoder(token[None], cache=cache, logits_to_keep=rows).logits[0].argmax(-1)

        seconds(run, self.device)  # the first time is for recording
        seconds(run, self.device)
        return min(seconds(run, self.device) for _ in range(3)) / steps

    def generate_seconds(self, decoder: Decoder, length: int, steps: int) -> float:
        """A token of generate() after such a cache, without the first."""
        found = []
        for _ in range(3):
            cache = cache_of(decoder, length, steps + 8)
            ids = random_ids(length + 1, torch.device("cpu"), decoder.config.vocab_size).tolist()
            options = GenerationOptions(max_new_tokens=steps + 1)
            tokens = generate(decoder, cache, ids, Silent(), options)
            next(tokens)
            started = time.perf_counter()
            count = sum(1 for _ in tokens)
            found.append((time.perf_counter() - started) / count)
        return min(found)

    @torch.inference_mode()
    def rows(self, name: str) -> list[dict[str, Any]]:
        """Steps of several rows, and what recording takes; how far their logits are from the plain
        path's."""
        decoder, length = self.decoder(name), self.scaled(4096)
        found, steps = [], self.scaled(32)
        one = self.step_seconds(decoder, length, steps)
        for rows in SIZES:
            decoder.use_step(Graphs(decoder, recorder(decoder)))
            cache = cache_of(decoder, length, 64)
            ids = random_ids(rows, self.device, decoder.config.vocab_size)[None]
            logits, times = [], []
            for _ in range(3):  # as it is, recorded, started
                cache.trim(length)
                synchronize(self.device)
                started = time.perf_counter()
                logits.append(decoder(ids, cache=cache).logits[0].float())
                synchronize(self.device)
                times.append(time.perf_counter() - started)
            few, costs = decoder.step, decoder.row_costs
            decoder.use_step(None)
            cache.trim(length)
            plain = decoder(ids, cache=cache).logits[0].float()
            decoder.use_step(few, costs)
            step = one if rows == 1 else self.step_seconds(decoder, length, steps, rows)
            found.append(
                {
                    "shape": name,
                    "rows": rows,
                    "ms": step * 1e3,
                    "of one row": step / one,
                    "the first, ms": times[0] * 1e3,
                    "recording, ms": times[1] * 1e3,
                    "distance from plain": f"{distance(logits[-1], plain):.1e}",
                    "recorded = as it is": str(torch.equal(logits[0], logits[-1])),
                }
            )
        record(decoder)
        return found

    @torch.inference_mode()
    def prefill(self, name: str) -> list[dict[str, Any]]:
        """4,096 positions, in the engine's chunks and in one."""
        decoder, total = self.decoder(name), self.scaled(4096)
        ids = random_ids(total, torch.device("cpu"), decoder.config.vocab_size).tolist()
        c, found = decoder.config, []
        numbers = sum(
            p.numel()
            for n, p in decoder.layers.named_parameters()
            if p.dim() == 2 and "_norm" not in n
        )
        head = c.vocab_size * c.hidden_size
        attention = (
            2 * c.num_layers * c.num_heads * c.head_dim * total**2
        )  # twice two products, half of each is hidden
        flops = 2 * (numbers * total + head) + attention
        for chunk in (512, 2048, 4096):

            def run(chunk: int = self.scaled(chunk)) -> None:
                prefill(decoder, decoder.new_cache(total), ids, None, chunk)

            seconds(run, self.device)
            took = min(seconds(run, self.device) for _ in range(4))
            found.append(
                {
                    "shape": name,
                    "positions": total,
                    "chunk": self.scaled(chunk),
                    "ms": took * 1e3,
                    "tokens/s": total / took,
                    "TFLOP/s": flops / took / 1e12,
                    "share of the peak": flops / took / self.peak,
                }
            )
        return found

    def keys(self, name: str) -> list[dict[str, Any]]:
        """Keystrokes behind 8,192 positions: each adds a token or three to the last prompt; now and
        then it jumps."""
        decoder, new = self.decoder(name), self.scaled(16)
        prefixes = PrefixCache(decoder, 4 * 2**30)
        ids = random_ids(self.scaled(8192), torch.device("cpu"), decoder.config.vocab_size).tolist()
        typed = random_ids(
            self.scaled(256), torch.device("cpu"), decoder.config.vocab_size, seed=2
        ).tolist()
        times: dict[str, list[tuple[float, float]]] = {"first": [], "typed": [], "jump of 256": []}
        at = 0
        for key in range(self.scaled(60)):
            kind = "first" if key == 0 else "jump of 256" if key % 20 == 10 else "typed"
            if kind == "jump of 256":  # the last 256 positions become others
                size = self.scaled(256)
                ids = (
                    ids[:-size]
                    + random_ids(size, torch.device("cpu"), decoder.config.vocab_size, key).tolist()
                )
            elif kind == "typed":
                count = 1 + key % 3
                ids, at = ids + [typed[(at + i) % len(typed)] for i in range(count)], at + count
            started = time.perf_counter()
            lease, said, first = prefixes.lease(ids), [], 0.0
            options = GenerationOptions(max_new_tokens=new)
            for token in generate(decoder, lease.cache, ids, Silent(), options):
                first = first or time.perf_counter() - started
                said.append(token.id)
            times[kind].append((first, time.perf_counter() - started))
            prefixes.give_back(lease, ids + said)
        return [
            {
                "shape": name,
                "key": kind,
                "keys": len(took),
                "context": len(ids),
                "ms to the first token": statistics.median(first for first, _ in took) * 1e3,
                f"ms to {new} tokens": statistics.median(whole for _, whole in took) * 1e3,
                "slowest, ms": max(whole for _, whole in took) * 1e3,
            }
            for kind, took in times.items()
            if took
        ]

    @torch.inference_mode()
    def bits(self, name: str) -> list[dict[str, Any]]:
        """bitsandbytes' memory and speed beside bfloat16's, and how far its logits are from it.
        Raises ModelError."""
        library()
        found: list[dict[str, Any]] = []
        ids, exact = random_ids(64, self.device, self.shapes[name]["vocab_size"]), None
        for bits in (0, 8, 4):
            self.clear()
            before = self.allocated()
            decoder = make_decoder(self.shapes[name], self.device, self.dtype, bits)
            gc.collect()
            held = (self.allocated() - before) / 1e6 if self.device.type == "cuda" else None
            counted = sum(p.nbytes for p in decoder.parameters()) + sum(
                m.nbytes for m in matrices(decoder)
            )
            logits = decoder(ids[None]).logits[0].float()
            exact = logits if exact is None else exact
            if not bits:
                record(decoder)
            step = self.step_seconds(decoder, self.scaled(1024), self.scaled(32))
            floor = (
                weight_bytes(decoder) + cache_bytes(decoder, self.scaled(1024))
            ) / self.bandwidth
            found.append(
                {
                    "shape": name,
                    "weights": f"{bits} bits" if bits else "bfloat16",
                    "MB": counted / 1e6,
                    "MB taken": held,
                    "MB of the card": CARD_MB.get(name, {}).get(bits),
                    "tokens/s": 1 / step,
                    "of bfloat16": found[0]["tokens/s"] ** -1 / step if found else 1.0,
                    "share of the floor": floor / step,
                    "distance of logits": f"{distance(logits, exact):.1e}",
                }
            )
            del decoder
        return found

    def allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def start(self, name: str) -> list[dict[str, Any]]:
        """From the start of a process to the first token behind 512: random weights stand for those
        of a file."""
        self.clear()
        spawned = time.time()
        run = subprocess.run(
            [sys.executable, "-c", FIRST_TOKEN, name, "512"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise ModelError(f"the process failed: {run.stderr.strip().splitlines()[-1]}")
        started, imported, made, first = map(float, run.stdout.split()[-4:])
        return [
            {
                "shape": name,
                "interpreter, s": started - spawned,
                "imports, s": imported - started,
                "device and weights, s": made - imported,
                "prefill of 512, s": first - made,
                "in all, s": first - spawned,
            }
        ]

    def peer(self, name: str, enough: Callable[[], bool] = lambda: False) -> list[dict[str, Any]]:
        """transformers' generate: its dynamic cache, and its fixed one with a compiled forward at
        two contexts."""
        ours = {
            row["context"]: row["ours, tokens/s"]
            for row in self.figures.get("decode", ())
            if row["shape"] == name
        }
        self.clear()
        model = make_reference(self.shapes[name], self.device, self.dtype)
        found, new = [], self.scaled(64)
        most = self.shapes[name]["max_position_embeddings"]
        for kind, contexts in (("dynamic", CONTEXTS), ("static", CONTEXTS[:2])):
            for context in contexts:
                length = min(self.scaled(context), most - self.scaled(128) - 8)
                if enough():
                    break
                ids = random_ids(length, self.device, self.shapes[name]["vocab_size"])
                speed = reference_speed(model, ids, new, kind)
                found.append(
                    {
                        "shape": name,
                        "cache": kind,
                        "context": length,
                        "transformers, tokens/s": speed,
                        "ours / theirs": ours[length] / speed if length in ours else None,
                    }
                )
        del model
        self.clear()
        return found


class Silent:
    """In a tokenizer's place: random ids spell nothing."""

    def push(self, token_id: int) -> str:
        return ""


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def report(head: str, figures: dict[str, Any], left_out: list[str]) -> str:
    """Markdown."""
    parts = [head]
    for part, rows in figures.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        parts.append(
            f"## {part}\n\n"
            + table(columns, [[row.get(column) for column in columns] for row in rows])
        )
    return "\n\n".join(parts + [f"Left out: {line}." for line in left_out]) + "\n"


def run(bench: Bench, parts: list[str], minutes: float, out: Path, head: str) -> str:
    """All parts, as far as the time goes. Returns the report, which is in the folder, too."""
    began, left_out = time.monotonic(), list[str]()

    def late() -> bool:
        return time.monotonic() - began > 60 * minutes

    def write() -> str:
        text = report(head, bench.figures, left_out)
        (out / "gpu.md").write_text(text)
        (out / "gpu.json").write_text(
            json.dumps({"about": head, "left out": left_out} | bench.figures, indent=1)
        )
        return text

    bench.figures["peaks"] = bench.peaks()  # what the others stand beside
    for part in [part for part in parts if part != "peaks"]:
        for name in bench.shapes:
            if late():
                left_out.append(
                    f"{part} at {name}, for it would begin after {shown(float(minutes))} minutes"
                )
                continue
            started = time.monotonic()
            try:
                found = bench.peer(name, late) if part == "peer" else getattr(bench, part)(name)
            except (
                Exception
            ) as error:  # no such package, no memory for this one: the others still count
                if not isinstance(error, ModelError | ImportError):
                    traceback.print_exc()
                left_out.append(f"{part} at {name}: {str(error).strip().partition(chr(10))[0]}")
                continue
            bench.figures.setdefault(part, []).extend(found)
            print(
                f"{part} at {name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True
            )
            write()
    bench.clear()
    return write()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("test-output/gpu"))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--minutes", type=float, default=6.5, help="after so many, no part begins")
    options = parser.parse_args()
    parts, shapes = options.parts.split(","), options.shapes.split(",")
    if unknown := [name for name in parts if name not in PARTS] + [
        name for name in shapes if name not in SHAPES
    ]:
        parser.error(
            f"there is no {', '.join(unknown)}; parts are {', '.join(PARTS)}, shapes "
            f"{', '.join(SHAPES)}"
        )
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs a CUDA device, and torch sees none here", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda")
    head = (
        f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, bfloat16, batch 1, "
        "random weights, "
        f"sliding window 4,096 as released; {time.strftime('%Y-%m-%d')}"
    )
    bench = Bench(device, torch.bfloat16, {name: SHAPES[name] for name in shapes}, 1)
    print(run(bench, parts, options.minutes, options.out, head))
    synchronize(device)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
