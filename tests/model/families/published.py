"""The models that fimls names, as they are published: their config.json, their special tokens and
the keys of their GGUF files, with the numbers that only make them large shrunk.

The spelling of the keys is what matters here: what is absent is absent there, null is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model.decoder.config import RopeConfig

QWEN = (
    "<|endoftext|> <|im_start|> <|im_end|> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> "
    "<|fim_pad|> <|repo_name|> <|file_sep|>"
).split()
STARCODER = (
    "<|endoftext|> <fim_prefix> <fim_middle> <fim_suffix> <fim_pad> <filename> <gh_stars> "
    "<issue_start> <reponame>"
).split()
STARCODER2 = (
    "<|endoftext|> <fim_prefix> <fim_middle> <fim_suffix> <fim_pad> <repo_name> <file_sep>"
).split()
DEEPSEEK = (
    "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜fim▁hole｜> <｜fim▁begin｜> <｜fim▁end｜> "
    "<pad> <|User|> <|Assistant|> <|EOT|>"
).split()
SEED = (
    "<[begin▁of▁sentence]> <[PAD▁TOKEN]> <[end▁of▁sentence]> <[fim-suffix]> <[fim-prefix]> "
    "<[fim-middle]> <[fim-sep]>"
).split()
GRANITE = (
    "<|end_of_text|> <fim_prefix> <fim_middle> <fim_suffix> <fim_pad> <filename> <gh_stars> "
    "<reponame> <|start_of_role|> <|end_of_role|> <|tool_call|>"
).split()
SMOLLM = (
    "<|endoftext|> <|im_start|> <|im_end|> <repo_name> <reponame> <file_sep> <filename> "
    "<gh_stars> <issue_start>"
).split()
PSM = "<fim_prefix>P<fim_suffix>S<fim_middle>"


@dataclass(frozen=True)
class Published:
    """One model. config: config.json with all its numbers; `shrunk` gives the toy's.

    bos, eos: texts in specials. format: in fim/formats.py, "" for a model without FIM. prompt: for
    the prefix P and the suffix S, in the layout that the model card gives.
    """

    config: Mapping[str, Any]
    specials: Sequence[str]
    format: str
    prompt: str
    bos: str = "<|endoftext|>"
    eos: str = "<|endoftext|>"
    layout: str = "psm"
    sentencepiece: bool = False
    space: bool = False  # SentencePiece puts one before a text
    # ---- of the GGUF file ----
    cutting: str = "default"  # tokenizer.ggml.pre
    keys: Mapping[str, Any] = field(default_factory=dict)  # beside those of most files
    missing: Sequence[str] = ()  # of those
    # Special ids that its converter writes, by their keys.
    ids: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[str, Any] = field(default_factory=dict)  # fields of DecoderConfig that no key has

    def shrunk(self) -> dict[str, Any]:
        """config.json of a toy."""
        config = dict(self.config)
        heads = config.get("num_attention_heads", config.get("n_head"))
        groups = config.get("num_key_value_heads", heads)
        sizes = {
            "vocab_size": 320,
            "hidden_size": 32,
            "n_embd": 32,
            "intermediate_size": 48,
            "n_inner": 128,
            "num_hidden_layers": 2,
            "n_layer": 2,
            "num_attention_heads": 4,
            "n_head": 4,
            "num_key_value_heads": 4 if groups == heads else 1 if groups == 1 else 2,
            "max_position_embeddings": 256,
            "n_positions": 256,
        }
        for key, size in sizes.items():
            if config.get(key) is not None:
                config[key] = size
        if config.get("head_dim") is not None:
            usual = self.config["head_dim"] * heads == self.config["hidden_size"]
            config["head_dim"] = 8 if usual else 16
        if config.get("sliding_window") is not None:
            config["sliding_window"] = 16
        if "layer_types" in config:
            config["layer_types"] = config["layer_types"][:2]
        for key, text in (("bos_token_id", self.bos), ("eos_token_id", self.eos)):
            if key in config:
                config[key] = self.specials.index(text)
        if config.get("pad_token_id") is not None:
            config["pad_token_id"] = config["eos_token_id"]
        return config


def _llama(**config: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 11008,
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_cache": True,
        "vocab_size": 49152,
    } | config


def _qwen2(**config: Any) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "hidden_size": 896,
        "initializer_range": 0.02,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    } | config


def _bigcode(**config: Any) -> dict[str, Any]:
    return {
        "activation_function": "gelu_pytorch_tanh",
        "architectures": ["GPTBigCodeForCausalLM"],
        "attention_softmax_in_fp32": True,
        "attn_pdrop": 0.1,
        "bos_token_id": 0,
        "embd_pdrop": 0.1,
        "eos_token_id": 0,
        "inference_runner": 0,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "max_batch_size": None,
        "max_sequence_length": None,
        "model_type": "gpt_bigcode",
        "multi_query": True,
        "n_embd": 2048,
        "n_head": 16,
        "n_inner": 8192,
        "n_layer": 24,
        "n_positions": 8192,
        "pad_key_length": True,
        "pre_allocate_kv_cache": False,
        "resid_pdrop": 0.1,
        "scale_attention_softmax_in_fp32": True,
        "scale_attn_weights": True,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "transformers_version": "4.28.1",
        "use_cache": True,
        "validate_runner_input": True,
        "vocab_size": 49152,
    } | config


def _qwen(config: dict[str, Any], **more: Any) -> Published:
    return Published(
        config,
        QWEN,
        "qwen2.5-coder",
        "<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>",
        eos="<|im_end|>",
        cutting="qwen2",
        missing=("rope.dimension_count",),
        **more,
    )


def _deepseek(config: dict[str, Any]) -> Published:
    return Published(
        config,
        DEEPSEEK,
        "deepseek-coder",
        "<｜begin▁of▁sentence｜><｜fim▁begin｜>P<｜fim▁hole｜>S<｜fim▁end｜>",
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        cutting="deepseek-coder",
        keys={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    )


DEEPSEEK_LLAMA = _llama(
    hidden_size=2048,
    intermediate_size=5504,
    num_attention_heads=16,
    num_hidden_layers=24,
    num_key_value_heads=16,
    rms_norm_eps=1e-06,
    rope_theta=100000,
    rope_scaling={"factor": 4.0, "type": "linear"},
    vocab_size=32256,
)
STARCODER2_3B = {
    "architectures": ["Starcoder2ForCausalLM"],
    "attention_dropout": 0.1,
    "bos_token_id": 0,
    "embedding_dropout": 0.1,
    "eos_token_id": 0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 3072,
    "initializer_range": 0.018042,
    "intermediate_size": 12288,
    "max_position_embeddings": 16384,
    "mlp_type": "default",
    "model_type": "starcoder2",
    "norm_epsilon": 1e-05,
    "num_attention_heads": 24,
    "num_hidden_layers": 30,
    "num_key_value_heads": 2,
    "residual_dropout": 0.1,
    "rope_theta": 999999.4420358813,
    "sliding_window": 4096,
    "torch_dtype": "float32",
    "transformers_version": "4.37.0.dev0",
    "use_bias": True,
    "use_cache": True,
    "vocab_size": 49152,
}
STABLE_CODE = {
    "architectures": ["StableLmForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_dropout": 0.0,
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 6912,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 16384,
    "model_type": "stablelm",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "partial_rotary_factor": 0.25,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.0",
    "use_cache": True,
    "use_qkv_bias": False,
    "vocab_size": 50304,
}
GRANITE_3 = {
    "architectures": ["GraniteForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_multiplier": 0.015625,
    "bos_token_id": 0,
    "embedding_multiplier": 12.0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "logits_scaling": 8.0,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "granite",
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.49.0",
    "use_cache": True,
    "vocab_size": 49159,
}
CODEGEMMA = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.39.3",
    "use_cache": True,
    "vocab_size": 256000,
}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
CODESTRAL = {
    "architectures": ["MistralForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 6144,
    "initializer_range": 0.02,
    "intermediate_size": 16384,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 48,
    "num_hidden_layers": 56,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.0.dev0",
    "use_cache": True,
    "vocab_size": 32768,
}
NO_ROPE_KEYS = ("rope.freq_base", "rope.dimension_count")
# The converter gives these ids to every Gemma (conversion/gemma.py).
GEMMA_IDS = {
    "prefix": "<|fim_prefix|>",
    "suffix": "<|fim_suffix|>",
    "middle": "<|fim_middle|>",
    "fsep": "<|file_separator|>",
    "eot": "<end_of_turn>",
}
CODE_LLAMA_IDS = {"prefix": "▁<PRE>", "suffix": "▁<SUF>", "middle": "▁<MID>", "eot": "▁<EOT>"}

PUBLISHED: Mapping[str, Published] = {
    "qwen2.5-coder-0.5b": _qwen(_qwen2()),
    "qwen2.5-coder-3b": _qwen(
        _qwen2(max_window_layers=36, num_hidden_layers=36, sliding_window=32768)
    ),
    "qwen2.5-coder-7b": _qwen(
        _qwen2(
            hidden_size=3584,
            num_attention_heads=28,
            num_key_value_heads=4,
            max_window_layers=28,
            num_hidden_layers=28,
            sliding_window=131072,
            tie_word_embeddings=False,
        )
    ),
    "qwen2.5-coder saved by transformers 5": _qwen(
        {
            key: value
            for key, value in _qwen2(
                dtype="bfloat16",
                layer_types=["full_attention"] * 24,
                rope_parameters={"rope_theta": 1000000.0, "rope_type": "default"},
            ).items()
            if key not in ("rope_theta", "torch_dtype")
        }
    ),
    "qwen3-0.6b": _qwen(QWEN3, keys={"attention.key_length": 16, "attention.value_length": 16}),
    "starcoder2-3b": Published(
        STARCODER2_3B,
        STARCODER2,
        "starcoder2",
        PSM,
        cutting="starcoder",
        missing=("rope.dimension_count",),
        lost={"sliding_window": None},  # llama.cpp knows no window for it
    ),
    "starcoder2-15b": Published(
        STARCODER2_3B
        | {
            "hidden_size": 6144,
            "initializer_range": 0.01275,
            "intermediate_size": 24576,
            "num_attention_heads": 48,
            "num_key_value_heads": 4,
            "rope_theta": 100000,
        },
        STARCODER2,
        "starcoder2",
        PSM,
        cutting="starcoder",
        missing=("rope.dimension_count",),
        lost={"sliding_window": None},
    ),
    # Its converter takes an absent use_parallel_residual for true, and writes no base of the
    # rotation: llama.cpp runs the model with 10,000.
    "stable-code-3b": Published(
        STABLE_CODE,
        STARCODER,
        "starcoder",
        PSM,
        keys={"use_parallel_residual": True, "rope.dimension_count": 2},
        missing=("attention.head_count_kv", "rope.freq_base"),
        lost={"rope": RopeConfig("default", 10000.0, 2, 256)},
    ),
    "mellum-4b": Published(
        _llama(
            attention_bias=False,
            attention_dropout=0.0,
            head_dim=128,
            hidden_size=3072,
            intermediate_size=8256,
            max_position_embeddings=8192,
            mlp_bias=False,
            num_attention_heads=24,
            num_hidden_layers=30,
            num_key_value_heads=24,
        ),
        STARCODER,
        "mellum",
        "<fim_suffix>S<fim_prefix>P<fim_middle>",
        layout="spm",
        cutting="mellum",
        keys={"attention.key_length": 8, "attention.value_length": 8, "vocab_size": 320},
    ),
    "deepseek-coder-1.3b": _deepseek(DEEPSEEK_LLAMA),
    "deepseek-coder saved by transformers 5": _deepseek(
        {
            key: value
            for key, value in DEEPSEEK_LLAMA.items()
            if key not in ("rope_theta", "rope_scaling", "torch_dtype")
        }
        | {
            "attention_bias": False,
            "dtype": "bfloat16",
            "head_dim": 128,
            "mlp_bias": False,
            "rope_parameters": {"factor": 4.0, "rope_theta": 100000, "rope_type": "linear"},
        }
    ),
    "seed-coder-8b": Published(
        _llama(
            attention_bias=False,
            attention_dropout=0.0,
            head_dim=128,
            intermediate_size=14336,
            layer_norm_eps=None,
            max_position_embeddings=32768,
            mlp_bias=False,
            num_key_value_heads=8,
            rms_norm_eps=1e-06,
            rope_theta=500000.0,
            vocab_size=155136,
        ),
        SEED,
        "seed-coder",
        "<[begin▁of▁sentence]><[fim-suffix]>S<[fim-prefix]>P<[fim-middle]>",
        bos="<[begin▁of▁sentence]>",
        eos="<[end▁of▁sentence]>",
        layout="spm",
        cutting="seed-coder",
        keys={"attention.key_length": 8, "attention.value_length": 8, "vocab_size": 320},
    ),
    "codellama-7b": Published(
        _llama(rope_theta=1000000, vocab_size=32016),
        ["<unk>", "<s>", "</s>", "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"],
        "codellama",
        "<s>▁<PRE>P▁<SUF>S▁<MID>",
        bos="<s>",
        eos="</s>",
        sentencepiece=True,
        space=True,
        keys={"tensor_data_layout": "Meta AI original pth"},
        ids=CODE_LLAMA_IDS,
    ),
    "granite-code-3b": Published(
        _llama(
            attention_bias=True,
            attention_dropout=0.1,
            hidden_size=2560,
            intermediate_size=10240,
            max_position_embeddings=2048,
            mlp_bias=True,
            pad_token_id=0,
            tie_word_embeddings=True,
        ),
        STARCODER,
        "starcoder",
        PSM,
        cutting="refact",
        keys={"vocab_size": 320},
    ),
    "granite-3.3-2b": Published(
        GRANITE_3,
        GRANITE,
        "starcoder",
        PSM,
        bos="<|end_of_text|>",
        eos="<|end_of_text|>",
        cutting="refact",
        keys={
            "vocab_size": 320,
            "attention.scale": 0.015625,
            "embedding_scale": 12.0,
            "residual_scale": 0.22,
            "logit_scale": 8.0,
        },
    ),
    "codegemma-2b": Published(
        CODEGEMMA,
        [
            *("<pad>", "<eos>", "<bos>", "<unk>", "<|fim_prefix|>", "<|fim_middle|>"),
            *("<|fim_suffix|>", "<|file_separator|>", "<end_of_turn>"),
        ],
        "codegemma",
        "<bos><|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>",
        bos="<bos>",
        eos="<eos>",
        sentencepiece=True,
        keys={"attention.key_length": 8, "attention.value_length": 8},
        missing=NO_ROPE_KEYS,
        ids=GEMMA_IDS,
    ),
    "starcoderbase-1b": Published(
        _bigcode(), STARCODER, "starcoder", PSM, cutting="refact", missing=NO_ROPE_KEYS
    ),
    "santacoder": Published(
        _bigcode(n_positions=2048, vocab_size=49280),
        ["<|endoftext|>", "<fim-prefix>", "<fim-middle>", "<fim-suffix>", "<fim-pad>"],
        "santacoder",
        "<fim-prefix>P<fim-suffix>S<fim-middle>",
        cutting="refact",
        missing=NO_ROPE_KEYS,
    ),
    "smollm2-135m": Published(
        _llama(
            attention_bias=False,
            attention_dropout=0.0,
            hidden_size=576,
            intermediate_size=1536,
            is_llama_config=True,
            max_position_embeddings=8192,
            mlp_bias=False,
            num_attention_heads=9,
            num_hidden_layers=30,
            num_key_value_heads=3,
            rope_interleaved=False,
            rope_theta=100000,
            tie_word_embeddings=True,
        )
        | {"transformers.js_config": {"dtype": "q4"}},
        SMOLLM,
        "",
        "",
        bos="<|im_start|>",
        eos="<|im_end|>",
        cutting="smollm",
        keys={"vocab_size": 320},
    ),
    "codestral-22b": Published(
        CODESTRAL,
        ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]"],
        "codestral",
        "<s>[SUFFIX]S[PREFIX]P",
        bos="<s>",
        eos="</s>",
        layout="spm",
        sentencepiece=True,
        space=True,
        keys={"vocab_size": 320},
    ),
}
