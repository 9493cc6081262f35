"""What the compiled pass reads and where it writes: the words that tell it (compiled/words.py)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model.cpu.blocks.compiled import words as word
from model.cpu.blocks.kernel import PRODUCT
from model.cpu.blocks.layout import AT_ONCE, BLOCK, OUTPUTS, POSITIONS, ROW, WIDE_BLOCK, WIDTHS
from model.cpu.blocks.linear import MAX_CHUNK, BlockEmbedding, BlockLinear
from model.decoder.decoder import Decoder
from model.decoder.factory import Norm, gains_of
from model.decoder.layers import DecoderLayer

ALONE = 2**23  # weights that are read before a second thread is awake
PIECES = 8  # of a phase for each thread, at most: a late thread is waited for one piece at most


def _whole(width: int) -> int:
    """In whole blocks."""
    return -(-width // BLOCK) * BLOCK


class Pass(NamedTuple):
    """Which phases are of it."""

    first: int
    phases: int  # of a layer
    threads: int


class Tables:
    """What the pass reads and where it writes: words of the control block, by their places. Holds
    what these words are the addresses of."""

    def __init__(self, decoder: Decoder, threads: int) -> None:
        self._decoder = decoder
        self._threads = threads
        self._kept: list[Any] = []
        config = decoder.config
        self.layers = config.num_layers
        self.x = np.zeros((MAX_CHUNK, config.hidden_size), np.float32)
        # A second thread would be awake too late for a step of a small model.
        alone = config.step_weights <= ALONE
        self._few_threads = 1 if alone else threads
        layers = [cast(DecoderLayer, layer) for layer in decoder.layers]
        few = [phase for layer in layers for phase in self._few_phases(layer)]
        many = [phase for layer in layers for phase in self._many_phases(layer)]
        phases = [*few, self._head_phase(), *many]
        self.phases = len(phases)
        self.few = Pass(0, len(few) // self.layers, self._few_threads)
        self.many = Pass(len(few) + 1, len(many) // self.layers, threads)
        rotations = _rotations(decoder)
        self.words = self._shape() | self._functions() | self._scratch()
        self.words |= {
            word.PAIRS: rotations.shape[1],
            word.ROTATIONS: self._keep(rotations),
            word.TABLE: self._table(phases),
        }
        del self._decoder  # which holds the step

    def _table(self, phases: list[dict[int, int]]) -> int:
        """Of all passes in one: a helper that comes late may read a phase of another pass's."""
        table = np.zeros((len(phases) + 1, word.FIELDS), np.int64)
        for row, phase in zip(table, phases, strict=False):
            for field, value in phase.items():
                row[field] = value
        return self._keep(table)

    def _functions(self) -> dict[int, int]:
        functions = PRODUCT.panels
        assert functions is not None
        return {
            word.MULTIPLY: functions.multiply_panel,
            word.ROUND: functions.round_blocks,
            word.WIDEN: functions.widen,
            word.MULTIPLY_WIDE: functions.multiply_wide,
            word.WIDE_ROWS: functions.cpu.wide_rows,
            word.WIDEN_ROWS: functions.widen_rows,
            word.ATTEND: functions.attend,
        }

    def _keep(self, array: NDArray[Any]) -> int:
        """The address of an array that is kept."""
        self._kept.append(array)
        return int(array.ctypes.data)

    def _shape(self) -> dict[int, int]:
        config = self._decoder.config
        return {
            word.LAYERS: config.num_layers,
            word.HIDDEN: config.hidden_size,
            word.HEADS: config.num_heads,
            word.KV_HEADS: config.num_kv_heads,
            word.DIM: config.head_dim,
            word.WINDOW: config.sliding_window or 0,
            word.SPLITS: self._splits(),
            word.ACTIVATION: word.ACTIVATIONS[config.activation],
            word.RMS: config.norm == "rms_norm",
            word.EPS: _bits(config.norm_eps),
            word.SCORE_SCALE: _bits(config.score_scale),
        }

    def _splits(self) -> int:
        """The pieces of a key/value head's attention."""
        config = self._decoder.config
        group = config.num_heads // config.num_kv_heads
        return min(group, -(-self._few_threads // config.num_kv_heads))

    def _scratch(self) -> dict[int, int]:
        """Rows have room for many; memory that few never touch is none."""
        config = self._decoder.config
        heads = _whole(config.num_heads * config.head_dim)
        widest = max(_whole(config.hidden_size), heads)
        parts = config.num_heads + 2 * config.num_kv_heads
        own = np.zeros((self._threads, word.OWN_WORDS), np.int64)
        for words in own:
            words[word.NORMED] = self._floats(_whole(config.hidden_size))
            words[word.ROUNDED : word.SUMS + 1] = self._rounded(word.FEW, widest)
            words[word.TILE] = self._floats(word.TOGETHER, OUTPUTS)
            words[word.OTHER] = self._floats(word.TOGETHER, OUTPUTS)
            words[word.WIDE] = self._floats(AT_ONCE * WIDE_BLOCK // 4)
            words[word.KEY] = self._floats(config.head_dim)
            words[word.SEEN_KEYS] = self._floats(POSITIONS, ROW // 4)
            words[word.SEEN_VALUES] = self._floats(POSITIONS, ROW // 4)
            words[word.QUERIES] = self._floats(config.head_dim, WIDTHS[-1])
            words[word.SEEN] = self._floats(2, WIDTHS[-1])
            words[word.SCORES] = self._floats(POSITIONS, WIDTHS[-1])
            words[word.MOST] = self._floats(WIDTHS[-1])
            words[word.TOTAL] = self._floats(WIDTHS[-1])
            words[word.OUT] = self._floats(config.head_dim, WIDTHS[-1])
        read, read_steps, read_sums = self._rounded(MAX_CHUNK, widest)
        inner, inner_steps, inner_sums = self._rounded(MAX_CHUNK, config.intermediate_size)
        return {
            word.X: self.x.ctypes.data,
            word.QKV: self._floats(MAX_CHUNK, parts, config.head_dim),
            word.ATTENDED: self._floats(MAX_CHUNK, heads),
            word.READ: read,
            word.READ_STEPS: read_steps,
            word.READ_SUMS: read_sums,
            word.INNER: inner,
            word.INNER_STEPS: inner_steps,
            word.INNER_SUMS: inner_sums,
            word.OWN: self._keep(own),
        }

    def _floats(self, *shape: int) -> int:
        """Room that begins with a cache line."""
        line = np.zeros(math.prod(shape) + 16, np.float32)
        return self._keep(line[-line.ctypes.data % 64 // 4 :])

    def _rounded(self, rows: int, width: int) -> tuple[int, int, int]:
        """Room for the numbers, scales and sums of rows' blocks in the wide order."""
        blocks = rows * AT_ONCE * -(-width // (AT_ONCE * BLOCK))
        return self._floats(blocks * BLOCK // 4), self._floats(blocks), self._floats(2 * blocks)

    def _few_phases(self, layer: DecoderLayer) -> list[dict[int, int]]:
        config = self._decoder.config
        mlp_norm = self._mlp_norm(layer)
        qkv = self._product(word.TO_QKV, layer.attention.qkv, norm=layer.attention_norm)
        attention = self._attention(word.ATTENTION, layer)
        attention[word.PIECES] = config.num_kv_heads * self._splits()
        out, up, down = self._products(layer)
        up[word.NORM] = self._norm(mlp_norm)
        middle = [up, out] if config.parallel_residual else [out, up]
        return [qkv, attention, *middle, down]

    def _many_phases(self, layer: DecoderLayer) -> list[dict[int, int]]:
        config = self._decoder.config
        hidden = _whole(config.hidden_size)
        heads = _whole(config.num_heads * config.head_dim)
        before = {word.WIDTH: hidden, word.NORM: self._norm(layer.attention_norm)}
        middle = {word.WIDTH: hidden, word.NORM: self._norm(self._mlp_norm(layer))}
        attended = {word.WIDTH: heads}
        for each in (before, middle, attended):
            each[word.KIND] = word.READING
        keeping = self._attention(word.KEEPING, layer)
        attention = self._attention(word.ATTENTION, layer)
        qkv = self._product(word.TO_QKV, layer.attention.qkv)
        out, up, down = self._products(layer)
        phases = [before, qkv, keeping, attention, attended, out, middle, up, down]
        if config.parallel_residual:  # the MLP reads what the layer began with
            phases = [before, qkv, keeping, attention, up, attended, out, down]
        for phase in phases:
            phase[word.MANY] = 1
            if word.PANELS in phase:  # a piece is a panel, or the two panels of a gated product
                phase[word.PIECES] = phase[word.COUNT] // (1 + (phase[word.KIND] == word.UP_GATED))
        return phases

    def _mlp_norm(self, layer: DecoderLayer) -> Norm:
        """A parallel layer has one norm for both."""
        parallel = self._decoder.config.parallel_residual
        return layer.attention_norm if parallel else layer.mlp_norm

    def _attention(self, kind: int, layer: DecoderLayer) -> dict[int, int]:
        number = list(self._decoder.layers).index(layer)
        return {word.KIND: kind, word.LAYER: number, word.GAINS: self._gains(layer)}

    def _products(self, layer: DecoderLayer) -> list[dict[int, int]]:
        """After attention, and the two of the MLP."""
        config = self._decoder.config
        factor = config.residual_multiplier
        kind = word.UP_GATED if config.gated_mlp else word.UP
        return [
            self._product(word.TO_X, layer.attention.out, factor),
            self._product(kind, layer.mlp.up, halves=1 + config.gated_mlp),
            self._product(word.DOWN, layer.mlp.down, factor),
        ]

    def _head_phase(self) -> dict[int, int]:
        decoder = self._decoder
        config = decoder.config
        embed = cast(BlockEmbedding, decoder.embed_tokens)
        head = embed.linear if config.tie_embeddings else decoder.head
        return self._product(word.HEAD, head, 1 / config.logits_scaling, decoder.norm)

    def _product(
        self,
        kind: int,
        module: nn.Module,
        factor: float = 1.0,
        norm: Norm | None = None,
        halves: int = 1,
    ) -> dict[int, int]:
        """factor: of the products. halves: 2 where a phase goes over both halves at once."""
        linear = cast(BlockLinear, module)
        panels = np.array(_panels(linear, halves), np.int64)
        count = len(panels) // halves
        piece = max(1, count // (PIECES * self._few_threads))
        phase = {
            word.KIND: kind,
            word.PIECES: -(-count // piece),
            word.PIECE: piece,
            word.PANELS: self._keep(panels),
            word.COUNT: len(panels),
            word.WIDTH: linear.padded_width,
            word.FACTOR: _bits(factor),
        }
        if linear.bias is not None:
            phase[word.BIAS] = self._keep(linear.bias.numpy())
        if norm is not None:
            phase[word.NORM] = self._norm(norm)
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


def _panels(linear: BlockLinear, halves: int) -> list[tuple[int, int, int, int, int]]:
    """Of each panel: the words of one (compiled/words.py).

    Raises ValueError where a panel belongs to both halves.
    """
    found = []
    assert PRODUCT.panels is not None
    for part in linear.parts:
        numbers = PRODUCT.panels.numbers_of(part.format)
        for number, panel in enumerate(part.panels):
            first = part.first + OUTPUTS * number
            count = min(OUTPUTS, part.first + part.rows - first)
            found.append((panel.data_ptr(), *numbers, first, count))
    half = linear.out // halves
    if any(first < half < first + count for *_, first, count in found) and halves == 2:
        raise ValueError("the gate's last panel is also the first of the other half")
    return found


def _rotations(decoder: Decoder) -> Any:
    """(positions, dim / 2, 2): cos and sin of each pair; with learned positions there are none."""
    config = decoder.config
    if config.rope is None:
        return np.zeros((config.max_positions, 0, 2), np.float32)
    return torch.view_as_real(decoder.rotations.pairs[:, 0]).contiguous().numpy()
