"""Qwen2, Qwen2.5 and Qwen2.5-Coder (Hui et al. 2024, arXiv 2409.12186; model cards of
Qwen/Qwen2.5-Coder-0.5B to -32B)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.decoder.config import DecoderConfig
from model.errors import ModelError
from model.families.family import Family, GgufRules
from model.families.hf_config import (
    ConfigReader,
    activation,
    even_head_dim,
    max_positions,
    rope_config,
    stop_ids,
)
from model.families.weight_table import WeightSlot, WeightTable

HARMLESS = ("use_mrope",)  # false in the released models, and never read by transformers


def decoder_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """A config.json of this family -> DecoderConfig. Raises ModelError."""
    reader = ConfigReader(raw)
    hidden = reader.get("hidden_size", int, 4096)
    heads = reader.get("num_attention_heads", int, 32)
    kv_heads = reader.get("num_key_value_heads", int, 32)
    head_dim = reader.get("head_dim", int, even_head_dim(hidden, heads, kv_heads))
    positions = max_positions(reader)
    layers = reader.get("num_hidden_layers", int, 32)
    config = DecoderConfig(
        vocab_size=reader.get("vocab_size", int, 151936),
        hidden_size=hidden,
        intermediate_size=reader.get("intermediate_size", int, 22016),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=positions,
        norm="rms_norm",
        norm_eps=reader.get("rms_norm_eps", float, 1e-6),
        rope=rope_config(reader, head_dim, positions),
        activation=activation(reader.get("hidden_act", str, "silu")),
        gated_mlp=True,
        sliding_window=_sliding_window(reader, layers),
        qkv_bias=True,
        tie_embeddings=reader.get("tie_word_embeddings", bool, False),
        stop_ids=stop_ids(raw),
    )
    reader.finish(HARMLESS)
    return config


def _sliding_window(reader: ConfigReader, layers: int) -> int | None:
    """The window of all layers, or None. Raises ModelError where only some layers have one."""
    used = reader.get("use_sliding_window", bool, False)
    window = reader.get("sliding_window", int, None if "sliding_window" in reader.raw else 4096)
    first = reader.get("max_window_layers", int, 28)
    kinds = reader.get("layer_types", list)
    if kinds is None:
        windowed = layers - first if used and window is not None else 0
        kinds = ["sliding_attention"] * windowed + ["full_attention"] * (layers - windowed)
    if all(kind == "full_attention" for kind in kinds):
        return None
    if used and window is not None and all(kind == "sliding_attention" for kind in kinds):
        return int(window)
    raise ModelError(
        "config.json: a sliding window in only some of the layers (use_sliding_window, "
        "max_window_layers, layer_types) is not supported. A shorter context needs no window: set "
        "use_sliding_window to false and max_position_embeddings to the size of the window, and "
        "remove layer_types"
    )


def weight_table(config: DecoderConfig) -> dict[str, WeightSlot]:
    """The checkpoint's tensor names -> where each goes."""
    table = WeightTable(config)
    table.gated_mlps()
    return table.slots


def gguf_refusals(config: DecoderConfig) -> dict[str, bool]:
    """What llama.cpp computes otherwise, and whether it is so in this model."""
    return {"partly rotated heads": config.rope.dim != config.head_dim}


FAMILY = Family(
    "qwen2",
    decoder_config,
    weight_table,
    GgufRules(activation="silu", refusals=gguf_refusals),
)
