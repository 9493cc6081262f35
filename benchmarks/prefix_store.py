"""The time to restore a context prefix after a restart: read from disk, compared with computed.

    python -m benchmarks.prefix_store [--layers 6] [--tokens 4000] [--precision int8] [--repeats 5]

StarCoder2-3B's shape with random weights, cut to --layers: both sides grow with the layers, so the
ratio is the whole model's (but for the output head, which neither takes part in). Each repeat
computes and restores in turn, by a store that has just been opened, as after a restart; the file is
in the page cache, and then, where the system lets one drop it from there, read from the disk.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.figures import machine, table
from benchmarks.peers import STARCODER2_3B, write_random
from benchmarks.sides import dtype_and_quantization
from model import LoadedModel, load_model
from model.decoder.kv_cache import KVCache
from model.machine import usable_cores
from model.prefix_cache.disk import PrefixStore, open_store
from model.prefix_cache.memory import PrefixCache

BUDGET = 2**40


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--precision", default="int8", help="int8, or a dtype")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cores())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="fimls-") as name:
        folder = write_random(
            Path(name) / "model", STARCODER2_3B | {"num_hidden_layers": options.layers}
        )
        model = load_model(folder, "cpu", *dtype_and_quantization(options.precision))
        figures, size = measure(model, Path(name) / "prefixes", options.tokens, options.repeats)
    prefill = statistics.median(figures["prefill"])
    rows = [
        [side, 1000 * statistics.median(seconds), f"{statistics.median(seconds) / prefill:.1%}"]
        for side, seconds in figures.items()
    ]
    print(
        f"{machine()}; {options.threads} threads; StarCoder2-3B's shape, {options.layers} layers, "
        "random weights, "
        f"{options.precision}; {options.tokens:,} tokens, {size / 1e6:,.0f} MB on disk; medians "
        f"of {options.repeats} "
        f"repeats in turn; {time.strftime('%Y-%m-%d')}\n"
    )
    print(table(["", "ms", "of the prefill"], rows))


def measure(
    model: LoadedModel, folder: Path, tokens: int, repeats: int
) -> tuple[dict[str, list[float]], int]:
    """Seconds of every repeat, and the bytes of the file."""
    rng = random.Random(0)
    ids = [rng.randrange(8, model.decoder.config.vocab_size) for _ in range(tokens)]
    figures: dict[str, list[float]] = {}
    compute(model, ids[:600])  # the first pass is slower
    for _ in range(repeats):
        cache, seconds = compute(model, ids)
        figures.setdefault("prefill", []).append(seconds)
        writer = PrefixCache(model.decoder, store=opened(model, folder))
        lease = writer.lease(ids)
        lease.cache = cache
        writer.give_back(lease, ids)
        started = time.perf_counter()
        writer.save()
        if not figures.get("written"):  # what is there is not written again
            figures["written"] = [time.perf_counter() - started]
        (file,) = folder.iterdir()
        figures.setdefault("restored, file in the page cache", []).append(
            restore(model, folder, ids, cache)
        )
        if drop(file):
            figures.setdefault("restored, file on the disk", []).append(
                restore(model, folder, ids, cache)
            )
    return figures, file.stat().st_size


def compute(model: LoadedModel, ids: list[int]) -> tuple[KVCache, float]:
    cache, started = model.decoder.new_cache(), time.perf_counter()
    assert not list(model.generate(ids, max_new_tokens=0, cache=cache))
    return cache, time.perf_counter() - started


def restore(model: LoadedModel, folder: Path, ids: list[int], computed: KVCache) -> float:
    """Seconds from opening the store to the lease; what it holds is what was computed."""
    started = time.perf_counter()
    lease = PrefixCache(model.decoder, store=opened(model, folder)).lease(ids)
    seconds = time.perf_counter() - started
    held = lease.reused
    assert held == len(ids) - 1
    assert torch.equal(lease.cache.keys[:, :, :held], computed.keys[:, :, :held])
    assert torch.equal(lease.cache.values[:, :, :held], computed.values[:, :, :held])
    return seconds


def opened(model: LoadedModel, folder: Path) -> PrefixStore:
    store = open_store(
        folder, BUDGET, model.folder, model.decoder.new_cache(), model.decoder.scheme
    )
    assert store is not None
    return store


def drop(file: Path) -> bool:
    """Puts a file out of the page cache; False where the system has no call for it."""
    if not hasattr(os, "posix_fadvise"):
        return False
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return True


if __name__ == "__main__":
    main()
