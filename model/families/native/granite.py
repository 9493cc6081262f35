"""Granite 3 and the dense Granite 4.1 (Shen et al. 2024, arXiv 2408.13359; model cards of
ibm-granite/granite-3.0-2b-base to granite-3.3-8b-base, granite-4.1-3b-base): Llama with four
factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.decoder.config import DecoderConfig
from model.families.family import Family, GgufRules
from model.families.hf_config import ConfigReader, Defaults, common_fields
from model.families.weight_table import gated_weight_table

DEFAULTS = Defaults(
    vocab=32000, hidden=4096, inner=11008, layers=32, heads=32, kv_heads=None, end=2, positions=2048
)


def decoder_config(raw: Mapping[str, Any]) -> DecoderConfig:
    reader = ConfigReader(raw)
    bias = reader.get("attention_bias", bool, False)
    config = DecoderConfig(
        **common_fields(reader, DEFAULTS, own_head_dim=True),
        norm="rms_norm",
        norm_eps=reader.get("rms_norm_eps", float, 1e-6),
        gated_mlp=True,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=reader.get("mlp_bias", bool, False),
        attention_multiplier=reader.get("attention_multiplier", float, 1.0),
        embedding_multiplier=reader.get("embedding_multiplier", float, 1.0),
        residual_multiplier=reader.get("residual_multiplier", float, 1.0),
        logits_scaling=reader.get("logits_scaling", float, 1.0),
    )
    reader.finish()
    return config


def gguf_metadata(config: DecoderConfig) -> dict[str, float]:
    return {
        "attention.scale": config.score_scale,
        "embedding_scale": config.embedding_multiplier,
        "residual_scale": config.residual_multiplier,
        "logit_scale": config.logits_scaling,
    }


FAMILY = Family(
    "granite",
    DEFAULTS,
    decoder_config,
    gated_weight_table,
    GgufRules(
        "silu",
        interleaved=True,
        metadata=gguf_metadata,
        config_keys={
            "attention.layer_norm_rms_epsilon": "rms_norm_eps",
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
        config_of_tensors=lambda tensors: {
            "attention_bias": "blk.0.attn_q.bias" in tensors,
            "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        },
    ),
)
