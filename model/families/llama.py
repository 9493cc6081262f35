"""Llama and Code Llama (Touvron et al. 2023, arXiv 2307.09288; Rozière et al. 2023, arXiv
2308.12950; model cards of meta-llama/Llama-2-7b-hf, codellama/CodeLlama-7b-hf,
meta-llama/Llama-3.1-8B), and the many models of the same architecture."""

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

# How the model was trained or converted. transformers reads none of these at inference.
HARMLESS = ("pretraining_tp", "is_llama_config", "rope_interleaved", "transformers.js_config")


def decoder_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """A config.json of this family -> DecoderConfig. Raises ModelError."""
    reader = ConfigReader(raw)
    hidden = reader.get("hidden_size", int, 4096)
    heads = reader.get("num_attention_heads", int, 32)
    kv_heads = reader.get("num_key_value_heads", int, heads)
    head_dim = reader.get("head_dim", int, even_head_dim(hidden, heads, kv_heads))
    positions = max_positions(reader)
    bias = reader.get("attention_bias", bool, False)
    config = DecoderConfig(
        vocab_size=reader.get("vocab_size", int, 32000),
        hidden_size=hidden,
        intermediate_size=reader.get("intermediate_size", int, 11008),
        num_layers=reader.get("num_hidden_layers", int, 32),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=positions,
        norm="rms_norm",
        norm_eps=reader.get("rms_norm_eps", float, 1e-6),
        rope=rope_config(reader, head_dim, positions),
        activation=activation(reader.get("hidden_act", str, "silu")),
        gated_mlp=True,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=reader.get("mlp_bias", bool, False),
        tie_embeddings=reader.get("tie_word_embeddings", bool, False),
        stop_ids=stop_ids(raw),
    )
    reader.finish(HARMLESS)
    return config


def weight_table(config: DecoderConfig) -> dict[str, WeightSlot]:
    """The checkpoint's tensor names -> where each goes."""
    table = WeightTable(config)
    table.gated_mlps()
    return table.slots


def gguf_refusals(config: DecoderConfig) -> dict[str, bool]:
    """What llama.cpp computes otherwise, and whether it is so in this model."""
    return {"partly rotated heads": config.rope.dim != config.head_dim}


FAMILY = Family(
    "llama",
    decoder_config,
    weight_table,
    GgufRules(activation="silu", refusals=gguf_refusals, interleaved=True),
)
