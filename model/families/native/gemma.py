"""Gemma 1 and CodeGemma (Gemma Team 2024, arXiv 2403.08295; CodeGemma Team 2024, arXiv 2406.11409;
model cards of google/codegemma-2b, codegemma-7b)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.decoder.config import DecoderConfig
from model.errors import ModelError
from model.families.family import Family, GgufRules
from model.families.hf_config import ConfigReader, Defaults, activation, common_fields
from model.families.weight_table import gated_weight_table

DEFAULTS = Defaults(
    vocab=256000, hidden=3072, inner=24576, layers=28, heads=16, kv_heads=16, end=1, positions=8192
)


def decoder_config(raw: Mapping[str, Any]) -> DecoderConfig:
    reader = ConfigReader(raw)
    fields = common_fields(reader, DEFAULTS, act="gelu_pytorch_tanh", tied=True, head_dim=256)
    named = [fields.pop("activation")]
    if reader.get("hidden_activation", str) is not None:
        named.append(activation(reader.get("hidden_activation", str)))
    # Both keys name the exact GELU in older files. What was trained is the approximation.
    named = ["gelu_tanh" if name == "gelu" else name for name in named]
    if len(set(named)) > 1:
        raise ModelError(
            "config.json: hidden_act and hidden_activation name different functions. Download the "
            "model again"
        )
    if reader.get("use_bidirectional_attention", bool, False):
        raise ModelError(
            "config.json: use_bidirectional_attention is true, but fimls runs causal models only"
        )
    bias = reader.get("attention_bias", bool, False)
    config = DecoderConfig(
        **fields,
        activation=named[0],
        norm="rms_norm",
        norm_eps=reader.get("rms_norm_eps", float, 1e-6),
        norm_adds_one=True,
        gated_mlp=True,
        qkv_bias=bias,
        out_bias=bias,
        embedding_multiplier=fields["hidden_size"] ** 0.5,
    )
    reader.finish()
    return config


FAMILY = Family(
    "gemma",
    DEFAULTS,
    decoder_config,
    gated_weight_table,
    GgufRules(
        "gelu_tanh",
        added_one=True,
        config_keys={
            "attention.key_length": "head_dim",
            "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        },
        refusals=lambda config: {
            "biases of attention": config.qkv_bias,
            "a head of its own": not config.tie_embeddings,
        },
    ),
)
