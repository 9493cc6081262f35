"""What an engine process runs, from what it was told: the model, warm, its caches, its upgrade."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from model.cpu.compiled_step import upgrade
from model.engine.options import MIB, Launch
from model.engine.worker import Engine
from model.loading import load_model
from model.machine import usable_cores
from model.prefix_cache.disk import open_store


def load_engine(launch: Launch, report: Callable[[float], None]) -> Engine:
    """An engine that has not been started. report is told the share of the model that is loaded.
    Raises ModelError."""
    options = launch.options
    torch.set_num_threads(options.threads or usable_cores())
    cache_folder = None
    prefix_folder = None
    if launch.cache_folder:
        cache_folder = Path(launch.cache_folder)
        prefix_folder = cache_folder / "prefixes"
    model = load_model(
        launch.model,
        options.device,
        options.dtype,
        options.quantization,
        measured=cache_folder,
        progress=report,
    )
    list(model.generate([0] * 8, max_new_tokens=2))  # so that the first request finds it warm
    decoder = model.decoder
    store = open_store(
        prefix_folder,
        options.cache_disk * MIB,
        model.folder,
        decoder.new_cache(),
        launch.version,
        decoder.scheme,
    )
    steps = None
    if cache_folder is not None:
        steps = upgrade(decoder, cache_folder)
    return Engine(model, cache_bytes=options.cache_memory * MIB, store=store, upgrade=steps)
