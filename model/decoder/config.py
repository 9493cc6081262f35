"""DecoderConfig: every way in which the supported families differ, as a frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.errors import ModelError

Activation = Literal["gelu_tanh", "gelu", "silu"]
RopeKind = Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3"]


MAX_EPS = 0.1
MAX_MULTIPLIER = 10**6


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021) and its extensions to longer contexts."""

    kind: RopeKind
    theta: float
    dim: int  # how many of a head's dimensions are rotated; the first ones
    original_max_positions: int  # of the context before its extension
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True  # yarn's ramp begins and ends at whole pairs
    mscale: float = 0.0  # yarn's attention factor is made of these two, where both are given
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None
    short_factor: tuple[float, ...] = ()  # each pair's divisor within the original context
    long_factor: tuple[float, ...] = ()  # and beyond it; longrope only

    @property
    def varies(self) -> bool:
        """Whether the frequencies depend on the length of the sequence."""
        return self.kind in ("dynamic", "longrope")

    def __post_init__(self) -> None:
        for name in ("theta", "factor", "original_max_positions", "beta_fast", "beta_slow"):
            if not getattr(self, name) > 0:
                raise ModelError(
                    f"config.json: the rotary embedding's {name} is {getattr(self, name)}, not "
                    "positive"
                )
        if self.kind == "dynamic" and self.dim == 2:
            raise ModelError("config.json: the rope type dynamic needs more than one rotated pair")
        if self.kind == "longrope":
            if self.original_max_positions < 2:
                raise ModelError(
                    "config.json: original_max_position_embeddings is "
                    f"{self.original_max_positions}, but must be at least 2 for the rope type "
                    "longrope"
                )
            self._check_divisors("short_factor")
            self._check_divisors("long_factor")

    def _check_divisors(self, name: str) -> None:
        divisors = getattr(self, name)
        if len(divisors) != self.dim // 2:
            raise ModelError(
                f"config.json: the rotary embedding's {name} has {len(divisors)} numbers, but must "
                f"have one for each of the {self.dim // 2} rotated pairs"
            )
        if not all(divisor > 0 for divisor in divisors):
            raise ModelError(
                f"config.json: the rotary embedding's {name} holds a number that is not positive"
            )


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Shapes and switches of a decoder. Sizes are in elements, positions in tokens."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm: Literal["layer_norm", "rms_norm"]  # a layer norm has a bias, an RMS norm has none
    norm_eps: float
    rope: RopeConfig | None  # None: one learned vector a position is added to the embeddings
    activation: Activation
    gated_mlp: bool  # down(act(gate) * up) rather than down(act(up))
    sliding_window: int | None = None  # a position sees itself and the window - 1 before it
    qkv_bias: bool = False
    out_bias: bool = False  # attention's output projection
    mlp_bias: bool = False
    norm_adds_one: bool = False  # norms multiply by 1 + weight; RMS norms only
    qk_norm: bool = False  # a norm of the same kind on each query and key, before the rotation
    qk_norm_shared: bool = False  # all heads share its weights, else each has its own
    attention_multiplier: float | None = None  # of the scores; None is 1 / sqrt(head_dim)
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0  # of what attention and MLP add to the residual stream
    logits_scaling: float = 1.0  # logits are divided by it
    parallel_residual: bool = False  # x + attention(norm(x)) + mlp(norm(x)), one norm for both
    tie_embeddings: bool = False
    stop_ids: tuple[int, ...] = ()

    @property
    def qkv_size(self) -> int:
        """Rows of the fused projection for queries, keys and values."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def layer_weights(self) -> int:
        """Weights of a layer's matrices."""
        attention = self.qkv_size + self.num_heads * self.head_dim
        mlp = (3 if self.gated_mlp else 2) * self.intermediate_size
        return self.hidden_size * (attention + mlp)

    @property
    def step_weights(self) -> int:
        """Weights that a step multiplies with: of the layers' matrices and the head."""
        return self.num_layers * self.layer_weights + self.vocab_size * self.hidden_size

    @property
    def rotated_dim(self) -> int:
        """How many of a head's dimensions are rotated."""
        return 0 if self.rope is None else self.rope.dim

    @property
    def score_scale(self) -> float:
        """The factor of the attention scores."""
        if self.attention_multiplier is None:
            return float(self.head_dim**-0.5)
        return self.attention_multiplier

    def __post_init__(self) -> None:
        sizes = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "max_positions",
        )
        for name in sizes:
            if getattr(self, name) < 1:
                raise ModelError(
                    f"config.json: {name} is {getattr(self, name)}, but must be positive"
                )
        if self.num_heads % self.num_kv_heads:
            raise uneven(self.hidden_size, self.num_heads, self.num_kv_heads)
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ModelError(
                f"config.json: sliding_window is {self.sliding_window}, but must be positive or "
                "null"
            )
        if self.rope and (self.rope.dim % 2 or not 0 < self.rope.dim <= self.head_dim):
            raise ModelError(
                f"config.json: {self.rope.dim} of {self.head_dim} head dimensions cannot be rotated"
            )
        if not 0 <= self.norm_eps <= MAX_EPS:
            raise ModelError(
                f"config.json: the epsilon of the norms is {self.norm_eps}, but must be from 0 to "
                f"{MAX_EPS}"
            )
        for name in ("embedding_multiplier", "residual_multiplier", "logits_scaling"):
            if not 0 < getattr(self, name) <= MAX_MULTIPLIER:
                raise ModelError(
                    f"config.json: {name} is {getattr(self, name)}, but must be positive, and at "
                    f"most {MAX_MULTIPLIER:,}"
                )


def uneven(hidden_size: int, num_heads: int, num_kv_heads: int) -> ModelError:
    """The error for sizes that do not divide into heads or into groups of heads."""
    return ModelError(
        f"config.json: {hidden_size} dimensions, {num_heads} heads and {num_kv_heads} "
        "key/value heads do not divide evenly"
    )
