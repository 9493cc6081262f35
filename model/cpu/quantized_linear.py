"""int8 weights on a CPU: one scale a row of a matrix (absmax / 127), float32 between the matrices.

Source of the scheme: LLM.int8() (Dettmers et al. 2022), without its outlier columns. Activations
are rounded, too, to one scale a token, by the kernels that multiply integers (model.kernels): their
sums are exact, so that a row's result does not depend on the rows beside it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from model.cpu.kernels import Kernel, Plan, Shape, kernels, make_plan, piece_rows
from model.decoder.config import DecoderConfig
from model.decoder.factory import PREFILL_CHUNK, Embeddings, Factory, Packed
from model.decoder.layers import Attention
from model.machine import give_back_memory

LARGEST = 127


def quantize_rows(weights: Tensor) -> tuple[Tensor, Tensor]:
    """weights (n, width) -> int8 (n, width) and float32 scales (n,): what they are multiplied
    with."""
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
        plan: Plan,
        *,
        keep_rows: bool = False,
        order: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """keep_rows: the int8 matrix stays readable by rows, as embeddings need it. order: results
        come in the order of these rows, each multiplied by its factor."""
        super().__init__()
        self.width, self.out, self.plan = width, out, plan
        self._keep_rows, self._order = keep_rows, order
        self.matrix = torch.empty(out, width, dtype=torch.int8)
        self.scale = torch.empty(out)
        self.bias = nn.Parameter(torch.zeros(out), requires_grad=False) if bias else None
        self.few: tuple[Kernel, Any]  # with what it has packed
        self._many: tuple[Kernel, Any]

    def fill(self, first: int, weights: Tensor) -> None:
        """Quantizes weights (n, width) into the rows from `first` on."""
        rows = piece_rows(self.width)
        for start in range(0, len(weights), rows):
            piece = slice(first + start, first + min(start + rows, len(weights)))
            self.matrix[piece], self.scale[piece] = quantize_rows(weights[start : start + rows])

    def finish(self) -> None:
        if self._order is not None:
            order, factors = self._order
            self.matrix, self.scale = self.matrix[order], self.scale[order] * factors
            if self.bias is not None:
                self.bias.data = self.bias.data[order] * factors
        packed = {name: kernels()[name].pack(self.matrix, self.scale) for name in self.plan.names}
        self.few, self._many = (
            (kernels()[name], packed[name]) for name in (self.plan.few, self.plan.many)
        )
        # The plain matrix goes where nothing works on it.
        if not (self._keep_rows or self.plan.small or any(kernels()[name].raw for name in packed)):
            self.matrix = torch.empty(0, dtype=torch.int8)
            give_back_memory()  # packing leaves as much in the heap as half of what it packs

    def share(self, matrix: Tensor) -> None:
        """Takes an equal matrix in place of its own, which is then free."""
        self.matrix = matrix
        forms = (self.few, self._many)
        self.few, self._many = (
            (k, k.pack(matrix, self.scale) if k.raw else packed) for k, packed in forms
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) float32 -> (..., out) float32."""
        flat = x.reshape(-1, self.width)
        kernel, packed = self.few if len(flat) <= self.plan.few_rows else self._many
        y, factor = kernel.product(flat.to(kernel.takes), packed)
        y = y.float()
        if factor is not None:
            y = y * factor if self.bias is None else torch.addcmul(self.bias, y, factor)
        elif self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out)


