"""StableLM and Stable Code (model cards of stabilityai/stablelm-3b-4e1t, stable-code-3b,
stablelm-2-1_6b, -12b)."""

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
    """A Hugging Face config.json of model_type stablelm -> DecoderConfig. Raises ModelError."""
    keys = ConfigReader(raw)
    hidden, heads = keys.get("hidden_size", int, 2560), keys.get("num_attention_heads", int, 32)
    positions = keys.get("max_position_embeddings", int, 4096)
    kv_heads = keys.get("num_key_value_heads", int, 32)
    head_dim = even_head_dim(hidden, heads, kv_heads)
    config = DecoderConfig(
        vocab_size=keys.get("vocab_size", int, 50304),
        hidden_size=hidden,
        intermediate_size=keys.get("intermediate_size", int, 6912),
        num_layers=keys.get("num_hidden_layers", int, 32),
        num_heads=heads,
        head_dim=head_dim,
        num_kv_heads=kv_heads,
        max_positions=positions,
        norm="layer_norm",
        norm_eps=keys.get("layer_norm_eps", float, 1e-5),
        rope=rope_config(keys, head_dim, positions, partial_default=0.25),
        activation=activation(keys.get("hidden_act", str, "silu")),
        gated_mlp=True,
        qkv_bias=keys.get("use_qkv_bias", bool, False),
        qk_norm=keys.get("qk_layernorm", bool, False),
        parallel_residual=keys.get("use_parallel_residual", bool, False),
        tie_embeddings=keys.get("tie_word_embeddings", bool, False),
        stop_ids=stop_ids(raw),
    )
    keys.finish()
    return config


def weight_table(config: DecoderConfig) -> dict[str, WeightSlot]:
    """The checkpoint's tensor names -> where each goes."""
    hidden, inner = config.hidden_size, config.intermediate_size
    table = WeightTable(config)
    for i in range(config.num_layers):
        mlp, attention = f"model.layers.{i}.mlp", f"model.layers.{i}.self_attn"
        table.linear(f"{mlp}.gate_proj", f"layers.{i}.mlp.up", inner, hidden)
        table.linear(f"{mlp}.up_proj", f"layers.{i}.mlp.up", inner, hidden, first_row=inner)
        table.linear(f"{mlp}.down_proj", f"layers.{i}.mlp.down", hidden, inner)
        if (
            config.qk_norm
        ):  # one norm a head, without bias; ours are the rows of one (heads, head_dim) parameter
            for part, heads in (("q", config.num_heads), ("k", config.num_kv_heads)):
                for head in range(heads):
                    slot = WeightSlot(f"layers.{i}.attention.{part}_norm", head, (config.head_dim,))
                    table.slots[f"{attention}.{part}_layernorm.norms.{head}.weight"] = slot
    return table.slots
