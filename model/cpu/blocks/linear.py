"""The modules of a decoder with weights in blocks, and the factory that makes them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.cpu import code_cache
from model.cpu.blocks.kernel import PRODUCT, Part
from model.cpu.blocks.layout import BLOCK, BY_NAME, OUTPUTS, Format
from model.cpu.blocks.packing import pack, quantize, unpack
from model.cpu.quantized_linear import TensorSpec, interleaving
from model.decoder.config import DecoderConfig
from model.decoder.factory import Embeddings, Factory, Packed
from model.decoder.layers import Attention
from model.ggml import KINDS, Quantized, quantized
from model.private_files import own_private_folder

log = logging.getLogger(__name__)

AT_ONCE = 2**19  # weights that are packed at once: they fit a CPU's cache
LAYER_PRODUCTS = 3 * 10**9  # that a layer's chunk of a prefill takes: 15 to 30 ms
MIN_CHUNK, MAX_CHUNK = 32, 512
LARGE = BY_NAME["q8_0"]  # of embeddings and head
AS_FLOATS = 2**26  # weights that are kept as floats, too, until there is machine code


def can_run(folder: Path | None) -> bool:
    """Whether models are multiplied in blocks on this machine: where machine code can be compiled
    and kept in the cache folder."""
    code = None if folder is None else code_cache.code_folder(folder)
    if code is None:
        return False
    from model.cpu.blocks.tiles.cpus import chip, instructions_of  # llvmlite is there

    if instructions_of(chip()[1]) is None:
        return False
    try:
        own_private_folder(code.parent)
        code_cache.check_place(code)
    except OSError as error:
        log.warning("machine code cannot be kept: %s", error)
        return False
    return True


def can_wait(config: DecoderConfig) -> bool:
    """Whether a model in blocks answers in good time while machine code is still to be compiled:
    from a copy of its weights as floats."""
    return config.step_weights <= AS_FLOATS


class BlockLinear(Packed):
    """y = x W^T + b. Tensors of a checkpoint that already are in blocks stay as they are; others
    are rounded to `format_`. parts: from the first row to the last."""

    def __init__(
        self,
        width: int,
        out: int,
        bias: bool,
        format_: Format,
        order: Tensor | None = None,
        *,
        keeps: bool = True,
        as_floats: bool = False,
    ) -> None:
        """order: the rows' order in memory, which keeps the rows of each tensor together. keeps:
        takes blocks of every format. as_floats: until there is machine code."""
        super().__init__()
        self.width = width
        self.out = out
        self.format = format_
        self.bias = nn.Parameter(torch.zeros(out), requires_grad=False) if bias else None
        self.parts: list[Part] = []
        self._order = order
        self._keeps = keeps
        self._as_floats = as_floats
        self._floats: Tensor | None = None

    def takes_blocks(self, kind: str) -> bool:
        return kind in KINDS if self._keeps else kind == self.format.name

    def fill(self, first: int, weights: Tensor) -> None:
        """Rounds weights (n, width), the rows from `first` on."""
        padded = -self.width % self.format.columns

        def read(rows: Tensor) -> Quantized:
            return quantize(F.pad(rows.float(), (0, padded)), self.format)

        self._add(first, weights, self.format, read)

    def fill_blocks(self, first: int, kind: str, raw: Tensor) -> None:
        """Takes blocks of one of KINDS, uint8 (n, bytes of a row)."""
        self._add(first, raw, BY_NAME[kind], lambda rows: quantized(kind, rows))

    def _add(
        self, first: int, rows: Tensor, format_: Format, read: Callable[[Tensor], Quantized]
    ) -> None:
        """Packs rows, a few at a time. read: takes them apart."""
        count = len(rows)
        order = None if self._order is None else self._order[first : first + count] - first
        panels = torch.empty(self._panels_shape(count, format_), dtype=torch.uint8)
        step = max(1, AT_ONCE // (OUTPUTS * self.width))
        for start in range(0, len(panels), step):
            some = slice(OUTPUTS * start, OUTPUTS * (start + step))
            part = rows[some] if order is None else rows[order[some]]
            pack(read(part), format_, panels[start : start + step])
        self.parts.append(Part(first, count, format_, panels))

    def finish(self) -> None:
        self.parts.sort(key=lambda part: part.first)
        if self._order is not None and self.bias is not None:
            self.bias.data = self.bias.data[self._order]

    @property
    def finished(self) -> dict[str, Tensor]:
        """What `fill` has made, apart from the bias; `restore` takes it again."""
        return {f"{part.first}.{part.format.name}": part.panels for part in self.parts}

    def specs_of(self, names: Iterable[str]) -> dict[str, TensorSpec]:
        """The shape and type of the tensors of `finished` that have such names.

        Raises ValueError where these do not make up the matrix.
        """
        found: dict[str, TensorSpec] = {}
        for name, (first, last, format_) in self._places(names).items():
            found[name] = (self._panels_shape(last - first, format_), torch.uint8)
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """In place of what there was, or of `fill` and `finish`: takes tensors that are as
        `specs_of` says."""
        self.parts = [
            Part(first, last - first, format_, tensors[name])
            for name, (first, last, format_) in self._places(tensors).items()
        ]

    def _places(self, names: Iterable[str]) -> dict[str, tuple[int, int, Format]]:
        """The first row, the one after the last, and the format, by those names that say so."""
        found = []
        for name in names:
            row, _, kind = name.partition(".")
            if row.isdecimal() and kind in BY_NAME:
                found.append((int(row), name, BY_NAME[kind]))
        found.sort(key=lambda each: each[0])
        ends = [*(first for first, _, _ in found), self.out][1:]
        places = {}
        expected = 0
        for (first, name, format_), end in zip(found, ends, strict=True):
            fits = self.width % format_.columns == 0 or not format_.two_level
            if first != expected or end <= first or not fits:
                raise ValueError(f"the rows of {name} are not those of the matrix")
            places[name] = first, end, format_
            expected = end
        if expected != self.out:
            raise ValueError("rows of a matrix are missing")
        return places

    def _panels_shape(self, rows: int, format_: Format) -> tuple[int, int]:
        width = -(-self.width // format_.columns) * format_.columns
        return -(-rows // OUTPUTS), format_.panel_bytes(width)

    @property
    def padded_width(self) -> int:
        """The width in whole blocks."""
        return -(-self.width // BLOCK) * BLOCK

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) float32 -> (..., out) float32."""
        matrix = self._meanwhile()
        if matrix is not None:
            return F.linear(x, matrix, self.bias)
        y = PRODUCT.multiply(x.reshape(-1, self.width), self.parts, self.out, self.bias)
        return y.view(*x.shape[:-1], self.out)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows `ids` (n,) as float32 (n, width)."""
        matrix = self._meanwhile()
        if matrix is not None:
            return F.embedding(ids, matrix)
        return PRODUCT.look_up(ids, self.parts, self.width)

    def _meanwhile(self) -> Tensor | None:
        """The matrix as floats, where that is multiplied until there is machine code."""
        if PRODUCT.ready:
            self._floats = None
        elif self._as_floats and self._floats is None:
            self._floats = self.floats()
        return self._floats

    def floats(self) -> Tensor:
        """The matrix (out, width) as float32, in the order of memory."""
        each = [
            unpack(part.panels, part.format).floats()[: part.rows, : self.width]
            for part in self.parts
        ]
        return torch.cat(each)


class BlockEmbedding(Embeddings, Packed):
    """Embeddings as rows of a matrix in blocks, which is the head's, too, where both are tied."""

    def __init__(self, linear: BlockLinear) -> None:
        """linear: (vocabulary, hidden)."""
        super().__init__()
        self.linear = linear

    def takes_blocks(self, kind: str) -> bool:
        return self.linear.takes_blocks(kind)

    def fill(self, first: int, weights: Tensor) -> None:
        self.linear.fill(first, weights)

    def fill_blocks(self, first: int, kind: str, raw: Tensor) -> None:
        self.linear.fill_blocks(first, kind, raw)

    def finish(self) -> None:
        self.linear.finish()

    def holds(self, weights: Tensor) -> bool:
        """Whether these are the weights, as far as the bits of the format tell."""
        other = BlockLinear(self.linear.width, self.linear.out, False, self.linear.parts[0].format)
        other.fill(0, weights)
        return torch.equal(other.parts[0].panels, self.linear.parts[0].panels)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) -> (..., hidden) float32."""
        return self.linear.rows(ids.reshape(-1)).view(*ids.shape, -1)

    def as_head(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x)
        return logits


@dataclass(frozen=True)
class BlockFactory(Factory):
    """Makes the modules of a decoder with matrices in blocks.

    format: of what is rounded here. Embeddings and head always have 8 bits, and so have the few
    weights of queries, keys and values: of what 4 bits in all layers change in the probabilities
    (Qwen2.5-Coder-0.5B), they alone made a third. keeps: what a file holds in blocks stays in
    those.
    """

    config: DecoderConfig
    format: Format
    keeps: bool
    interleaved: ClassVar[bool] = True

    @classmethod
    def for_cpu(cls, config: DecoderConfig, name: str, *, keeps: bool) -> BlockFactory:
        """name: of the format."""
        return cls(torch.device("cpu"), torch.float32, config, BY_NAME[name], keeps)

    @property
    def scheme(self) -> str:
        return f"blocks {self.format.name}{' or as stored' if self.keeps else ''}"

    @property
    def cache_dtype(self) -> torch.dtype:
        """Half precision, as in llama.cpp: a pass after a long context reads half as much."""
        return torch.float16

    @property
    def prefill_chunk(self) -> int:
        """Whether to stop is asked before each layer."""
        rows = LAYER_PRODUCTS // self.config.layer_weights
        return max(MIN_CHUNK, min(MAX_CHUNK, rows // MIN_CHUNK * MIN_CHUNK))

    def linear(self, width: int, out: int, bias: bool) -> nn.Module:
        return self._matrix(width, out, bias, self.format)

    def qkv(self, config: DecoderConfig) -> nn.Module:
        order, _ = interleaving(config)
        return self._matrix(config.hidden_size, config.qkv_size, config.qkv_bias, LARGE, order)

    def embedding(self, vocabulary: int, hidden: int) -> Embeddings:
        return BlockEmbedding(self._matrix(hidden, vocabulary, False, LARGE))

    def head(self, config: DecoderConfig) -> nn.Module:
        return self._matrix(config.hidden_size, config.vocab_size, False, LARGE)

    def _matrix(
        self, width: int, out: int, bias: bool, format_: Format, order: Tensor | None = None
    ) -> BlockLinear:
        as_floats = can_wait(self.config)
        return BlockLinear(width, out, bias, format_, order, keeps=self.keeps, as_floats=as_floats)

    def finish(self, module: nn.Module) -> None:
        if isinstance(module, Attention):  # its own weights are only the gains of its norms
            order, _ = interleaving(self.config)
            for gains in (module.q_norm, module.k_norm):
                gains.copy_(gains[:, order[: self.config.head_dim]])
        super().finish(module)
