"""Reads config.json as Hugging Face's transformers writes it.

A key that nobody reads and that may change the result is an error: a model that is not understood
whole is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from model.decoder.config import Activation, RopeConfig, RopeKind, uneven
from model.errors import ModelError

# Keys that do not change what the decoder computes at inference, in any family.
HARMLESS_KEYS = frozenset(
    """
    add_cross_attention architectures attention_dropout _attn_implementation_autoset
    bos_token_id chunk_size_feed_forward classifier_dropout decoder_start_token_id dtype
    embedding_dropout eos_token_id finetuning_task gradient_checkpointing hidden_dropout
    id2label initializer_range is_decoder is_encoder_decoder label2id max_window_layers
    model_type _name_or_path num_labels output_attentions output_hidden_states pad_token_id
    problem_type quantization_config resid_pdrop residual_dropout return_dict
    tie_encoder_decoder torch_dtype transformers_version unk_token_id unsloth_fixed
    unsloth_version use_cache vocab_size
    """.split()
)
MAX_LAYERS = 1000
MAX_POSITIONS = 2**24
MAX_STRETCH = 1000
MAX_BETA = 10**6
MAX_NUMBER = 2**63  # of any whole number in a model's configuration
# The fields that each rope type cannot do without.
ROPE_FIELDS: dict[RopeKind, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
ACTIVATIONS: dict[str, Activation] = {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
}


def finite(key: str, value: float) -> float:
    """The value as a float. Raises ModelError for NaN, and for what is as large as infinity."""
    with suppress(OverflowError):
        if math.isfinite(number := float(value)):
            return number
    raise ModelError(f"config.json: {key} is no finite number")


class ConfigReader:
    """Gives the values of config.json by key and type, and remembers which keys were read."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self._read: set[str] = set()

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """The value of a key, or the default where it is absent or null.

        Raises ModelError when the value is of another type.
        """
        self._read.add(key)
        value = self.raw.get(key)
        if value is None:
            return default
        is_bool = isinstance(value, bool)
        if isinstance(value, int | float) and not is_bool and kind is float:
            return finite(key, value)
        if not isinstance(value, kind) or (is_bool and kind is not bool):
            raise ModelError(f"config.json: {key} is {value!r}, which is not of the expected type")
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise ModelError(f"config.json: {key} is larger than it is in any model")
        return value

    def finish(self, harmless: Iterable[str] = ()) -> None:
        """Raises ModelError for a key that nobody read and that may change the result.

        harmless: keys of this family that do not change it, beside HARMLESS_KEYS.
        """
        unknown = sorted(set(self.raw) - self._read - HARMLESS_KEYS - set(harmless))
        if unknown:
            raise ModelError(
                "config.json has keys that fimls does not know and that may change the result: "
                f"{', '.join(unknown)}"
            )


def max_positions(reader: ConfigReader, default: int) -> int:
    """Prompt and completion together, in tokens; default: what the family means by the absent key.

    The rope type dynamic means the original context by max_position_embeddings: it goes on from
    there, up to `factor` times as far. Raises ModelError.
    """
    positions = stated_positions(reader, default)
    rope = ConfigReader(_rope_parameters(reader))
    if "dynamic" in (rope.raw.get("rope_type"), rope.raw.get("type")):
        factor = rope.get("factor", float, 1.0)
        if not 1 <= factor <= MAX_STRETCH:
            raise ModelError(
                f"config.json: the rotary embedding's factor is {factor}, but must be from 1 to "
                f"{MAX_STRETCH} for the rope type dynamic"
            )
        positions = _plausible(int(positions * factor))
    return positions


def stated_positions(reader: ConfigReader, default: int) -> int:
    """max_position_embeddings, or what older files call it. Raises ModelError."""
    older = "n_positions" in reader.raw and "max_position_embeddings" not in reader.raw
    key = "n_positions" if older else "max_position_embeddings"
    return _plausible(int(reader.get(key, int, default)))


