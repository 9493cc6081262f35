"""The compiled pass (step.py) as the step of a decoder, and the threads that share it."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.cpu.blocks.kernel import PRODUCT, SEMAPHORE_BYTES, address_of, part_table
from model.cpu.blocks.layout import BLOCK, FORMATS, OUTPUTS
from model.cpu.blocks.linear import BlockEmbedding, BlockLinear
from model.cpu.step_costs import step_costs
from model.decoder.config import DecoderConfig
from model.decoder.decoder import Decoder
from model.decoder.factory import Norm, gains_of
from model.decoder.kv_cache import KVCache
from model.decoder.layers import DecoderLayer
from model.decoder.stopping import ASK_EVERY_S, ShouldStop, ask, chunk_at

ALONE = 2**23  # weights that are read before a second thread is awake
PIECES = 8  # of a phase for each thread, at most: a late thread is waited for one piece at most


def add_block_step(decoder: Decoder, cache_dir: Path) -> None:
    """Gives a decoder of blocks, all of them filled, its step. The machine code has to be there.

    cache_dir: of the measurements. Raises whatever numba raises.
    """
    config = decoder.config
    step = BlockStep(decoder, torch.get_num_threads() if config.step_weights > ALONE else 1)
    decoder.use_step(step)
    formats = sorted({part.format.name for linear in _linears(decoder) for part in linear.parts})
    costs = step_costs(decoder, f"blocks {' '.join(formats)}", cache_dir)
    decoder.use_step(step, costs.rows, costs.cache)
    if costs.row_us is not None:
        # A prefill's positions cost what each of many rows does, but for the head.
        share = config.num_layers * config.layer_weights / config.step_weights
        decoder.prefill_chunk = chunk_at(1e6 / costs.row_us / share, config.num_layers)


def is_of_blocks(decoder: Decoder) -> bool:
    return any(True for _ in _linears(decoder))


def _linears(decoder: Decoder) -> Iterator[BlockLinear]:
    return (module for module in decoder.modules() if isinstance(module, BlockLinear))


class BlockStep:
    """Runs up to max_rows rows: a model.decoder.decoder.FewRowsStep."""

    max_rows = 16

    def __init__(
        self, decoder: Decoder, threads: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Raises whatever numba raises."""
        from model.cpu.blocks.compiled import step  # code_cache.use has to come first

        config = decoder.config
        self._vocabulary = config.vocab_size
        self._pace = Pace(config, clock)
        self._modules = list(decoder.modules())  # whose panels the pass reads by their addresses
        self._tables = _Tables(step, decoder, threads)
        self._embeddings = _Embeddings(decoder, self._tables.x)
        self._threads = _Threads(step, self._tables, threads)
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

    def __init__(self, code: Any, tables: _Tables, count: int) -> None:
        self.lock = threading.Lock()
        self._code = code
        self._tables = tables  # which the pass reads by their addresses
        words = np.zeros(code.WORDS + code.PHASE * tables.phases + 8, np.int64)
        self._words = words[-words.ctypes.data % 64 // 8 :]
        self._address = self._words.ctypes.data
        for word, value in tables.words.items():
            self._words[word] = value
        self._semaphores = ctypes.create_string_buffer(2 * SEMAPHORE_BYTES)
        idle = ctypes.addressof(self._semaphores)
        done = idle + SEMAPHORE_BYTES
        self._count = 1
        if sys.platform == "linux":
            library = ctypes.CDLL(None)
            if not any(library.sem_init(ctypes.c_void_p(each), 0, 0) for each in (idle, done)):
                self._count = count
                self._words[code.WAIT] = address_of(library.sem_wait)
                self._words[code.POST] = address_of(library.sem_post)
        self._words[code.IDLE] = idle
        self._words[code.DONE] = done
        self._words[code.THREADS] = self._count
        self._started = 0

    def run(
        self, rows: int, keep: int, cache: KVCache, logits: Tensor, first: int, end: int
    ) -> None:
        """Runs the layers from `first` until `end`."""
        code = self._code
        while self._started < self._count - 1:
            self._started += 1
            held = (self._semaphores, self._words, self._tables)
            arguments = (held, code.share, self._address, self._started)
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
        code.share(self._address, 0)

    def stop(self) -> None:
        """Lets the helpers end."""
        code = self._code
        self._words[code.STOP] = 1
        if self._count > 1:
            post = ctypes.CDLL(None).sem_post
            for _ in range(self._started):
                post(ctypes.c_void_p(int(self._words[code.IDLE])))


def _help(held: Any, share: Any, address: int, thread: int) -> None:
    """A helper, which keeps in memory what it reads."""
    share(address, thread)


def _whole(width: int) -> int:
    """In whole blocks."""
    return -(-width // BLOCK) * BLOCK


class _Tables:
    """What the pass reads and where it writes: words of the control block, by their places. Holds
    what these words are the addresses of."""

    def __init__(self, code: Any, decoder: Decoder, threads: int) -> None:
        self._code = code
        self._decoder = decoder
        self._threads = threads
        self._kept: list[Any] = []
        config = decoder.config
        self.x = np.zeros((BlockStep.max_rows, config.hidden_size), np.float32)
        phases = [
            phase
            for layer in decoder.layers
            for phase in self._layer_phases(cast(DecoderLayer, layer))
        ]
        phases.append(self._head_phase())
        self.phases = len(phases)
        table = np.zeros((len(phases), code.FIELDS), np.int64)
        for row, phase in zip(table, phases, strict=True):
            for field, value in phase.items():
                row[field] = value
        functions = PRODUCT.panels
        assert functions is not None
        rotations = _rotations(decoder)
        self.words = self._shape() | self._scratch()
        self.words |= {
            code.PAIRS: rotations.shape[1],
            code.ROTATIONS: self._keep(rotations),
            code.TABLE: self._keep(table),
            code.MULTIPLY: functions.multiply_panel,
            code.ROUND: functions.round_blocks,
        }
        del self._decoder  # which holds the step

    def _keep(self, array: NDArray[Any]) -> int:
        """The address of an array that is kept."""
        self._kept.append(array)
        return int(array.ctypes.data)

    def _shape(self) -> dict[int, int]:
        code = self._code
        config = self._decoder.config
        return {
            code.LAYERS: config.num_layers,
            code.HIDDEN: config.hidden_size,
            code.HEADS: config.num_heads,
            code.KV_HEADS: config.num_kv_heads,
            code.DIM: config.head_dim,
            code.WINDOW: config.sliding_window or 0,
            code.SPLITS: self._splits(),
            code.ACTIVATION: code.ACTIVATIONS[config.activation],
            code.RMS: config.norm == "rms_norm",
            code.EPS: _bits(config.norm_eps),
            code.SCORE_SCALE: _bits(config.score_scale),
        }

    def _splits(self) -> int:
        """The pieces of a key/value head's attention."""
        config = self._decoder.config
        group = config.num_heads // config.num_kv_heads
        return min(group, -(-self._threads // config.num_kv_heads))

    def _scratch(self) -> dict[int, int]:
        code = self._code
        config = self._decoder.config
        rows = BlockStep.max_rows
        heads = _whole(config.num_heads * config.head_dim)
        inner = _whole(config.intermediate_size)
        parts = config.num_heads + 2 * config.num_kv_heads

        def floats(*shape: int) -> int:
            return self._keep(np.zeros(shape, np.float32))

        def rounded(blocks: int) -> tuple[int, int, int]:
            numbers = self._keep(np.zeros(blocks * BLOCK, np.int8))
            return numbers, floats(blocks), self._keep(np.zeros((blocks, 2), np.int32))

        own = np.zeros((self._threads, code.OWN_WORDS), np.int64)
        group = config.num_heads // config.num_kv_heads
        for words in own:
            words[code.NORMED] = floats(_whole(config.hidden_size))
            widest = max(_whole(config.hidden_size), heads)
            words[code.ROUNDED : code.SUMS + 1] = rounded(rows * widest // BLOCK)
            words[code.TILE] = floats(rows, OUTPUTS)
            words[code.OTHER] = floats(rows, OUTPUTS)
            words[code.KEY] = floats(config.head_dim)
            words[code.SCORES] = floats(group, config.max_positions)
            words[code.WIDE] = floats(code.AT_ONCE, config.head_dim)
        numbers, steps, sums = rounded(rows * inner // BLOCK)
        return {
            code.X: self.x.ctypes.data,
            code.QKV: floats(rows, parts, config.head_dim),
            code.ATTENDED: floats(rows, heads),
            code.INNER: numbers,
            code.INNER_STEPS: steps,
            code.INNER_SUMS: sums,
            code.OWN: self._keep(own),
        }

    def _layer_phases(self, layer: DecoderLayer) -> list[dict[int, int]]:
        code = self._code
        config = self._decoder.config
        factor = config.residual_multiplier
        number = list(self._decoder.layers).index(layer)
        # A parallel layer has one norm for both, and its MLP reads what the layer began with.
        mlp_norm = layer.attention_norm if config.parallel_residual else layer.mlp_norm
        qkv = self._product(code.TO_QKV, layer.attention.qkv, norm=layer.attention_norm)
        attention = {
            code.KIND: code.ATTENTION,
            code.LAYER: number,
            code.PIECES: config.num_kv_heads * self._splits(),
            code.GAINS: self._gains(layer),
        }
        out = self._product(code.TO_X, layer.attention.out, factor)
        kind = code.UP_GATED if config.gated_mlp else code.UP
        up = self._product(kind, layer.mlp.up, norm=mlp_norm, halves=1 + config.gated_mlp)
        down = self._product(code.DOWN, layer.mlp.down, factor)
        middle = [up, out] if config.parallel_residual else [out, up]
        return [qkv, attention, *middle, down]

    def _head_phase(self) -> dict[int, int]:
        decoder = self._decoder
        config = decoder.config
        embed = cast(BlockEmbedding, decoder.embed_tokens)
        head = embed.linear if config.tie_embeddings else decoder.head
        return self._product(self._code.HEAD, head, 1 / config.logits_scaling, decoder.norm)

    def _product(
        self,
        kind: int,
        module: nn.Module,
        factor: float = 1.0,
        norm: nn.Module | None = None,
        halves: int = 1,
    ) -> dict[int, int]:
        """factor: of the products. halves: 2 where a phase goes over both halves at once."""
        code = self._code
        linear = cast(BlockLinear, module)
        panels = np.array(_panels(linear, halves), np.int64)
        count = len(panels) // halves
        piece = max(1, count // (PIECES * self._threads))
        phase = {
            code.KIND: kind,
            code.PIECES: -(-count // piece),
            code.PIECE: piece,
            code.PANELS: self._keep(panels),
            code.COUNT: len(panels),
            code.WIDTH: linear.padded_width,
            code.FACTOR: _bits(factor),
        }
        if linear.bias is not None:
            phase[code.BIAS] = self._keep(linear.bias.numpy())
        if norm is not None:
            phase[code.NORM] = self._norm(cast(Norm, norm))
        return phase

    def _norm(self, norm: Norm) -> int:
        """(2, hidden): weight and bias, which is zero for an RMSNorm."""
        found = torch.zeros(2, len(norm.weight))
        found[0] = gains_of(norm)
        if isinstance(norm, nn.LayerNorm):
            found[1] = norm.bias
        return self._keep(found.numpy())

    def _gains(self, layer: DecoderLayer) -> int:
        """(H + K, D): of the norms on queries and keys; 0 without these."""
        config = self._decoder.config
        if not config.qk_norm:
            return 0
        attention = layer.attention
        queries = attention.q_norm.expand(config.num_heads, -1)
        gains = torch.cat((queries, attention.k_norm.expand(config.num_kv_heads, -1)))
        return self._keep(gains.numpy())


def _bits(number: float) -> int:
    """A word with a float32 in its first half."""
    return int(np.float32(number).view(np.uint32))


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


def _rotations(decoder: Decoder) -> Any:
    """(positions, dim / 2, 2): cos and sin of each pair; with learned positions there are none."""
    config = decoder.config
    if config.rope is None:
        return np.zeros((config.max_positions, 0, 2), np.float32)
    return torch.view_as_real(decoder.rotations.pairs[:, 0]).contiguous().numpy()
