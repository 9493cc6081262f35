"""The compiled pass (step.py) as the step of a decoder, and the threads that share it."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from model.cpu.blocks.compiled import words as word
from model.cpu.blocks.kernel import PRODUCT, part_table
from model.cpu.blocks.layout import LARGEST_DIM
from model.cpu.blocks.linear import MAX_CHUNK, BlockEmbedding, BlockLinear
from model.cpu.blocks.semaphore import Semaphore
from model.cpu.blocks.tables import Pass, Tables
from model.cpu.step_costs import step_costs
from model.decoder.config import DecoderConfig
from model.decoder.decoder import Decoder
from model.decoder.kv_cache import KVCache, Unfinished
from model.decoder.stopping import ASK_EVERY_S, Cancelled, ShouldStop, ask, chunk_at


def add_block_step(decoder: Decoder, cache_dir: Path) -> None:
    """Gives a decoder of blocks, all of them filled, its step. The machine code has to be there.

    cache_dir: of the measurements. Raises whatever numba raises.
    """
    config = decoder.config
    if config.head_dim > LARGEST_DIM:
        return
    step = BlockStep(decoder, torch.get_num_threads())
    decoder.use_step(step)
    formats = sorted({part.format.name for linear in _linears(decoder) for part in linear.parts})
    costs = step_costs(decoder, f"blocks {' '.join(formats)}", cache_dir)
    decoder.use_step(step, costs.rows, costs.cache)
    if costs.position_us is not None:
        chunk = chunk_at(1e6 / costs.position_us, config.num_layers)
        decoder.prefill_chunk = min(chunk, BlockStep.max_rows)


def is_of_blocks(decoder: Decoder) -> bool:
    return any(True for _ in _linears(decoder))


def _linears(decoder: Decoder) -> Iterator[BlockLinear]:
    return (module for module in decoder.modules() if isinstance(module, BlockLinear))


class BlockStep:
    """Runs up to max_rows rows: a model.decoder.decoder.Step. What comes of a row is the same, bit
    for bit, in a step as in a chunk of a prefill."""

    max_rows = MAX_CHUNK

    def __init__(
        self, decoder: Decoder, threads: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Raises whatever numba raises."""
        from model.cpu.blocks.compiled import step  # code_cache.use has to come first

        config = decoder.config
        self._vocabulary = config.vocab_size
        self._pace = Pace(config, clock)
        self._modules = list(decoder.modules())  # whose panels the pass reads by their addresses
        self._tables = Tables(decoder, threads)
        self._embeddings = _Embeddings(decoder, self._tables.x)
        self._threads = _Threads(step.share, self._tables, threads)
        self._finalizer = weakref.finalize(self, self._threads.stop)

    def __call__(
        self,
        ids: Tensor,
        cache: KVCache,
        keep: int,
        should_stop: ShouldStop | None,
        begun: Unfinished | None = None,
    ) -> Tensor:
        numbers = ids.tolist()
        rows = len(numbers)
        # The compiled code does not check where it reads and writes.
        if not 0 <= min(numbers) <= max(numbers) < self._vocabulary:
            raise IndexError("a token id is not in the vocabulary")
        if rows > self.max_rows or cache.length + rows > cache.capacity:
            raise IndexError("there is no room for the rows")
        logits = torch.empty(keep, self._vocabulary)
        x = torch.from_numpy(self._tables.x[:rows])
        done = 0
        with self._threads.lock:
            if begun is None:
                self._embeddings.look_up(ids, cache.length)
            else:
                x.copy_(begun.x[0])
                done = begun.layer
            try:
                for first, end in self._pace.parts(rows, keep, should_stop, done):
                    self._threads.run(rows, keep, cache, logits, first, end)
                    done = end
            except Cancelled:
                cache.unfinished = Unfinished(
                    ids[None].clone(), cache.length, done, x[None].clone()
                )
                raise
        cache.commit(rows)
        return logits


class _Embeddings:
    """What the first layer reads: as Decoder.embed, in fewer calls."""

    def __init__(self, decoder: Decoder, x: Any) -> None:
        """x (R, hidden): where to."""
        from model.cpu.blocks.compiled import product

        linear = cast(BlockEmbedding, decoder.embed_tokens).linear
        config = decoder.config
        self._table = part_table(PRODUCT.panels, linear.parts, linear.width)
        self._rest = (
            linear.width, self._table.data_ptr(), len(self._table), x.ctypes.data,
            PRODUCT.functions,
        )  # fmt: skip
        self._look_up = product.look_up
        self._x = x
        self._multiplier = np.float32(config.embedding_multiplier)
        self._positions = None if config.rope is not None else decoder.embed_positions.numpy()

    def look_up(self, ids: Tensor, start: int) -> None:
        """ids (R,) int64 at positions from `start` on."""
        rows = len(ids)
        ids = ids.contiguous()
        self._look_up(ids.data_ptr(), rows, *self._rest)
        if self._multiplier != 1:
            self._x[:rows] *= self._multiplier
        if self._positions is not None:
            self._x[:rows] += self._positions[start : start + rows]


