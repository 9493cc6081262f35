"""Mistral and Codestral (Jiang et al. 2023, arXiv 2310.06825; model cards of
mistralai/Mistral-7B-v0.1, Mistral-Nemo-Base-2407, Codestral-22B-v0.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.decoder.config import DecoderConfig
from model.families.family import Family, GgufRules
from model.families.hf_config import ConfigReader, Defaults, common_fields
from model.families.weight_table import gated_weight_table

DEFAULTS = Defaults(
    vocab=32000, hidden=4096, inner=14336, layers=32, heads=32, kv_heads=8, end=2, positions=131072
)


def decoder_config(raw: Mapping[str, Any]) -> DecoderConfig:
    reader = ConfigReader(raw)
    window = reader.get("sliding_window", int, None if "sliding_window" in raw else 4096)
    config = DecoderConfig(
        **common_fields(reader, DEFAULTS, own_head_dim=True),
        norm="rms_norm",
        norm_eps=reader.get("rms_norm_eps", float, 1e-6),
        gated_mlp=True,
        sliding_window=window,
    )
    reader.finish()
    return config


# In GGUF a Mistral is a llama, which is also what a file is read as.
FAMILY = Family(
    "mistral",
    DEFAULTS,
    decoder_config,
    gated_weight_table,
    GgufRules("silu", interleaved=True, architecture="llama"),
)
