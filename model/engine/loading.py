"""What an engine process runs, from what it was told: the model, warm, its caches, its upgrade."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from model.cpu.compiled_step import upgrade
from model.engine.options import Options
from model.engine.worker import Engine
from model.loading import load_model
from model.machine import usable_cores
from model.prefix_cache.disk import open_store


def load_engine(options: Options, report: Callable[[float], None]) -> Engine:
    """An engine that has not been started. report is told the share of the model that is loaded.
    Raises ModelError."""
    torch.set_num_threads(options.threads or usable_cores())
    cache_dir = Path(options.cache_dir) if options.cache_dir else None
    model = load_model(
        options.model,
        options.device,
        options.dtype,
        options.quantization,
        measured=cache_dir,
        progress=report,
    )
    list(model.generate([0] * 8, max_new_tokens=2))  # so that the first request finds it warm
    decoder = model.decoder
    store = open_store(
        cache_dir and cache_dir / "prefixes",
        options.disk_bytes,
        model.folder,
        decoder.new_cache(),
        options.version,
        decoder.scheme,
    )
    steps = upgrade(decoder, cache_dir) if cache_dir else None
    return Engine(model, cache_bytes=options.cache_bytes, store=store, upgrade=steps)
