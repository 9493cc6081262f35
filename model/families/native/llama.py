"""Llama and Code Llama (Touvron et al. 2023, arXiv 2307.09288; Rozière et al. 2023, arXiv
2308.12950; model cards of meta-llama/Llama-2-7b-hf, codellama/CodeLlama-7b-hf,
meta-llama/Llama-3.1-8B), and the many models of the same architecture."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from model.decoder.config import DecoderConfig
from model.families.family import Family, GgufRules
from model.families.hf_config import ConfigReader, Defaults, common_fields
from model.families.weight_table import gated_weight_table

# How the model was trained or converted. transformers reads none of these at inference.
HARMLESS = (
    "pretraining_tp",
    "is_llama_config",
    "rope_interleaved",
    "transformers.js_config",
    "layer_norm_eps",  # null in Seed-Coder: its norms are RMS norms
)
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
    )
    reader.finish(HARMLESS)
    return config


def _config_of_tensors(tensors: Collection[str]) -> dict[str, bool]:
    return {
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }


FAMILY = Family(
    "llama",
    DEFAULTS,
    decoder_config,
    gated_weight_table,
    GgufRules(
        "silu",
        interleaved=True,
        config_keys={"attention.layer_norm_rms_epsilon": "rms_norm_eps"},
        config_of_tensors=_config_of_tensors,
    ),
)
