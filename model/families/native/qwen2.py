"""Qwen2, Qwen2.5 and Qwen2.5-Coder (Hui et al. 2024, arXiv 2409.12186; model cards of
Qwen/Qwen2.5-Coder-0.5B to -32B)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.decoder.config import DecoderConfig
from model.errors import ModelError
from model.families.family import Family, GgufRules
from model.families.hf_config import ConfigReader, Defaults, common_fields
from model.families.weight_table import gated_weight_table

HARMLESS = ("use_mrope",)  # false in the released models, and never read by transformers
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
    fields = common_fields(reader, DEFAULTS, own_head_dim=True)
    config = DecoderConfig(
        **fields,
        norm="rms_norm",
        norm_eps=reader.get("rms_norm_eps", float, 1e-6),
        gated_mlp=True,
        sliding_window=sliding_window(reader, fields["num_layers"]),
        qkv_bias=True,
    )
    reader.finish(HARMLESS)
    return config


def sliding_window(reader: ConfigReader, layers: int) -> int | None:
    """The window of all layers, or None. Raises ModelError where only some layers have one."""
    used = reader.get("use_sliding_window", bool, False)
    window = reader.get("sliding_window", int, None if "sliding_window" in reader.raw else 4096)
    first = reader.get("max_window_layers", int, 28)
    kinds = reader.get("layer_types", list)
    if kinds is None:
        windowed = layers - first if used and window is not None else 0
        kinds = ["sliding_attention"] * windowed + ["full_attention"] * (layers - windowed)
    if all(kind == "full_attention" for kind in kinds):
        return None
    if used and window is not None and all(kind == "sliding_attention" for kind in kinds):
        return int(window)
    raise ModelError(
        "config.json: a sliding window in only some of the layers (use_sliding_window, "
        "max_window_layers, layer_types) is not supported. A shorter context needs no window: set "
        "use_sliding_window to false and max_position_embeddings to the size of the window, and "
        "remove layer_types"
    )


FAMILY = Family(
    "qwen2",
    DEFAULTS,
    decoder_config,
    gated_weight_table,
    GgufRules("silu", config_keys={"attention.layer_norm_rms_epsilon": "rms_norm_eps"}),
)