def _plausible(positions: int) -> int:
    """The positions. Raises ModelError where a table of them would fill the memory."""
    if positions > MAX_POSITIONS:
        raise ModelError(f"config.json: {positions:,} positions are more than any model has")
    return positions


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a family means where config.json does not state it: sizes, and the id that ends a
    text."""

    vocab: int
    hidden: int
    inner: int  # of the MLP
    layers: int
    heads: int
    kv_heads: int | None  # None: as many as heads
    end: int | None  # None: the family has none
    positions: int


def common_fields(
    reader: ConfigReader,
    defaults: Defaults,
    *,
    act: str = "silu",
    tied: bool = False,
    rotated: float = 1.0,
    own_head_dim: bool = False,
    head_dim: int | None = None,
    rotary: bool = True,
) -> dict[str, Any]:
    """The fields of DecoderConfig for which all families have the same keys.

    act, tied, rotated (the share of a head's dimensions): what the family means by an absent key.
    own_head_dim: the family has the key head_dim; head_dim: so do those, and this is what they mean
    by its absence. rotary: positions are rotations. Raises ModelError.
    """
    hidden_size = reader.get("hidden_size", int, defaults.hidden)
    num_heads = reader.get("num_attention_heads", int, defaults.heads)
    num_kv_heads = reader.get("num_key_value_heads", int, defaults.kv_heads or num_heads)
    if own_head_dim or head_dim is not None:
        head_dim = reader.get("head_dim", int, head_dim)
    if head_dim is None:
        head_dim = _even_head_dim(hidden_size, num_heads, num_kv_heads)
    positions = max_positions(reader, defaults.positions)
    return {
        "vocab_size": reader.get("vocab_size", int, defaults.vocab),
        "hidden_size": hidden_size,
        "intermediate_size": reader.get("intermediate_size", int, defaults.inner),
        "num_layers": _num_layers(reader, defaults.layers),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "max_positions": positions,
        "rope": rope_config(reader, defaults, head_dim, rotated) if rotary else None,
        "activation": activation(reader.get("hidden_act", str, act)),
        "tie_embeddings": reader.get("tie_word_embeddings", bool, tied),
        "stop_ids": stop_ids(reader.raw, defaults.end),
    }


def _num_layers(reader: ConfigReader, default: int) -> int:
    layers: int = reader.get("num_hidden_layers", int, default)
    if layers > MAX_LAYERS:  # lists of them would fill the memory
        raise ModelError(f"config.json: {layers} layers are more than any model has")
    return layers


def _even_head_dim(hidden_size: int, num_heads: int, num_kv_heads: int) -> int:
    if num_heads < 1:
        return hidden_size  # DecoderConfig refuses such a number of heads
    if hidden_size % num_heads:
        raise uneven(hidden_size, num_heads, num_kv_heads)
    return hidden_size // num_heads


def activation(name: str) -> Activation:
    """Our name for a hidden_act. Raises ModelError."""
    if name not in ACTIVATIONS:
        raise ModelError(
            f"config.json: hidden_act {name!r} is unknown; known are {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def rope_config(
    reader: ConfigReader, defaults: Defaults, head_dim: int, partial_default: float
) -> RopeConfig:
    """Reads rope_parameters, or the older rope_theta, rope_scaling and partial_rotary_factor.

    Raises ModelError.
    """
    stated = stated_positions(reader, defaults.positions)
    old_theta = reader.get("rope_theta", float, 10000.0)
    old_partial = reader.get("partial_rotary_factor", float, partial_default)
    inner = ConfigReader(_rope_parameters(reader))
    kind = _rope_kind(inner)
    original = stated
    if kind in ("yarn", "longrope", "llama3"):
        # Phi 3 has the field beside rope_scaling, and transformers prefers it there.
        original = inner.get("original_max_position_embeddings", int, stated)
        original = reader.get("original_max_position_embeddings", int, original)
    else:  # transformers ignores the field
        inner.get("original_max_position_embeddings", int)
    default_factor = stated / max(original, 1) if kind in ("yarn", "longrope") else 1.0
    rotated = head_dim * inner.get("partial_rotary_factor", float, old_partial)
    rope = RopeConfig(
        kind=kind,
        theta=inner.get("rope_theta", float, old_theta),
        dim=int(min(rotated, MAX_NUMBER)),  # which cannot be: DecoderConfig says so
        factor=inner.get("factor", float, default_factor),
        original_max_positions=original,
        low_freq_factor=inner.get("low_freq_factor", float, 1.0),
        high_freq_factor=inner.get("high_freq_factor", float, 4.0),
        beta_fast=_within(inner, "beta_fast", 32.0, 0, MAX_BETA),
        beta_slow=_within(inner, "beta_slow", 1.0, 0, MAX_BETA),
        truncate=inner.get("truncate", bool, True),
        mscale=inner.get("mscale", float, 0.0),
        mscale_all_dim=inner.get("mscale_all_dim", float, 0.0),
        attention_factor=inner.get("attention_factor", float),
        short_factor=_numbers(inner, "short_factor"),
        long_factor=_numbers(inner, "long_factor"),
    )
    if kind == "yarn" and rope.theta <= 1:
        raise ModelError(f"config.json: rope_theta is {rope.theta}, but must be above 1 for yarn")
    inner.finish()
    return rope


def _within(reader: ConfigReader, key: str, default: float, least: float, most: float) -> float:
    """Raises ModelError for a number that is not from `least` to `most`."""
    value = float(reader.get(key, float, default))
    if not least <= value <= most:
        raise ModelError(f"config.json: {key} is {value:g}, but must be from {least} to {most}")
    return value


def _rope_parameters(reader: ConfigReader) -> dict[str, Any]:
    parameters: dict[str, Any] = dict(reader.get("rope_scaling", dict, {}))
    parameters |= reader.get("rope_parameters", dict, {})
    return parameters


def _rope_kind(rope: ConfigReader) -> RopeKind:
    """The rope type of rope_parameters, which has all the fields that it needs. Raises
    ModelError."""
    old_kind = rope.get("type", str, "default")
    kind: Any = rope.get("rope_type", str) or old_kind
    if kind not in ROPE_FIELDS:
        raise ModelError(
            f"config.json: rope type {kind!r} is not supported; supported are "
            f"{', '.join(ROPE_FIELDS)}"
        )
    missing = [field for field in ROPE_FIELDS[kind] if rope.raw.get(field) is None]
    # yarn's factor is that of the two contexts where the original one is stated.
    known = kind == "yarn" and rope.raw.get("original_max_position_embeddings") is not None
    if missing and not known:
        raise ModelError(
            f"config.json: the rope type {kind} lacks {', '.join(missing)}. Add the model's value "
            "to rope_parameters, or to rope_scaling where the file has that"
        )
    return cast(RopeKind, kind)


def _numbers(rope: ConfigReader, key: str) -> tuple[float, ...]:
    """A list of numbers; none where the key is absent. Raises ModelError."""
    numbers = rope.get(key, list, [])
    if not all(type(number) in (int, float) for number in numbers):
        raise ModelError(f"config.json: {key} must be a list of numbers")
    return tuple(finite(key, number) for number in numbers)


def stop_ids(raw: Mapping[str, Any], default: int | None = None) -> tuple[int, ...]:
    """The ids that end a text, from eos_token_id: one id, a list of them, or null for none.

    default: what the absent key means. Raises ModelError.
    """
    value = raw.get("eos_token_id", default)
    if value is None:
        return ()
    ids = value if isinstance(value, list) else [value]
    if not all(type(i) is int for i in ids):
        raise ModelError(
            f"config.json: eos_token_id is {value!r}, but must be a token id or a list of them"
        )
    return tuple(ids)
