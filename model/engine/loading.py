"""The state of an engine process, and how its model is loaded: warm, with its caches.

torch is imported on the thread that loads, after the socket answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from model.engine.options import MIB, Launch
from model.errors import NO_MEMORY, ModelError, lacks_memory
from model.machine import usable_cores

if TYPE_CHECKING:
    from model.engine.http.port import Port
    from model.engine.worker import Engine

log = logging.getLogger(__name__)
QUIET_S = 1.0  # without a request; only then are weights written
LOWEST = 19  # priority


@dataclass(slots=True)
class EngineProcess:
    """The state that the loader, the HTTP handlers and the main loop share."""

    launch: Launch
    key: str | None = None  # what a client must send; None where the socket is private
    port: Port | None = None  # where it listens on a network port
    engine: Engine | None = None
    progress: float = 0.0
    failure: str | None = None
    started: float = field(default_factory=time.monotonic)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    told_to: bool = False  # by a front, for good or for another version: nothing more is written
    clients: set[str] = field(default_factory=set)  # that have asked something
    released_by: set[str] = field(default_factory=set)  # those that have asked nothing since then

    @property
    def state(self) -> str:
        if self.failure:
            return "failed"
        if self.engine:
            return "ready"
        return "loading"

    def used_by(self, client: str) -> None:
        self.clients.add(client)
        self.released_by.discard(client)

    @property
    def is_released(self) -> bool:
        """Whether all who have asked something need the engine no longer."""
        return bool(self.released_by) and self.clients <= self.released_by

    def load(self) -> None:
        """Imports torch and loads the model, and keeps its weights for the next start. Runs on a
        thread."""
        try:
            engine = load_engine(self.launch, self._report)
            engine.start()
            self.engine = engine
            log.info("ready after %.2f s", time.monotonic() - self.started)
            keep_weights(engine)
        except ModelError as error:
            self.failure = str(error)
        except Exception as error:
            if lacks_memory(error):
                self.failure = NO_MEMORY
                return
            log.exception("loading failed")
            self.failure = f"The model could not be loaded ({type(error).__name__}: {error})."

    def _report(self, share: float) -> None:
        self.progress = share


def load_engine(launch: Launch, report: Callable[[float], None]) -> Engine:
    """An engine that has not been started. report is told the share of the model that is loaded.
    Raises ModelError."""
    import torch

    from model.cpu.blocks.decoder_step import is_of_blocks
    from model.cpu.blocks.linear import can_wait
    from model.cpu.upgrade import upgrade, upgrade_now
    from model.engine.worker import Engine
    from model.loading import load_model
    from model.prefix_cache.disk import open_store

    options = launch.options
    torch.set_num_threads(options.threads or usable_cores())
    cache_folder = None
    prefix_folder = None
    if launch.cache_folder:
        cache_folder = Path(launch.cache_folder)
        prefix_folder = cache_folder / "prefixes"
    load = partial(
        load_model,
        launch.model,
        device_for(options.device),
        options.dtype,
        options.quantization,
        progress=report,
        prepared=cache_folder if options.cache_weights else None,
    )
    model = load(measured=cache_folder)
    config = model.decoder.config
    if cache_folder is not None and is_of_blocks(model.decoder) and not can_wait(config):
        # Without machine code each token would take seconds: another model answers meanwhile.
        try:
            upgrade_now(model.decoder, cache_folder)
        except Exception:
            log.exception("there is no machine code")
        if model.decoder.step is None:
            model = load(measured=None)  # by torch's products
    # Half a second for 150,000 tokens, which the first healed request would wait for.
    threading.Thread(target=lambda: model.spelling, name="spelling", daemon=True).start()
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
    if cache_folder is not None and decoder.step is None:
        steps = upgrade(decoder, cache_folder)
    return Engine(model, cache_bytes=options.cache_memory * MIB, store=store, upgrade=steps)


def device_for(name: str) -> str:
    """The device of an engine's option. "auto" is no mps: completions have faster steps on a CPU,
    and nothing of them has run there."""
    import torch

    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    return name


def keep_weights(engine: Engine) -> None:
    """Writes the prepared weights that were missing, while no request runs, and has the engine map
    them from then on; deletes those that are of no use any longer."""
    from model.prepared.weights import Stopped

    prepared = engine.model.prepared
    if prepared is None:
        return
    if prepared.restored:
        prepared.prune()
        return

    def let_others() -> None:
        while not engine.queue.closed and engine.idle_s < QUIET_S:
            time.sleep(QUIET_S / 10)
        if engine.queue.closed:
            raise Stopped

    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # of this thread alone
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
    try:
        prepared.write(engine.model.decoder, let_others)
        engine.improve(prepared.take_over(engine.model.decoder))
    except Stopped:
        log.info("the engine ends before its weights are prepared for the next start")
    except OSError as error:
        log.warning("the weights are not prepared for the next start (%s)", error)
    except Exception:  # the engine answers without them
        log.exception("the weights are not prepared for the next start")
