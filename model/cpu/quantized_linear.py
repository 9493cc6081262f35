"""The modules of a decoder with int8 weights: one scale a row of a matrix (absmax / 127), float32
between the matrices.

Source of the scheme: LLM.int8() (Dettmers et al. 2022), without its outlier columns. The kernels
that multiply integers (kernels.py) round activations, too, to one scale a token. Their sums are
exact, so that a row's result does not depend on the rows beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from model.cpu.kernels import Kernel, Plan, kernels, make_plan, piece_rows
from model.decoder.config import DecoderConfig
from model.decoder.factory import PREFILL_CHUNK, Embeddings, Factory, Packed
from model.decoder.layers import Attention
from model.machine import give_back_memory

LARGEST = 127
CHUNK = 128  # positions of a large model's prefill, which takes long, and may be cancelled
SMALL_BYTES = 256 * 2**20  # of weights, which may be kept in two forms

PackedMatrix = tuple[Kernel, Any]
"""A kernel with a matrix in the form that it takes."""

TensorSpec = tuple[tuple[int, ...], torch.dtype]
"""shape, type"""


def quantize_rows(weights: Tensor) -> tuple[Tensor, Tensor]:
    """weights (n, width) -> int8 (n, width) and float32 scales (n,), whose product they are."""
    weights = weights.float()
    # A row of zeros has any scale.
    scale = weights.abs().amax(-1).clamp_min_(torch.finfo(torch.float32).tiny).div_(LARGEST)
    return torch.round(weights / scale[:, None]).to(torch.int8), scale


class Int8Linear(Packed):
    """y = x W^T + b. `fill` quantizes rows of W as they are read, `finish` packs them for the
    plan's kernels."""

    def __init__(
        self,
        width: int,
        out: int,
        bias: bool,
        plan: Plan | None,
        *,
        keep_rows: bool = False,
        order: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """plan: None where nothing is multiplied. keep_rows: `rows` can be called, as embeddings
        need it. order: `finish` puts the rows into this order, and multiplies each by its factor.
        """
        super().__init__()
        self.width = width
        self.out = out
        self.plan = plan
        self.matrix = torch.empty(out, width, dtype=torch.int8)
        self.scale = torch.empty(out)
        self.bias = nn.Parameter(torch.zeros(out), requires_grad=False) if bias else None
        self.few: PackedMatrix
        self._many: PackedMatrix
        self._keep_rows = keep_rows
        self._order = order

    def fill(self, first: int, weights: Tensor) -> None:
        """Quantizes weights (n, width) into the rows from `first` on."""
        for part in torch.split(weights, piece_rows(self.width)):
            last = first + len(part)
            self.matrix[first:last], self.scale[first:last] = quantize_rows(part)
            first = last

    def finish(self) -> None:
        if self._order is not None:
            order, factors = self._order
            self.matrix = self.matrix[order]
            self.scale = self.scale[order] * factors
            if self.bias is not None:
                self.bias.data = self.bias.data[order] * factors
            self._order = None
        if self.plan is None:
            return
        packed = {name: self._packed(kernels()[name]) for name in self.plan.names}
        self.few = packed[self.plan.few]
        self._many = packed[self.plan.many]
        if not self._keep_rows and not any(kernel.raw for kernel, _ in packed.values()):
            self.matrix = torch.empty(0, dtype=torch.int8)
            give_back_memory()  # packing leaves as much in the heap as half of what it packs

    def _packed(self, kernel: Kernel) -> PackedMatrix:
        return kernel, kernel.pack(self.matrix, self.scale)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows `ids` (...) of the int8 matrix, (..., width)."""
        return self.matrix[ids]

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) float32 -> (..., out) float32."""
        flat = x.reshape(-1, self.width)
        assert self.plan is not None
        chosen, packed = self.few if len(flat) <= self.plan.few_rows else self._many
        y, factor = chosen.product(flat.to(chosen.takes), packed)
        y = y.float()
        if factor is not None and self.bias is not None:
            y = torch.addcmul(self.bias, y, factor)
        elif factor is not None:
            y = y * factor
        elif self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out)


