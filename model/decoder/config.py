"""DecoderConfig: every way in which the supported families differ, as a frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from model.errors import ModelError

# Keys of config.json that do not change what the decoder computes at inference.
HARMLESS_KEYS = frozenset(
    "_name_or_path add_cross_attention architectures attention_dropout bos_token_id "
    "chunk_size_feed_forward "
    "classifier_dropout decoder_start_token_id dtype embedding_dropout eos_token_id "
    "finetuning_task "
    "gradient_checkpointing hidden_dropout id2label initializer_range is_decoder "
    "is_encoder_decoder label2id "
    "max_window_layers model_type output_attentions output_hidden_states pad_token_id problem_type "
    "residual_dropout return_dict tie_encoder_decoder torch_dtype transformers_version "
    "unk_token_id use_cache "
    "vocab_size quantization_config".split()
)


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021) and its extensions to longer contexts."""

    kind: Literal["default", "linear", "llama3", "yarn"]
    theta: float
    dim: int  # how many of a head's dimensions are rotated; the first ones
    original_max_positions: int  # of the context before its extension
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        for name in ("theta", "factor", "original_max_positions", "beta_fast", "beta_slow"):
            if not getattr(self, name) > 0:
                raise ModelError(
                    f"config.json: the rotary embedding's {name} is {getattr(self, name)}, not "
                    "positive"
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
    max_positions: int
    norm_eps: float
    rope: RopeConfig
    activation: Literal["gelu_tanh", "gelu", "silu"]
    gated_mlp: bool  # down(act(gate) * up) rather than down(act(up))
    sliding_window: int | None = None  # a position sees itself and the window - 1 before it
    qkv_bias: bool = False
    out_bias: bool = False  # attention's output projection
    mlp_bias: bool = False
    qk_norm: bool = False  # a LayerNorm per head on queries and keys, before the rotation
    parallel_residual: bool = False  # x + attention(norm(x)) + mlp(norm(x)), one norm for both
    tie_embeddings: bool = False
    stop_ids: tuple[int, ...] = ()

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def qkv_size(self) -> int:
        """Of queries, keys and values together."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "max_positions",
        ):
            if getattr(self, name) < 1:
                raise ModelError(
                    f"config.json: {name} is {getattr(self, name)}, but must be positive"
                )
        if self.hidden_size % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"config.json: {self.hidden_size} dimensions, {self.num_heads} heads and "
                f"{self.num_kv_heads} "
                "key/value heads do not divide evenly"
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ModelError(
                f"config.json: sliding_window is {self.sliding_window}, but must be positive or "
                "null"
            )
        if self.rope.dim % 2 or not 0 < self.rope.dim <= self.head_dim:
            raise ModelError(
                f"config.json: {self.rope.dim} of {self.head_dim} head dimensions cannot be rotated"
            )


@dataclass(frozen=True, slots=True)
class WeightSlot:
    """Where a checkpoint's tensor goes: rows first_row and following of one of the decoder's
    parameters."""

    parameter: str
    first_row: int
    shape: tuple[int, ...]


class WeightTable:
    """Builds a family's table of checkpoint names -> slots; starts with what the families name
    alike."""

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config
        self.slots: dict[str, WeightSlot] = {}
        hidden, width = config.hidden_size, config.num_heads * config.head_dim
        kv_width = config.num_kv_heads * config.head_dim
        self._matrix("model.embed_tokens", "embed_tokens", config.vocab_size, hidden)
        for i in range(config.num_layers):
            theirs, ours, bias = f"model.layers.{i}", f"layers.{i}", config.qkv_bias
            attention, fused = f"{theirs}.self_attn", f"{ours}.attention.qkv"
            self.linear(f"{attention}.q_proj", fused, width, hidden, bias)
            self.linear(f"{attention}.k_proj", fused, kv_width, hidden, bias, first_row=width)
            self.linear(
                f"{attention}.v_proj", fused, kv_width, hidden, bias, first_row=width + kv_width
            )
            self.linear(
                f"{attention}.o_proj", f"{ours}.attention.out", hidden, width, config.out_bias
            )
            self.norm(f"{theirs}.input_layernorm", f"{ours}.attention_norm")
            if not config.parallel_residual:
                self.norm(f"{theirs}.post_attention_layernorm", f"{ours}.mlp_norm")
        self.norm("model.norm", "norm")
        if not config.tie_embeddings:
            self._matrix("lm_head", "head", config.vocab_size, hidden)

    def linear(
        self,
        name: str,
        parameter: str,
        rows: int,
        columns: int,
        bias: bool = False,
        first_row: int = 0,
    ) -> None:
        self._matrix(name, parameter, rows, columns, first_row)
        if bias:
            self.slots[f"{name}.bias"] = WeightSlot(f"{parameter}.bias", first_row, (rows,))

    def norm(self, name: str, parameter: str) -> None:
        for part in ("weight", "bias"):
            self.slots[f"{name}.{part}"] = WeightSlot(
                f"{parameter}.{part}", 0, (self.config.hidden_size,)
            )

    def _matrix(
        self, name: str, parameter: str, rows: int, columns: int, first_row: int = 0
    ) -> None:
        self.slots[f"{name}.weight"] = WeightSlot(f"{parameter}.weight", first_row, (rows, columns))


class Keys:
    """Reads a Hugging Face config.json and remembers what was read, so that what was not can be
    reported."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.read: set[str] = set()

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """The value of a key, or the default where it is absent or null.

        Raises ModelError when the value is of another type.
        """
        self.read.add(key)
        value = self.raw.get(key)
        if value is None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and kind is float:
            return float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ModelError(f"config.json: {key} is {value!r}, which is not of the expected type")
        return value

    def finish(self) -> None:
        """Raises ModelError for a key that nobody read and that may change the result."""
        unknown = sorted(set(self.raw) - self.read - HARMLESS_KEYS)
        if unknown:
            raise ModelError(
                "config.json has keys that fimls does not know and that may change the result: "
                f"{', '.join(unknown)}"
            )


def activation(name: str) -> Literal["gelu_tanh", "gelu", "silu"]:
    names: dict[str, Literal["gelu_tanh", "gelu", "silu"]] = {
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_new": "gelu_tanh",
        "gelu": "gelu",
        "silu": "silu",
        "swish": "silu",
    }
    if name not in names:
        raise ModelError(
            f"config.json: hidden_act {name!r} is unknown; known are {', '.join(names)}"
        )
    return names[name]


def rope_config(
    keys: Keys, head_dim: int, max_positions: int, partial_default: float
) -> RopeConfig:
    """Reads rope_parameters, or the older rope_theta, rope_scaling and partial_rotary_factor."""
    parameters = dict(keys.get("rope_scaling", dict, {}))
    parameters |= keys.get("rope_parameters", dict, {})
    old_theta = keys.get("rope_theta", float, 10000.0)
    old_partial = keys.get("partial_rotary_factor", float, partial_default)
    inner = Keys(parameters)
    kind = inner.get("rope_type", str) or inner.get("type", str, "default")
    inner.read |= {"type", "rope_type"}
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise ModelError(
            f"config.json: rope type {kind!r} is not supported; supported are default, linear, "
            "llama3 and yarn"
        )
    partial = inner.get("partial_rotary_factor", float, old_partial)
    rope = RopeConfig(
        kind=kind,
        theta=inner.get("rope_theta", float, old_theta),
        dim=int(head_dim * partial),
        factor=inner.get("factor", float, 1.0),
        original_max_positions=inner.get("original_max_position_embeddings", int, max_positions),
        low_freq_factor=inner.get("low_freq_factor", float, 1.0),
        high_freq_factor=inner.get("high_freq_factor", float, 4.0),
        beta_fast=inner.get("beta_fast", float, 32.0),
        beta_slow=inner.get("beta_slow", float, 1.0),
        attention_factor=inner.get("attention_factor", float),
    )
    inner.finish()
    return rope


def stop_ids(raw: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end a text, from eos_token_id (one id, a list, or none)."""
    value = raw.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int for i in ids):
        raise ModelError(
            f"config.json: eos_token_id is {value!r}, but must be a token id or a list of them"
        )
    return tuple(ids)
