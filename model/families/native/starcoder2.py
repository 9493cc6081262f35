"""StarCoder2 (Lozhkov et al. 2024, arXiv 2402.19173; model cards of bigcode/starcoder2-3b, -7b,
-15b)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.decoder.config import DecoderConfig
from model.families.family import Family, GgufRules
from model.families.hf_config import ConfigReader, Defaults, common_fields
from model.families.weight_table import WeightSlot, WeightTable

DEFAULTS = Defaults(
    vocab=49152,
    hidden=3072,
    inner=12288,
    layers=30,
    heads=24,
    kv_heads=2,
    end=50256,
    positions=4096,
)


def decoder_config(raw: Mapping[str, Any]) -> DecoderConfig:
    reader = ConfigReader(raw)
    bias = reader.get("use_bias", bool, True)
    config = DecoderConfig(
        **common_fields(reader, DEFAULTS, act="gelu_pytorch_tanh", tied=True),
        norm="layer_norm",
        norm_eps=reader.get("norm_epsilon", float, 1e-5),
        gated_mlp=False,
        sliding_window=reader.get("sliding_window", int),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
    )
    # Each of these has one value in the released models: "default" and "layer_norm".
    reader.get("mlp_type", str)
    reader.get("norm_type", str)
    reader.finish()
    return config


def weight_table(config: DecoderConfig) -> dict[str, WeightSlot]:
    hidden = config.hidden_size
    inner = config.intermediate_size
    table = WeightTable(config)
    for layer in range(config.num_layers):
        source = f"model.layers.{layer}.mlp"
        mlp = f"layers.{layer}.mlp"
        table.linear(f"{source}.c_fc", f"{mlp}.up", inner, hidden, config.mlp_bias)
        table.linear(f"{source}.c_proj", f"{mlp}.down", hidden, inner, config.mlp_bias)
    return table.slots


def gguf_refusals(config: DecoderConfig) -> dict[str, bool]:
    return {"no biases": not (config.qkv_bias and config.out_bias and config.mlp_bias)}


FAMILY = Family(
    "starcoder2",
    DEFAULTS,
    decoder_config,
    weight_table,
    GgufRules(
        "gelu_tanh",
        refusals=gguf_refusals,
        config_keys={"attention.layer_norm_epsilon": "norm_epsilon"},
        config_of_tensors=lambda tensors: {"use_bias": "blk.0.attn_q.bias" in tensors},
    ),
    dropouts={
        "attention": "attention_dropout",
        "embedding": "embedding_dropout",
        "residual": "residual_dropout",
    },
    initializer_range=0.018042,
)
