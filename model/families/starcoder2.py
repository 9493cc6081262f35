"""StarCoder2 (Lozhkov et al. 2024, arXiv 2402.19173; model cards of bigcode/starcoder2-3b, -7b,
-15b)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.decoder.config import DecoderConfig
from model.families.hf_config import (
    ConfigReader,
    activation,
    even_head_dim,
    rope_config,
    stop_ids,
)
from model.families.weight_table import WeightSlot, WeightTable


def decoder_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """A Hugging Face config.json of model_type starcoder2 -> DecoderConfig. Raises ModelError."""
    keys = ConfigReader(raw)
    hidden, heads = keys.get("hidden_size", int, 3072), keys.get("num_attention_heads", int, 24)
    positions = keys.get("max_position_embeddings", int, 4096)
    bias = keys.get("use_bias", bool, True)
    kv_heads = keys.get("num_key_value_heads", int, 2)
    head_dim = even_head_dim(hidden, heads, kv_heads)
    config = DecoderConfig(
        vocab_size=keys.get("vocab_size", int, 49152),
        hidden_size=hidden,
        intermediate_size=keys.get("intermediate_size", int, 12288),
        num_layers=keys.get("num_hidden_layers", int, 30),
        num_heads=heads,
        head_dim=head_dim,
        num_kv_heads=kv_heads,
        max_positions=positions,
        norm="layer_norm",
        norm_eps=keys.get("norm_epsilon", float, 1e-5),
        rope=rope_config(keys, head_dim, positions, partial_default=1.0),
        activation=activation(keys.get("hidden_act", str, "gelu_pytorch_tanh")),
        gated_mlp=False,
        sliding_window=keys.get("sliding_window", int),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        tie_embeddings=keys.get("tie_word_embeddings", bool, True),
        stop_ids=stop_ids(raw),
    )
    keys.get("mlp_type", str)  # "default" in the released 3B, 7B and 15B: the only one there is
    keys.get("norm_type", str)  # "layer_norm", likewise
    keys.finish()
    return config


def weight_table(config: DecoderConfig) -> dict[str, WeightSlot]:
    """The checkpoint's tensor names -> where each goes."""
    hidden, inner = config.hidden_size, config.intermediate_size
    table = WeightTable(config)
    for i in range(config.num_layers):
        table.linear(
            f"model.layers.{i}.mlp.c_fc", f"layers.{i}.mlp.up", inner, hidden, config.mlp_bias
        )
        table.linear(
            f"model.layers.{i}.mlp.c_proj", f"layers.{i}.mlp.down", hidden, inner, config.mlp_bias
        )
    return table.slots
