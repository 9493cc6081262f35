"""The table of a checkpoint's tensor names: where in our decoder each tensor goes.

The decoder keeps queries, keys and values in one matrix, and gate and up too. So a tensor of the
checkpoint goes to some rows of a parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.decoder.config import DecoderConfig

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class WeightSlot:
    """Rows first_row and following of one of the decoder's parameters."""

    parameter: str
    first_row: int
    shape: tuple[int, ...]  # of the checkpoint's tensor

    @property
    def is_norm(self) -> bool:
        """Whether it is the weight of a norm on the residual stream."""
        return self.parameter.endswith("norm.weight")

    def read(self, parameter: Tensor) -> Tensor:
        """Its part of the parameter, or of what has the parameter's shape."""
        rows = 1 if parameter.dim() > len(self.shape) else self.shape[0]
        return parameter[self.first_row : self.first_row + rows].reshape(self.shape)

    def is_rotated(self, config: DecoderConfig) -> bool:
        """Whether the rows make queries or keys, which the rotary embedding rotates."""
        first_value = (config.num_heads + config.num_kv_heads) * config.head_dim
        return ".attention.qkv." in self.parameter and self.first_row < first_value


class WeightTable:
    """Builds a family's table of checkpoint names -> slots.

    A new table holds what most families name alike: embeddings, attention, norms and head.
    """

    def __init__(self, config: DecoderConfig, *, plain: bool = True) -> None:
        """plain: the family has the usual names; else the table begins empty."""
        self.config = config
        self.slots: dict[str, WeightSlot] = {}
        if plain:
            self._add_usual()

    def _add_usual(self) -> None:
        config = self.config
        self.linear("model.embed_tokens", "embed_tokens", config.vocab_size, config.hidden_size)
        for layer in range(config.num_layers):
            self._attention(f"model.layers.{layer}", f"layers.{layer}")
        self.norm("model.norm", "norm")
        if not config.tie_embeddings:
            self.linear("lm_head", "head", config.vocab_size, config.hidden_size)

    def _attention(self, theirs: str, ours: str) -> None:
        """The tensors of one layer without its MLP. theirs, ours: the names of the layer."""
        config = self.config
        hidden = config.hidden_size
        width = config.num_heads * config.head_dim
        kv_width = config.num_kv_heads * config.head_dim
        bias = config.qkv_bias
        source = f"{theirs}.self_attn"
        fused = f"{ours}.attention.qkv"
        self.linear(f"{source}.q_proj", fused, width, hidden, bias)
        self.linear(f"{source}.k_proj", fused, kv_width, hidden, bias, first_row=width)
        self.linear(f"{source}.v_proj", fused, kv_width, hidden, bias, first_row=width + kv_width)
        self.linear(f"{source}.o_proj", f"{ours}.attention.out", hidden, width, config.out_bias)
        self.norm(f"{theirs}.input_layernorm", f"{ours}.attention_norm")
        if not config.parallel_residual:
            self.norm(f"{theirs}.post_attention_layernorm", f"{ours}.mlp_norm")

    def gated_mlps(self) -> None:
        """The gated MLPs of all layers, under the names that most families use."""
        hidden = self.config.hidden_size
        inner = self.config.intermediate_size
        bias = self.config.mlp_bias
        for layer in range(self.config.num_layers):
            source = f"model.layers.{layer}.mlp"
            mlp = f"layers.{layer}.mlp"
            self.linear(f"{source}.gate_proj", f"{mlp}.up", inner, hidden, bias)
            self.linear(f"{source}.up_proj", f"{mlp}.up", inner, hidden, bias, first_row=inner)
            self.linear(f"{source}.down_proj", f"{mlp}.down", hidden, inner, bias)

    def linear(
        self,
        name: str,
        parameter: str,
        rows: int,
        columns: int,
        bias: bool = False,
        first_row: int = 0,
    ) -> None:
        """A matrix (rows, columns) and its bias."""
        shape = (rows, columns)
        self.slots[f"{name}.weight"] = WeightSlot(f"{parameter}.weight", first_row, shape)
        if bias:
            self.slots[f"{name}.bias"] = WeightSlot(f"{parameter}.bias", first_row, (rows,))

    def norm(self, name: str, parameter: str) -> None:
        """The weight of a norm, and the bias of a layer norm."""
        shape = (self.config.hidden_size,)
        self.slots[f"{name}.weight"] = WeightSlot(f"{parameter}.weight", 0, shape)
        if self.config.norm == "layer_norm":
            self.slots[f"{name}.bias"] = WeightSlot(f"{parameter}.bias", 0, shape)


def gated_weight_table(config: DecoderConfig) -> dict[str, WeightSlot]:
    """The table of a family with gated MLPs under the usual names, and nothing of its own."""
    table = WeightTable(config)
    table.gated_mlps()
    return table.slots
