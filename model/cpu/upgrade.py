"""Gives a decoder with weights in blocks what is faster as machine code (blocks/), as soon as there
is any.

Until then, and where numba is not installed, torch does the work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from model.cpu import code_cache
from model.cpu.blocks.decoder_step import add_block_step, is_of_blocks
from model.cpu.blocks.kernel import PRODUCT
from model.cpu.blocks.linear import can_wait
from model.decoder.decoder import Decoder

log = logging.getLogger(__name__)

PATIENCE_S = 600.0  # for compiling, which takes 15 s on a machine at rest


def upgrade(decoder: Decoder, cache_dir: Path) -> Iterator[None]:
    """Gives a decoder of weights in blocks its compiled product and step, in stages: the caller
    goes on with the iterator now and then, until it ends.

    To load machine code takes half a second, and a process beside this one takes longer to make it.
    cache_dir: of the code and of the measurements.
    """
    folder = code_cache.code_folder(cache_dir)
    if folder is None or not is_of_blocks(decoder):
        return
    yield from _make(folder, awaited=not can_wait(decoder.config))
    if code_cache.is_intact(folder):
        code_cache.use(folder)
        yield  # requests that came meanwhile have their turn: each stage takes tenths of a second
        PRODUCT.load(folder)
        yield
        add_block_step(decoder, cache_dir)


def _make(folder: Path, *, awaited: bool) -> Iterator[None]:
    """Has the machine code made, where there is none. The caller looks whether that was done."""
    if code_cache.is_intact(folder):
        return
    latest = time.monotonic() + PATIENCE_S
    with code_cache.start(folder, awaited=awaited) as compiler:
        while compiler.poll() is None:
            if time.monotonic() > latest:
                compiler.kill()
            yield
    if not code_cache.is_intact(folder):
        log.warning("nothing was compiled (exit status %s)", compiler.returncode)


def upgrade_now(decoder: Decoder, cache_dir: Path) -> None:
    """As `upgrade`, for callers that can wait: benchmarks."""
    for _ in upgrade(decoder, cache_dir):
        time.sleep(0.1)
