"""The modules that a decoder is made of, and the factory that makes them.

Weights come from a checkpoint: a new module holds whatever is in memory, since initializing it
would only cost time. model.weights.checkpoint fills it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.decoder.config import DecoderConfig

PREFILL_CHUNK = 512  # positions
Norm = nn.LayerNorm | nn.RMSNorm


class Linear(nn.Linear):
    """A linear layer without initialization."""

    def reset_parameters(self) -> None:
        pass


class Embeddings(nn.Module, ABC):
    """ids (...) -> (..., hidden)."""

    @abstractmethod
    def as_head(self, x: Tensor) -> Tensor:
        """The logits where the head is tied to the embeddings.

        x (..., hidden) -> (..., vocabulary).
        """

    @abstractmethod
    def holds(self, weights: Tensor) -> bool:
        """Whether these are the weights."""


class Embedding(nn.Embedding, Embeddings):
    """Embeddings as floats, without initialization."""

    def reset_parameters(self) -> None:
        pass

    def as_head(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def holds(self, weights: Tensor) -> bool:
        return torch.equal(weights.to(self.weight), self.weight)


class RMSNormPlusOne(nn.RMSNorm):
    """Multiplies by 1 + weight, in float32 whatever the type of x (Gemma, arXiv 2403.08295)."""

    @property
    def gains(self) -> Tensor:
        return 1 + self.weight.float()

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), self.normalized_shape, self.gains, self.eps)
        return normed.type_as(x)


def gains_of(norm: Norm) -> Tensor:
    """What a norm multiplies by."""
    return norm.gains if isinstance(norm, RMSNormPlusOne) else norm.weight


class Packed(nn.Module, ABC):
    """A module that keeps its matrix in a form of its own."""

    @abstractmethod
    def fill(self, first: int, weights: Tensor) -> None:
        """Takes weights (n, width) as the rows from `first` on."""

    def takes_blocks(self, kind: str) -> bool:
        """Whether `fill_blocks` takes blocks of that kind (model.ggml)."""
        return False

    def fill_blocks(self, first: int, kind: str, raw: Tensor) -> None:
        """Takes rows of blocks as a file holds them, uint8 (n, bytes of a row), as the rows from
        `first` on."""
        raise NotImplementedError

    @abstractmethod
    def finish(self) -> None:
        """Packs the matrix. Called once all of its rows are there."""


def pack(module: nn.Module) -> None:
    """Called when all weights of a module are there."""
    if isinstance(module, Packed):
        module.finish()


@dataclass(frozen=True)
class Factory:
    """Makes modules whose weights are floats.

    model.cpu.quantized_linear and model.precision.bitsandbytes_linear make modules of fewer bits.
    """

    device: torch.device
    dtype: torch.dtype
    # See model.decoder.layers.Attention.
    interleaved: ClassVar[bool] = False
    scaled_queries: ClassVar[bool] = False

    @property
    def scheme(self) -> str:
        """How the matrices are kept and multiplied, as far as results depend on it."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def cache_dtype(self) -> torch.dtype:
        """The type of cached keys and values."""
        return self.dtype

    @property
    def prefill_chunk(self) -> int:
        """Positions between two commits of a prefill. A cancelled prefill loses at most these."""
        return PREFILL_CHUNK

    def linear(self, width: int, out: int, bias: bool) -> nn.Module:
        return Linear(width, out, bias=bias, device=self.device, dtype=self.dtype)

    def qkv(self, config: DecoderConfig) -> nn.Module:
        """The fused projection for queries, keys and values: hidden -> (H + 2K) D."""
        return self.linear(config.hidden_size, config.qkv_size, config.qkv_bias)

    def head(self, config: DecoderConfig) -> nn.Module:
        """The causal language-model head where it is not tied: hidden -> vocabulary."""
        return self.linear(config.hidden_size, config.vocab_size, False)

    def embedding(self, vocabulary: int, hidden: int) -> Embeddings:
        return Embedding(vocabulary, hidden, device=self.device, dtype=self.dtype)

    def norm(self, config: DecoderConfig) -> Norm:
        """The config's kind of norm over the hidden dimension."""
        kind: type[Norm] = nn.RMSNorm if config.norm == "rms_norm" else nn.LayerNorm
        if config.norm_adds_one:
            kind = RMSNormPlusOne
        return kind(config.hidden_size, config.norm_eps, device=self.device, dtype=self.dtype)

    def positions(self, config: DecoderConfig) -> nn.Parameter:
        """A learned vector for each position, (positions, hidden)."""
        shape = (config.max_positions, config.hidden_size)
        return nn.Parameter(torch.empty(shape, device=self.device, dtype=self.dtype))

    def head_gains(self, heads: int, dim: int) -> nn.Parameter:
        """The weights of a norm on each of the heads, (heads, D)."""
        return nn.Parameter(torch.ones(heads, dim, device=self.device, dtype=self.dtype))

    def finish(self, module: nn.Module) -> None:
        """Called when all weights of a module are there."""
        pack(module)
