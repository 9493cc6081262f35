"""StableLM and Stable Code (model cards of stabilityai/stablelm-3b-4e1t, stable-code-3b,
stablelm-2-1_6b, -12b)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.decoder.config import DecoderConfig
from model.errors import ModelError
from model.families.family import Family, GgufRules
from model.families.hf_config import ConfigReader, Defaults, common_fields
from model.families.weight_table import WeightSlot, WeightTable

DEFAULTS = Defaults(
    vocab=50304, hidden=2560, inner=6912, layers=32, heads=32, kv_heads=32, end=0, positions=4096
)
# What the code that Stability AI published with its first models calls these keys.
OLDER_KEYS = {
    "num_heads": "num_attention_heads",
    "norm_eps": "layer_norm_eps",
    "rope_pct": "partial_rotary_factor",
}


def decoder_config(raw: Mapping[str, Any]) -> DecoderConfig:
    reader = ConfigReader(_with_newer_keys(raw))
    if reader.get("rotary_scaling_factor", float, 1.0) != 1:
        raise ModelError(
            f"config.json: rotary_scaling_factor is {raw['rotary_scaling_factor']}, and fimls "
            "knows it only as 1. Remove it, and state the scaling as rope_scaling"
        )
    config = DecoderConfig(
        **common_fields(reader, DEFAULTS, rotated=0.25),
        norm="layer_norm",
        norm_eps=reader.get("layer_norm_eps", float, 1e-5),
        gated_mlp=True,
        qkv_bias=reader.get("use_qkv_bias", bool, False),
        qk_norm=reader.get("qk_layernorm", bool, False),
        parallel_residual=reader.get("use_parallel_residual", bool, False),
    )
    reader.finish()
    return config


def _with_newer_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with older keys under their newer names. Raises ModelError where both are there
    and differ."""
    config = dict(raw)
    for older, newer in OLDER_KEYS.items():
        value = config.pop(older, None)
        if value is None:
            continue
        if config.get(newer) is None:
            config[newer] = value
        elif config[newer] != value:
            raise ModelError(
                f"config.json: {older} is {value!r}, but its newer name {newer} is "
                f"{config[newer]!r}. Remove the one that is wrong"
            )
    return config


def weight_table(config: DecoderConfig) -> dict[str, WeightSlot]:
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
    return {
        "norms on queries and keys": config.qk_norm,
        "tied embeddings": config.tie_embeddings,
    }


def gguf_metadata(config: DecoderConfig) -> dict[str, bool]:
    return {"use_parallel_residual": config.parallel_residual}


FAMILY = Family(
    "stablelm",
    DEFAULTS,
    decoder_config,
    weight_table,
    GgufRules(
        "silu",
        partly_rotated=True,
        refusals=gguf_refusals,
        metadata=gguf_metadata,
        config_keys={"attention.layer_norm_epsilon": "layer_norm_eps"},
        # Its own converter writes true where config.json, as Stable Code's, has no such key; so
        # llama.cpp goes by the second norm.
        harmless_keys=("use_parallel_residual",),
        config_of_tensors=lambda tensors: {
            "use_qkv_bias": "blk.0.attn_q.bias" in tensors,
            "use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors,
        },
    ),
    dropouts={"attention": "attention_dropout", "hidden": "hidden_dropout"},
    classifier_dropout=0.0,
)