class Int8Embedding(Embeddings, Packed):
    """Embeddings as rows of an int8 matrix, which is the head's, too, where the two are tied."""

    def __init__(self, vocabulary: int, hidden: int, plan: Plan | None) -> None:
        """plan: of the head; None where the head has a matrix of its own."""
        super().__init__()
        self.hidden = hidden
        self.linear = Int8Linear(hidden, vocabulary, False, plan, keep_rows=True)

    def fill(self, first: int, weights: Tensor) -> None:
        self.linear.fill(first, weights)

    def holds(self, weights: Tensor) -> bool:
        """Whether these are the weights, as far as eight bits tell."""
        rows, scale = quantize_rows(weights)
        if not torch.equal(scale, self.linear.scale):
            return False
        return torch.equal(rows, self.linear.rows(torch.arange(len(rows))))

    def finish(self) -> None:
        self.linear.finish()

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) -> (..., hidden) float32."""
        return self.linear.rows(ids) * self.linear.scale[ids][..., None]

    def as_head(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x)
        return logits


@dataclass(frozen=True)
class Int8Factory(Factory):
    """Makes the modules of a decoder with int8 matrices and interleaved attention."""

    interleaved: ClassVar[bool] = True
    scaled_queries: ClassVar[bool] = True

    plan: Plan
    config: DecoderConfig

    @classmethod
    def for_cpu(cls, config: DecoderConfig) -> Int8Factory:
        plan = make_plan(small=is_small(config))
        return cls(torch.device("cpu"), torch.float32, plan, config)

    @property
    def scheme(self) -> str:
        plan = self.plan
        if plan.few == plan.many:
            return f"int8 {plan.many}"
        return f"int8 {plan.many}, {plan.few} to {plan.few_rows} rows"

    @property
    def prefill_chunk(self) -> int:
        return PREFILL_CHUNK if is_small(self.config) else CHUNK

    def linear(self, width: int, out: int, bias: bool) -> nn.Module:
        return Int8Linear(width, out, bias, self.plan)

    def qkv(self, config: DecoderConfig) -> nn.Module:
        order = interleaving(config)
        return Int8Linear(
            config.hidden_size, config.qkv_size, config.qkv_bias, self.plan, order=order
        )

    def embedding(self, vocabulary: int, hidden: int) -> Embeddings:
        return Int8Embedding(vocabulary, hidden, self.plan if self.config.tie_embeddings else None)

    def finish(self, module: nn.Module) -> None:
        if isinstance(module, Attention):  # its own weights are only the gains of its norms
            interleave_gains(self.config, module.q_norm, module.k_norm)
        super().finish(module)


def is_small(config: DecoderConfig) -> bool:
    return config.step_weights <= SMALL_BYTES


def interleaving(config: DecoderConfig) -> tuple[Tensor, Tensor]:
    """(order, factors) of the rows of the fused projection, both (rows,): see layers.Attention.

    The factors put the scale of the scores into the queries. With a norm on the queries the rows
    cannot hold it: `interleave_gains` puts it into the norm's gains.
    """
    dim = config.rotated_dim
    heads = config.num_heads
    shape = (heads + 2 * config.num_kv_heads, config.head_dim)
    order = torch.arange(shape[0] * shape[1]).view(shape)
    rotated = order[: heads + config.num_kv_heads, :dim]
    first, second = rotated.clone().chunk(2, dim=-1)
    rotated[:, 0::2] = first
    rotated[:, 1::2] = second
    factors = torch.ones(shape)
    if not config.qk_norm:
        factors[:heads] = config.score_scale
    return order.flatten(), factors.flatten()


def interleave_gains(config: DecoderConfig, q_norm: Tensor, k_norm: Tensor) -> None:
    """Puts the gains of queries (H, D) and keys (K, D), or of all heads (1, D), into the same
    order, in place."""
    order = interleaving(config)[0][: config.head_dim]
    q_norm.copy_(q_norm[:, order] * config.score_scale)
    k_norm.copy_(k_norm[:, order])
