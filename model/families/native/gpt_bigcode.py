"""SantaCoder, StarCoder 1 and Granite Code 20B, 34B (Ben Allal et al. 2023, arXiv 2301.03988; Li et
al. 2023, arXiv 2305.06161; model cards of bigcode/gpt_bigcode-santacoder, starcoderbase-1b,
ibm-granite/granite-20b-code-base)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from model.decoder.config import DecoderConfig
from model.errors import ModelError
from model.families.family import Family, GgufRules
from model.families.hf_config import ConfigReader, Defaults, common_fields
from model.families.weight_table import WeightSlot, WeightTable

# GPT-2's names of the keys -> those of the other families.
KEYS = {
    "activation_function": "hidden_act",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
}
# Dropout, the order of casts around the softmax, heads for other tasks, and other programs' caches.
HARMLESS = """
    attention_softmax_in_fp32 attn_pdrop embd_pdrop inference_runner max_batch_size
    max_sequence_length n_ctx pad_key_length pre_allocate_kv_cache reorder_and_upcast_attn
    scale_attention_softmax_in_fp32 summary_activation summary_first_dropout summary_proj_to_labels
    summary_type summary_use_proj validate_runner_input
""".split()
DEFAULTS = Defaults(
    vocab=50257, hidden=768, inner=3072, layers=12, heads=12, kv_heads=1, end=50256, positions=1024
)


def decoder_config(raw: Mapping[str, Any]) -> DecoderConfig:
    renamed = {KEYS.get(key, key): value for key, value in raw.items()}
    reader = ConfigReader(renamed)
    hidden = reader.get("hidden_size", int, DEFAULTS.hidden)
    defaults = replace(DEFAULTS, inner=4 * hidden)
    fields = common_fields(reader, defaults, act="gelu_pytorch_tanh", tied=True, rotary=False)
    if not reader.get("multi_query", bool, True) or fields["num_kv_heads"] != 1:
        raise ModelError(
            "config.json: multi_query is false. fimls runs gpt_bigcode models whose heads share "
            "one key and value, as all released ones do"
        )
    scaled = reader.get("scale_attn_weights", bool, True)
    config = DecoderConfig(
        **fields,
        norm="layer_norm",
        norm_eps=reader.get("layer_norm_epsilon", float, 1e-5),
        gated_mlp=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        attention_multiplier=None if scaled else 1.0,
    )
    reader.finish(HARMLESS)
    return config


def weight_table(config: DecoderConfig) -> dict[str, WeightSlot]:
    hidden = config.hidden_size
    width = config.num_heads * config.head_dim
    inner = config.intermediate_size
    table = WeightTable(config, plain=False)
    table.linear("transformer.wte", "embed_tokens", config.vocab_size, hidden)
    positions = (config.max_positions, hidden)
    table.slots["transformer.wpe.weight"] = WeightSlot("embed_positions", 0, positions)
    for layer in range(config.num_layers):
        theirs = f"transformer.h.{layer}"
        ours = f"layers.{layer}"
        table.norm(f"{theirs}.ln_1", f"{ours}.attention_norm")
        table.linear(
            f"{theirs}.attn.c_attn", f"{ours}.attention.qkv", config.qkv_size, hidden, True
        )
        table.linear(f"{theirs}.attn.c_proj", f"{ours}.attention.out", hidden, width, True)
        table.norm(f"{theirs}.ln_2", f"{ours}.mlp_norm")
        table.linear(f"{theirs}.mlp.c_fc", f"{ours}.mlp.up", inner, hidden, True)
        table.linear(f"{theirs}.mlp.c_proj", f"{ours}.mlp.down", hidden, inner, True)
    table.norm("transformer.ln_f", "norm")
    if not config.tie_embeddings:
        table.linear("lm_head", "head", config.vocab_size, hidden)
    return table.slots


FAMILY = Family(
    "gpt_bigcode",
    DEFAULTS,
    decoder_config,
    weight_table,
    GgufRules(
        "gelu_tanh",
        architecture="starcoder",
        config_keys={"attention.layer_norm_epsilon": "layer_norm_epsilon"},
        refusals=lambda config: {"unscaled scores": config.attention_multiplier is not None},
    ),
    dropouts={"attention": "attn_pdrop", "embedding": "embd_pdrop", "residual": "resid_pdrop"},
    dropout=0.1,
    small_residuals=True,
    trains_padding=True,
    token_classifier="classifier",
)
