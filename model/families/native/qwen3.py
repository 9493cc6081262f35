"""Qwen3 (Yang et al. 2025, arXiv 2505.09388; model cards of Qwen/Qwen3-0.6B to -32B): Qwen2 with a
norm on queries and keys and, mostly, without biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.decoder.config import DecoderConfig
from model.families.family import Family, GgufRules
from model.families.hf_config import ConfigReader, Defaults, common_fields
from model.families.native.qwen2 import sliding_window
from model.families.weight_table import WeightSlot, WeightTable

DEFAULTS = Defaults(
    vocab=151936,
    hidden=4096,
    inner=22016,
    layers=32,
    heads=32,
    kv_heads=32,
    end=None,
    positions=32768,
)


def decoder_config(raw: Mapping[str, Any]) -> DecoderConfig:
    reader = ConfigReader(raw)
    fields = common_fields(reader, DEFAULTS, head_dim=128)
    bias = reader.get("attention_bias", bool, False)
    config = DecoderConfig(
        **fields,
        norm="rms_norm",
        norm_eps=reader.get("rms_norm_eps", float, 1e-6),
        gated_mlp=True,
        sliding_window=sliding_window(reader, fields["num_layers"]),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
        qk_norm_shared=True,
    )
    reader.finish()
    return config


def weight_table(config: DecoderConfig) -> dict[str, WeightSlot]:
    table = WeightTable(config)
    table.gated_mlps()
    for layer in range(config.num_layers):
        for part in ("q_norm", "k_norm"):
            name = f"model.layers.{layer}.self_attn.{part}.weight"
            slot = WeightSlot(f"layers.{layer}.attention.{part}", 0, (config.head_dim,))
            table.slots[name] = slot
    return table.slots


FAMILY = Family(
    "qwen3",
    DEFAULTS,
    decoder_config,
    weight_table,
    GgufRules(
        "silu",
        config_keys={
            "attention.key_length": "head_dim",
            "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        },
        refusals=lambda config: {"biases of attention": config.qkv_bias},
    ),
)