class Int8Embedding(Embeddings, Packed):
    """Rows of an int8 matrix; as a head, too, where the two are tied."""

    def __init__(self, vocabulary: int, hidden: int, plan: Plan | None) -> None:
        """plan: of the head; None for embeddings that are none."""
        super().__init__()
        self.hidden = hidden
        self.linear = Int8Linear(hidden, vocabulary, False, plan or Plan("", "", 0), keep_rows=True)
        self._is_head = plan is not None

    def fill(self, first: int, weights: Tensor) -> None:
        self.linear.fill(first, weights)

    def holds(self, weights: Tensor) -> bool:
        """Whether these are the weights, as far as eight bits tell."""
        rows, scale = quantize_rows(weights)
        return torch.equal(rows, self.linear.matrix) and torch.equal(scale, self.linear.scale)

    def finish(self) -> None:
        if self._is_head:
            self.linear.finish()

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) -> (..., hidden) float32."""
        return self.linear.matrix[ids] * self.linear.scale[ids][..., None]

    def as_head(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x)
        return logits


@dataclass(frozen=True)
class Int8Factory(Factory):
    """Makes the modules of a decoder with int8 matrices, and attention in pairs."""

    interleaved: ClassVar[bool] = True

    plan: Plan
    config: DecoderConfig

    @property
    def scheme(self) -> str:
        plan = self.plan
        return "int8 " + (
            plan.many
            if plan.few == plan.many
            else f"{plan.many}, {plan.few} to {plan.few_rows} rows"
        )

    @property
    def prefill_chunk(self) -> int:
        if self.plan.small:
            return PREFILL_CHUNK
        return self.plan.piece  # a large model's prefill takes long, and may be cancelled

    @classmethod
    def for_cpu(cls, config: DecoderConfig, measured: Path | None = None) -> Int8Factory:
        """measured: see kernels.make_plan."""
        plan = make_plan(step_shapes(config), measured)
        return cls(torch.device("cpu"), torch.float32, plan, config)

    def linear(self, width: int, out: int, bias: bool) -> nn.Module:
        return Int8Linear(width, out, bias, self.plan)

    def qkv(self, config: DecoderConfig) -> nn.Module:
        return Int8Linear(
            config.hidden_size, config.qkv_size, config.qkv_bias, self.plan, order=paired(config)
        )

    def finish(self, module: nn.Module) -> None:
        if isinstance(module, Attention):  # of its own it has only the gains of its norms
            pair_gains(self.config, module.q_norm, module.k_norm)
        super().finish(module)

    def embedding(self, vocabulary: int, hidden: int) -> Embeddings:
        return Int8Embedding(vocabulary, hidden, self.plan if self.config.tie_embeddings else None)


def step_shapes(config: DecoderConfig) -> Counter[Shape]:
    """The matrices that one step multiplies with, and how often each shape occurs."""
    hidden, inner, heads = (
        config.hidden_size,
        config.intermediate_size,
        config.num_heads * config.head_dim,
    )
    layer = (
        (config.qkv_size, hidden),
        (hidden, heads),
        (inner * (2 if config.gated_mlp else 1), hidden),
        (hidden, inner),
    )
    found: Counter[Shape] = Counter()
    for shape in layer:
        found[shape] += config.num_layers
    found[config.vocab_size, hidden] += 1
    return found


def paired(config: DecoderConfig) -> tuple[Tensor, Tensor]:
    """(order, factors) of the rows of the fused projection, both (rows,): see layers.Attention.

    With a norm on the queries their scale cannot be in the rows: `pair_gains` puts it into the
    norm's gains.
    """
    dim, width, heads = config.rope.dim, config.head_dim, config.num_heads
    total = heads + 2 * config.num_kv_heads
    order = torch.arange(total * width).view(total, width)
    turned = order[: heads + config.num_kv_heads, :dim]
    first, second = turned.clone().chunk(2, dim=-1)
    turned[:, 0::2], turned[:, 1::2] = first, second
    factors = torch.ones(total, width)
    if not config.qk_norm:
        factors[:heads] = width**-0.5
    return order.flatten(), factors.flatten()


def pair_gains(config: DecoderConfig, q_norm: Tensor, k_norm: Tensor) -> None:
    """Puts the gains of the norms on queries (heads, D) and keys (KV heads, D) into the order of
    `paired`, in place."""
    order = paired(config)[0][: config.head_dim]
    q_norm.copy_(q_norm[:, order] * config.head_dim**-0.5)
    k_norm.copy_(k_norm[:, order])
