"""The modules of a decoder with weights in blocks, and the factory that makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.cpu.blocks.kernel import PRODUCT, Part
from model.cpu.blocks.layout import BLOCK, BY_NAME, OUTPUTS, Format
from model.cpu.blocks.packing import pack, quantize, unpack
from model.cpu.quantized_linear import interleaving
from model.decoder.config import DecoderConfig
from model.decoder.factory import Embeddings, Factory, Packed
from model.decoder.layers import Attention
from model.ggml import KINDS, Quantized, quantized

AT_ONCE = 2**21  # weights that are packed at once


class BlockLinear(Packed):
    """y = x W^T + b. Tensors of a checkpoint that already are in blocks stay as they are; others
    are rounded to `format_`. parts: from the first row to the last."""

    def __init__(
        self, width: int, out: int, bias: bool, format_: Format, order: Tensor | None = None
    ) -> None:
        """order: the rows' order in memory, which keeps the rows of each tensor together."""
        super().__init__()
        self.width = width
        self.out = out
        self.format = format_
        self.bias = nn.Parameter(torch.zeros(out), requires_grad=False) if bias else None
        self.parts: list[Part] = []
        self._order = order

    def takes_blocks(self, kind: str) -> bool:
        return kind in KINDS

    def fill(self, first: int, weights: Tensor) -> None:
        """Rounds weights (n, width), the rows from `first` on."""
        padded = -self.width % self.format.columns
        rows = self._rows(first, len(weights))

        def read(some: slice) -> Quantized:
            return quantize(F.pad(weights[rows[some]].float(), (0, padded)), self.format)

        self._add(first, len(weights), self.format, read)

    def fill_blocks(self, first: int, kind: str, raw: Tensor) -> None:
        """Takes blocks of one of KINDS, uint8 (n, bytes of a row)."""
        rows = self._rows(first, len(raw))
        self._add(first, len(raw), BY_NAME[kind], lambda some: quantized(kind, raw[rows[some]]))

    def _add(self, first: int, count: int, format_: Format, read: Any) -> None:
        step = max(1, AT_ONCE // (OUTPUTS * self.width)) * OUTPUTS
        pieces = [slice(start, start + step) for start in range(0, count, step)]
        panels = torch.cat([pack(read(some), format_) for some in pieces])
        self.parts.append(Part(first, count, format_, panels))

    def _rows(self, first: int, count: int) -> Tensor:
        """The rows of a tensor in the order of memory."""
        if self._order is None:
            return torch.arange(count)
        return self._order[first : first + count] - first

    def finish(self) -> None:
        self.parts.sort(key=lambda part: part.first)
        if self._order is not None and self.bias is not None:
            self.bias.data = self.bias.data[self._order]

    @property
    def padded_width(self) -> int:
        """The width in whole blocks."""
        return -(-self.width // BLOCK) * BLOCK

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) float32 -> (..., out) float32."""
        y = PRODUCT.multiply(x.reshape(-1, self.width), self.parts, self.out)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], self.out)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows `ids` (n,) as float32 (n, width)."""
        (part,) = self.parts
        panels, at = torch.unique(ids // OUTPUTS, return_inverse=True)
        floats = unpack(part.panels[panels], part.format).floats()
        return floats.view(len(panels), OUTPUTS, -1)[at, ids % OUTPUTS, : self.width]

    def floats(self) -> Tensor:
        """The matrix (out, width) as float32, in the order of memory."""
        each = [
            unpack(part.panels, part.format).floats()[: part.rows, : self.width]
            for part in self.parts
        ]
        return torch.cat(each)


class BlockEmbedding(Embeddings, Packed):
    """Embeddings as rows of a matrix in blocks, which is the head's, too, where both are tied."""

    def __init__(self, vocabulary: int, hidden: int, format_: Format) -> None:
        super().__init__()
        self.linear = BlockLinear(hidden, vocabulary, False, format_)

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

    format: of what is rounded here: weights that a checkpoint holds as floats.
    """

    config: DecoderConfig
    format: Format
    interleaved: ClassVar[bool] = True

    @classmethod
    def for_cpu(cls, config: DecoderConfig, format_: Format) -> BlockFactory:
        return cls(torch.device("cpu"), torch.float32, config, format_)

    @property
    def scheme(self) -> str:
        return f"blocks {self.format.name}"

    @property
    def prefill_chunk(self) -> int:
        return 32

    def linear(self, width: int, out: int, bias: bool) -> nn.Module:
        return BlockLinear(width, out, bias, self.format)

    def qkv(self, config: DecoderConfig) -> nn.Module:
        order, _ = interleaving(config)
        bias = config.qkv_bias
        return BlockLinear(config.hidden_size, config.qkv_size, bias, self.format, order)

    def embedding(self, vocabulary: int, hidden: int) -> Embeddings:
        return BlockEmbedding(vocabulary, hidden, BY_NAME["q8_0"])

    def head(self, config: DecoderConfig) -> nn.Module:
        return BlockLinear(config.hidden_size, config.vocab_size, False, BY_NAME["q8_0"])

    def finish(self, module: nn.Module) -> None:
        if isinstance(module, Attention):  # its own weights are only the gains of its norms
            order, _ = interleaving(self.config)
            for gains in (module.q_norm, module.k_norm):
                gains.copy_(gains[:, order[: self.config.head_dim]])
        super().finish(module)
