"""The compiled pass (step.py) as the step of a decoder, and the threads that share it."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from model.cpu.blocks.kernel import part_table
from model.cpu.blocks.layout import BLOCK, FORMATS, OUTPUTS
from model.cpu.blocks.linear import BlockEmbedding, BlockFactory, BlockLinear
from model.cpu.measurements import Busy, Measurements
from model.cpu.step_costs import relative_costs, shape_of, step_rows, step_us
from model.decoder.config import DecoderConfig, RopeConfig
from model.decoder.decoder import Decoder
from model.decoder.factory import Norm, gains_of
from model.decoder.kv_cache import KVCache
from model.decoder.layers import DecoderLayer
from model.decoder.stopping import ASK_EVERY_S, ShouldStop, ask, chunk_at

# Row costs where nothing can be measured: a pass is bound by reading the weights.
BY_THUMB = {1: 1.0, 2: 1.1, 4: 1.4, 8: 2.0, 16: 3.6}
SEMAPHORE_BYTES = 64  # a sem_t has 32
ALONE = 2**23  # weights that are read before a second thread is awake
PIECES = 8  # of a phase for each thread, at most: a late thread is waited for one piece at most


def add_block_step(decoder: Decoder, cache_dir: Path) -> None:
    """Gives a decoder of blocks, all of them filled, its step. The machine code has to be there.

    cache_dir: of the measurements. Raises whatever numba raises.
    """
    config = decoder.config
    step = BlockStep(decoder, torch.get_num_threads() if config.step_weights > ALONE else 1)
    decoder.use_step(step)

    def measure(way: str, counts: Sequence[int]) -> dict[int, float]:
        return step_us(decoder, counts)

    formats = sorted({part.format.name for linear in _linears(decoder) for part in linear.parts})
    subject = f"blocks {' '.join(formats)} {shape_of(decoder)}"
    wanted = {"all threads": step_rows(decoder, step.max_rows)}
    costs: Mapping[int, float] = BY_THUMB
    with contextlib.suppress(Busy):
        times = Measurements(cache_dir).times(subject, wanted, measure)
        times_us = times["all threads"]
        costs = relative_costs(times_us)
        # A prefill's positions cost what a row of many does, but for the head.
        most = max(times_us)
        share = config.num_layers * config.layer_weights / config.step_weights
        decoder.prefill_chunk = chunk_at(most * 1e6 / times_us[most] / share, config.num_layers)
    decoder.use_step(step, costs)


def is_of_blocks(decoder: Decoder) -> bool:
    return any(True for _ in _linears(decoder))


def _linears(decoder: Decoder) -> Iterator[BlockLinear]:
    return (module for module in decoder.modules() if isinstance(module, BlockLinear))


def run_toy() -> None:
    """Runs the pass of a model of zeros, which compiles it."""
    config = DecoderConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=32,
        max_positions=4,
        norm="rms_norm",
        norm_eps=1.0,
        rope=RopeConfig("default", 1.0, 32, 4),
        activation="silu",
        gated_mlp=False,
        tie_embeddings=True,
    )
    decoder = Decoder(config, BlockFactory.for_cpu(config, "q8_0", keeps=False))
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        for linear in _linears(decoder):
            linear.fill(0, torch.zeros(linear.out, linear.width))
            linear.finish()
        decoder.requires_grad_(False)
        decoder.use_step(BlockStep(decoder, 1))
        decoder(torch.zeros(1, 1, dtype=torch.long), cache=decoder.new_cache())


class BlockStep:
    """Runs up to max_rows rows: a model.decoder.decoder.FewRowsStep."""

    max_rows = 16

    def __init__(
        self, decoder: Decoder, threads: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Raises whatever numba raises."""
        from model.cpu.blocks import step  # code_cache.use has to come first

        config = decoder.config
        self._vocabulary = config.vocab_size
        self._pace = Pace(config, clock)
        self._modules = list(decoder.modules())  # whose panels the pass reads by their addresses
        weights = _Tables(step, decoder, threads)
        self._arguments = (
            weights.shape(),
            weights.weights(),
            _scratch(step, config, self.max_rows, threads),
        )
        self._embeddings = _Embeddings(decoder, self._arguments[2].x)
        self._threads = _Threads(
            step, step.PHASES * config.num_layers + 1, threads, self._arguments
        )
        self._finalizer = weakref.finalize(self, self._threads.stop)

    def __call__(
        self, ids: Tensor, cache: KVCache, keep: int, should_stop: ShouldStop | None
    ) -> Tensor:
        numbers = ids.tolist()
        rows = len(numbers)
        # The compiled code does not check where it reads and writes.
        if not 0 <= min(numbers) <= max(numbers) < self._vocabulary:
            raise IndexError("a token id is not in the vocabulary")
        if rows > self.max_rows or cache.length + rows > cache.capacity:
            raise IndexError("there is no room for the rows")
        logits = torch.empty(keep, self._vocabulary)
        with self._threads.lock:
            self._embeddings.look_up(ids, cache.length)
            for first, end in self._pace.parts(rows, should_stop):
                self._threads.run(rows, keep, cache, logits, first, end)
        cache.commit(rows)
        return logits


