"""StarCoder2 (Lozhkov et al. 2024, arXiv 2402.19173; model cards of bigcode/starcoder2-3b, -7b,
-15b)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.decoder.config import DecoderConfig
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


def decoder_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """A config.json of this family -> DecoderConfig. Raises ModelError."""
    reader = ConfigReader(raw)
    hidden = reader.get("hidden_size", int, 3072)
    heads = reader.get("num_attention_heads", int, 24)
    kv_heads = reader.get("num_key_value_heads", int, 2)
    head_dim = even_head_dim(hidden, heads, kv_heads)
    positions = max_positions(reader)
    bias = reader.get("use_bias", bool, True)
    config = DecoderConfig(
        vocab_size=reader.get("vocab_size", int, 49152),
        hidden_size=hidden,
        intermediate_size=reader.get("intermediate_size", int, 12288),
        num_layers=reader.get("num_hidden_layers", int, 30),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=positions,
        norm="layer_norm",
        norm_eps=reader.get("norm_epsilon", float, 1e-5),
        rope=rope_config(reader, head_dim, positions),
        activation=activation(reader.get("hidden_act", str, "gelu_pytorch_tanh")),
        gated_mlp=False,
        sliding_window=reader.get("sliding_window", int),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        tie_embeddings=reader.get("tie_word_embeddings", bool, True),
        stop_ids=stop_ids(raw),
    )
    # Each of these has one value in the released models: "default" and "layer_norm".
    reader.get("mlp_type", str)
    reader.get("norm_type", str)
    reader.finish()
    return config


def weight_table(config: DecoderConfig) -> dict[str, WeightSlot]:
    """The checkpoint's tensor names -> where each goes."""
    hidden = config.hidden_size
    inner = config.intermediate_size
    bias = config.mlp_bias
    table = WeightTable(config)
    for layer in range(config.num_layers):
        source = f"model.layers.{layer}.mlp"
        mlp = f"layers.{layer}.mlp"
        table.linear(f"{source}.c_fc", f"{mlp}.up", inner, hidden, bias)
        table.linear(f"{source}.c_proj", f"{mlp}.down", hidden, inner, bias)
    return table.slots


def gguf_refusals(config: DecoderConfig) -> dict[str, bool]:
    """What llama.cpp computes otherwise, and whether it is so in this model."""
    return {
        "no biases": not (config.qkv_bias and config.out_bias and config.mlp_bias),
        "partly rotated heads": config.rope.dim != config.head_dim,
    }


FAMILY = Family(
    "starcoder2",
    decoder_config,
    weight_table,
    GgufRules(activation="gelu_tanh", refusals=gguf_refusals),
)
