"""StableLM and Stable Code (model cards of stabilityai/stablelm-3b-4e1t, stable-code-3b,
stablelm-2-1_6b, -12b)."""

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
    hidden = reader.get("hidden_size", int, 2560)
    heads = reader.get("num_attention_heads", int, 32)
    kv_heads = reader.get("num_key_value_heads", int, 32)
    head_dim = even_head_dim(hidden, heads, kv_heads)
    positions = max_positions(reader)
    config = DecoderConfig(
        vocab_size=reader.get("vocab_size", int, 50304),
        hidden_size=hidden,
        intermediate_size=reader.get("intermediate_size", int, 6912),
        num_layers=reader.get("num_hidden_layers", int, 32),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=positions,
        norm="layer_norm",
        norm_eps=reader.get("layer_norm_eps", float, 1e-5),
        rope=rope_config(reader, head_dim, positions, partial_default=0.25),
        activation=activation(reader.get("hidden_act", str, "silu")),
        gated_mlp=True,
        qkv_bias=reader.get("use_qkv_bias", bool, False),
        qk_norm=reader.get("qk_layernorm", bool, False),
        parallel_residual=reader.get("use_parallel_residual", bool, False),
        tie_embeddings=reader.get("tie_word_embeddings", bool, False),
        stop_ids=stop_ids(raw),
    )
    reader.finish()
    return config


def weight_table(config: DecoderConfig) -> dict[str, WeightSlot]:
    """The checkpoint's tensor names -> where each goes."""
    table = WeightTable(config)
    table.gated_mlps()
    if config.qk_norm:
        for layer in range(config.num_layers):
            _head_norms(table, layer, "q", config.num_heads)
            _head_norms(table, layer, "k", config.num_kv_heads)
    return table.slots


def _head_norms(table: WeightTable, layer: int, part: str, heads: int) -> None:
    """One norm for each head, without bias; ours are the rows of one parameter (heads, D)."""
    shape = (table.config.head_dim,)
    for head in range(heads):
        name = f"model.layers.{layer}.self_attn.{part}_layernorm.norms.{head}.weight"
        table.slots[name] = WeightSlot(f"layers.{layer}.attention.{part}_norm", head, shape)


def gguf_refusals(config: DecoderConfig) -> dict[str, bool]:
    """What llama.cpp computes otherwise, and whether it is so in this model."""
    return {
        "norms on queries and keys": config.qk_norm,
        "tied embeddings": config.tie_embeddings,
    }


def gguf_metadata(config: DecoderConfig) -> dict[str, bool]:
    return {"use_parallel_residual": config.parallel_residual}


FAMILY = Family(
    "stablelm",
    decoder_config,
    weight_table,
    GgufRules(activation="silu", refusals=gguf_refusals, metadata=gguf_metadata),
)