class _Embeddings:
    """What the first layer reads: as Decoder.embed, in fewer calls."""

    def __init__(self, decoder: Decoder, x: Any) -> None:
        """x (R, hidden): where to."""
        from model.cpu.blocks import product

        linear = cast(BlockEmbedding, decoder.embed_tokens).linear
        config = decoder.config
        self._table = part_table(product, linear.parts, linear.width)
        self._rest = (
            linear.width, self._table.data_ptr(), len(self._table), x.ctypes.data, product.load(),
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

    def parts(self, rows: int, should_stop: ShouldStop | None) -> Iterator[tuple[int, int]]:
        """The first layer of each part, and the one after its last; the head counts as one more
        layer. The caller runs a part before it takes the next one. Raises Cancelled."""
        if should_stop is None:
            yield 0, self._layers + 1
            return
        first = 0
        while first <= self._layers:
            ask(should_stop)
            end = self._end(first, rows)
            started = self._clock()
            yield first, end
            size = min(end, self._layers) - first + self._head * (end > self._layers)
            self._layer_s[rows] = (self._clock() - started) / size
            first = end

    def _end(self, first: int, rows: int) -> int:
        if rows not in self._layer_s:
            return first + 1
        fitting = ASK_EVERY_S / max(self._layer_s[rows], 1e-9)
        left = self._layers - first
        if left + self._head <= fitting:
            return self._layers + 1
        return first + max(1, min(left, int(fitting)))


class _Threads:
    """The control block of the pass, and the helpers that wait for it. They are started when they
    are wanted first, do without Python from then on, and end with the step."""

    def __init__(self, code: Any, phases: int, count: int, arguments: tuple[Any, ...]) -> None:
        self.lock = threading.Lock()
        self._code = code
        self._arguments = arguments
        words = np.zeros(code.WORDS + code.PHASE * phases + 8, np.int64)
        self._words = words[-words.ctypes.data % 64 // 8 :]
        self._address = self._words.ctypes.data
        self._semaphore = ctypes.create_string_buffer(SEMAPHORE_BYTES)
        self._place = ctypes.addressof(self._semaphore)
        self._post = self._wait = self._yield = 0
        self._count = 1
        if sys.platform == "linux":
            library = ctypes.CDLL(None)
            if library.sem_init(self._semaphore, 0, 0) == 0:
                self._count = count
                self._post = _address(library.sem_post)
                self._wait = _address(library.sem_wait)
            self._yield = _address(library.sched_yield)
        self._started = 0

    def run(
        self, rows: int, keep: int, cache: KVCache, logits: Tensor, first: int, end: int
    ) -> None:
        """Runs the layers from `first` until `end`."""
        code = self._code
        while self._started < self._count - 1:
            self._started += 1
            arguments = (self._semaphore, self._words, code.share, *self._of(self._started))
            threading.Thread(target=_help, args=arguments, daemon=True).start()
        words = self._words
        words[code.NROWS] = rows
        words[code.KEPT] = keep
        words[code.START] = cache.length
        words[code.KEYS] = cache.keys.data_ptr()
        words[code.VALUES] = cache.values.data_ptr()
        words[code.CAPACITY] = cache.capacity
        words[code.LOGITS] = logits.data_ptr()
        words[code.PART] = first
        words[code.END] = end
        code.share(*self._of(0))

    def _of(self, thread: int) -> tuple[Any, ...]:
        """What a thread calls the code with."""
        calls = (self._place, self._wait, self._post, self._yield)
        return (self._address, thread, self._count, *calls, *self._arguments)

    def stop(self) -> None:
        """Lets the helpers end."""
        self._words[self._code.STOP] = 1
        if self._post:
            post = ctypes.CDLL(None).sem_post
            for _ in range(self._started):
                post(self._semaphore)


def _help(semaphore: Any, words: Any, share: Any, *arguments: Any) -> None:
    """A helper, which keeps in memory what it reads."""
    share(*arguments)


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _scratch(code: Any, config: DecoderConfig, rows: int, threads: int) -> Any:
    hidden = _whole(config.hidden_size)
    heads = _whole(config.num_heads * config.head_dim)
    inner = _whole(config.intermediate_size)
    widest = max(hidden, heads)
    parts = config.num_heads + 2 * config.num_kv_heads

    def floats(*shape: int) -> Any:
        return np.zeros(shape, np.float32)

    return code.Scratch(
        x=floats(rows, config.hidden_size),
        qkv=floats(rows, parts, config.head_dim),
        attended=floats(rows, heads),
        inner=np.zeros(rows * inner, np.int8),
        inner_steps=floats(rows * inner // BLOCK),
        inner_sums=np.zeros((rows * inner // BLOCK, 2), np.int32),
        normed=floats(threads, 1, hidden),
        rounded=np.zeros((threads, rows * widest), np.int8),
        steps=floats(threads, rows * widest // BLOCK),
        sums=np.zeros((threads, rows * widest // BLOCK, 2), np.int32),
        tile=floats(threads, 2, rows, OUTPUTS),
        key=floats(threads, config.head_dim),
        scores=floats(threads, config.num_heads // config.num_kv_heads, config.max_positions),
    )


def _whole(width: int) -> int:
    """In whole blocks."""
    return -(-width // BLOCK) * BLOCK


class _Tables:
    """Where the pass finds a decoder's weights."""

    def __init__(self, code: Any, decoder: Decoder, threads: int) -> None:
        self._code = code
        self._decoder = decoder
        self._threads = threads

    def shape(self) -> Any:
        config = self._decoder.config
        return self._code.Shape(
            layers=config.num_layers,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            dim=config.head_dim,
            window=config.sliding_window or 0,
            score_scale=float(config.score_scale),
            activation=self._code.ACTIVATIONS[config.activation],
            gated=config.gated_mlp,
            parallel=config.parallel_residual,
            rms=config.norm == "rms_norm",
            eps=float(config.norm_eps),
            splits=min(
                config.num_heads // config.num_kv_heads, -(-self._threads // config.num_kv_heads)
            ),
        )

    def weights(self) -> Any:
        decoder = self._decoder
        config = decoder.config
        # A parallel layer has one norm for both.
        mlp_norm = "attention_norm" if config.parallel_residual else "mlp_norm"
        embed = cast(BlockEmbedding, decoder.embed_tokens)
        head = embed.linear if config.tie_embeddings else cast(BlockLinear, decoder.head)
        return self._code.Weights(
            qkv=self._matrix(_each(decoder, "attention.qkv")),
            out=self._matrix(_each(decoder, "attention.out"), config.residual_multiplier),
            up=self._matrix(_each(decoder, "mlp.up"), halves=1 + config.gated_mlp),
            down=self._matrix(_each(decoder, "mlp.down"), config.residual_multiplier),
            head=self._matrix([head], 1 / config.logits_scaling),
            attention_norm=_norms(_each(decoder, "attention_norm")),
            mlp_norm=_norms(_each(decoder, mlp_norm)),
            last_norm=_norms([decoder.norm])[0],
            gains=_gains(decoder),
            rotations=_rotations(decoder),
        )

    def _matrix(self, modules: Sequence[nn.Module], factor: float = 1.0, halves: int = 1) -> Any:
        """factor: of the products. halves: 2 where a phase goes over both halves at once."""
        from model.cpu.blocks.panels import multiply_panel

        linears = [cast(BlockLinear, module) for module in modules]
        panels = np.array([_panels(linear, halves) for linear in linears], np.int64)
        bias = np.zeros((len(linears), 0), np.float32)
        if linears[0].bias is not None:
            bias = np.stack([linear.bias.numpy() for linear in linears if linear.bias is not None])
        pieces = PIECES * self._threads
        return self._code.Matrix(
            panels=panels,
            bias=bias,
            factor=float(factor),
            width=linears[0].padded_width,
            piece=max(1, panels.shape[1] // halves // pieces),
            multiply=multiply_panel.address,
        )


def _panels(linear: BlockLinear, halves: int) -> list[tuple[int, int, int, int]]:
    """Of each panel: its address, the number of its format, its first output and how many it has.

    Raises ValueError where a panel belongs to both halves.
    """
    found = []
    for part in linear.parts:
        for number, panel in enumerate(part.panels):
            first = part.first + OUTPUTS * number
            count = min(OUTPUTS, part.first + part.rows - first)
            found.append((panel.data_ptr(), FORMATS.index(part.format), first, count))
    half = linear.out // halves
    if any(first < half < first + count for _, _, first, count in found) and halves == 2:
        raise ValueError("the gate's last panel is also the first of the other half")
    return found


def _each(decoder: Decoder, path: str) -> list[nn.Module]:
    """The module at that path of every layer."""
    return [cast(DecoderLayer, layer).get_submodule(path) for layer in decoder.layers]


def _norms(modules: Sequence[nn.Module]) -> Any:
    """(L, 2, hidden): weights and biases, which are zero for an RMSNorm."""
    norms = torch.zeros(len(modules), 2, len(cast(Norm, modules[0]).weight))
    for into, norm in zip(norms, modules, strict=True):
        into[0] = gains_of(cast(Norm, norm))
        if isinstance(norm, nn.LayerNorm):
            into[1] = norm.bias
    return norms.numpy()


def _gains(decoder: Decoder) -> Any:
    """(L, H + K, D): of the norms on queries and keys; (L, 0, D) without these."""
    config = decoder.config
    if not config.qk_norm:
        return np.zeros((config.num_layers, 0, config.head_dim), np.float32)
    gains = []
    for layer in decoder.layers:
        attention = cast(DecoderLayer, layer).attention
        queries = attention.q_norm.expand(config.num_heads, -1)
        gains.append(torch.cat((queries, attention.k_norm.expand(config.num_kv_heads, -1))))
    return torch.stack(gains).numpy()


def _rotations(decoder: Decoder) -> Any:
    """(positions, dim / 2, 2): cos and sin of each pair; with learned positions there are none."""
    config = decoder.config
    if config.rope is None:
        return np.zeros((config.max_positions, 0, 2), np.float32)
    return torch.view_as_real(decoder.rotations.pairs[:, 0]).contiguous().numpy()