class Pace:
    """Divides passes into parts, between which it asks whether to stop."""

    def __init__(self, config: DecoderConfig, clock: Callable[[], float]) -> None:
        self._layers = config.num_layers
        self._head = config.vocab_size * config.hidden_size / config.layer_weights  # in layers
        self._clock = clock
        self._layer_s: dict[int, float] = {}  # what a layer took the last time, by rows

    def parts(
        self, rows: int, keep: int, should_stop: ShouldStop | None, first: int = 0
    ) -> Iterator[tuple[int, int]]:
        """From layer `first` on: the first layer of each part, and the one after its last; the head
        counts as one more layer. The caller runs a part before it takes the next one. Raises
        Cancelled."""
        if should_stop is None:
            yield first, self._layers + 1
            return
        # A layer of few rows takes the time that its weights take to be read, and so does the head.
        head = self._head if rows <= word.FEW else self._head * keep / rows
        while first <= self._layers:
            ask(should_stop)
            end = self._end(first, rows, head)
            started = self._clock()
            yield first, end
            size = min(end, self._layers) - first + head * (end > self._layers)
            self._layer_s[rows] = (self._clock() - started) / size
            first = end

    def _end(self, first: int, rows: int, head: float) -> int:
        if rows not in self._layer_s:
            return first + 1
        fitting = ASK_EVERY_S / max(self._layer_s[rows], 1e-9)
        left = self._layers - first
        if left + head <= fitting:
            return self._layers + 1
        return first + max(1, min(left, int(fitting)))


class _Threads:
    """The control block of the pass, and the helpers that wait for it. They are started when they
    are wanted first, do without Python from then on, and end with the step."""

    def __init__(self, share: Any, tables: Tables, count: int) -> None:
        self.lock = threading.Lock()
        self._share = share
        self._tables = tables  # which the pass reads by their addresses
        words = np.zeros(word.WORDS + word.COUNTERS * (tables.phases + 1) + 8, np.int64)
        self._words = words[-words.ctypes.data % 64 // 8 :]
        self._address = self._words.ctypes.data
        for number, value in tables.words.items():
            self._words[number] = value
        self._idle = Semaphore()
        self._done = Semaphore()
        self._count = count if self._idle.handle and self._done.handle else 1
        self._words[word.WAIT] = self._idle.wait
        self._words[word.POST] = self._idle.post
        self._words[word.IDLE] = self._idle.handle
        self._words[word.DONE] = self._done.handle
        self._started = 0

    def run(
        self, rows: int, keep: int, cache: KVCache, logits: Tensor, first: int, end: int
    ) -> None:
        """Runs the layers from `first` until `end`."""
        tables = self._tables
        if rows <= word.FEW:
            self._run(tables.few, rows, cache, first, end, logits)
            return
        if first < tables.layers:
            self._run(tables.many, rows, cache, first, min(end, tables.layers), logits[:0])
        if end > tables.layers:
            for row in range(0, keep, word.FEW):
                some = logits[row : row + word.FEW]
                upto = rows - keep + row + len(some)
                self._run(tables.few, upto, cache, tables.layers, end, some)

    def _run(
        self, which: Pass, rows: int, cache: KVCache, first: int, end: int, logits: Tensor
    ) -> None:
        """logits: of the last rows."""
        words = self._words
        words[word.THREADS] = min(self._count, which.threads)
        while self._started < words[word.THREADS] - 1:
            self._started += 1
            held = (self._idle, self._done, self._words, self._tables)
            arguments = (held, self._share, self._address, self._started)
            threading.Thread(target=_help, args=arguments, daemon=True).start()
        words[word.FIRST_PHASE] = which.first
        words[word.PHASES] = which.phases
        words[word.NROWS] = rows
        words[word.KEPT] = len(logits)
        words[word.START] = cache.length
        words[word.KEYS] = cache.keys.data_ptr()
        words[word.VALUES] = cache.values.data_ptr()
        words[word.CAPACITY] = cache.capacity
        words[word.LOGITS] = logits.data_ptr()
        words[word.PART] = first
        words[word.END] = end
        self._share(self._address, 0)

    def stop(self) -> None:
        """Lets the helpers end."""
        self._words[word.STOP] = 1
        for _ in range(self._started):
            self._idle.wake()


def _help(held: Any, share: Any, address: int, thread: int) -> None:
    """A helper, which keeps in memory what it reads."""
    share(address, thread)
