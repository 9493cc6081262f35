"""A model folder -> one GGUF file, for llama.cpp and what is built on it.

What llama.cpp would compute otherwise than our decoder is refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.decoder.config import DecoderConfig
from model.errors import ModelError
from model.weights.checkpoint import read_config, read_weights
from model.weights.folder import ModelFolder, read_json

if TYPE_CHECKING:
    import gguf

TYPES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "q8_0": "Q8_0",
}  # our names -> GGUF's
ACTIVATIONS = {"starcoder2": "gelu_tanh", "stablelm": "silu"}  # llama.cpp has one for each family
SENTINELS = {
    "fim_pre": "<fim_prefix>",
    "fim_suf": "<fim_suffix>",
    "fim_mid": "<fim_middle>",
    "fim_pad": "<fim_pad>",
    "fim_rep": "<repo_name>",
    "fim_sep": "<file_sep>",
}


def write_gguf(folder: ModelFolder, out: Path, dtype: str) -> None:
    """Writes NAME-TYPE.gguf into the folder out. dtype: one of TYPES.

    Vectors stay float32, as llama.cpp wants them. Raises ModelError, and OSError from writing.
    """
    try:
        import gguf
        import numpy as np
    except ImportError:
        raise ModelError(
            "A GGUF file takes the package gguf, which is not installed: pip install gguf"
        ) from None
    config, table = read_config(folder)
    _refuse_what_differs(folder, config)
    name = "fimls" if folder.is_bundled else folder.path.resolve().name
    kind = gguf.GGMLQuantizationType[TYPES[dtype]]
    writer = gguf.GGUFWriter(out / f"{name}-{kind.name.lower()}.gguf", folder.model_type)
    writer.add_name(name)
    _add_shape(writer, folder, config)
    writer.add_file_type(
        gguf.LlamaFileType["ALL_F32" if dtype == "float32" else f"MOSTLY_{kind.name}"]
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tokenizer(writer, folder, config)

    architecture = next(a for a, text in gguf.MODEL_ARCH_NAMES.items() if text == folder.model_type)
    names = gguf.get_tensor_name_map(architecture, config.num_layers)
    # Without the second copy of tied embeddings that some tools write, and without what the config
    # tells already.
    shapes = {source: shape for source, shape in folder.shapes.items() if source in table}
    kinds = {source: _kind(kind, shape) for source, shape in shapes.items()}
    for source, shape in shapes.items():
        block, block_bytes = gguf.GGML_QUANT_SIZES[kinds[source]]
        size = math.prod(shape) // block * block_bytes
        renamed = names.get_name(source, try_suffixes=(".weight", ".bias"))
        assert renamed is not None, source
        writer.add_tensor_info(renamed, shape, np.dtype(np.float32), size, raw_dtype=kinds[source])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        weights = (
            (source, tensor) for _, source, tensor in read_weights(folder) if source in kinds
        )
        for expected, (source, tensor) in zip(
            kinds, weights, strict=True
        ):  # one in memory at a time
            assert source == expected
            writer.write_tensor_data(gguf.quantize(tensor.float().numpy(), kinds[source]))
    finally:
        writer.close()


def _kind(wanted: gguf.GGMLQuantizationType, shape: tuple[int, ...]) -> gguf.GGMLQuantizationType:
    """How one tensor is stored: as wanted, but vectors as float32 and rows that do not fill its
    blocks as float16."""
    import gguf

    if len(shape) == 1:
        return gguf.GGMLQuantizationType.F32
    return (
        wanted
        if shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0] == 0
        else gguf.GGMLQuantizationType.F16
    )


def _refuse_what_differs(folder: ModelFolder, config: DecoderConfig) -> None:
    family, rope = folder.model_type, config.rope
    reasons = {
        f"{config.activation} instead of {ACTIVATIONS[family]}": config.activation
        != ACTIVATIONS[family],
        f"rotary embedding of the kind {rope.kind!r}": rope.kind != "default",
    }
    if family == "starcoder2":
        reasons["no biases"] = not (config.qkv_bias and config.out_bias and config.mlp_bias)
        reasons["partly rotated heads"] = rope.dim != config.head_dim
    else:
        reasons["norms on queries and keys"] = config.qk_norm
        reasons["tied embeddings"] = config.tie_embeddings
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise ModelError(
            f"{folder.path} cannot become a GGUF file: fimls writes none for a {family} with "
            f"{', '.join(found)}. "
            "Export it with --format hf."
        )


def _add_shape(writer: gguf.GGUFWriter, folder: ModelFolder, config: DecoderConfig) -> None:
    # llama.cpp knows no sliding window for these two; within one window there is no difference.
    writer.add_context_length(
        min(config.max_positions, config.sliding_window or config.max_positions)
    )
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.rope.dim)
    writer.add_rope_freq_base(config.rope.theta)
    if folder.model_type == "stablelm":
        writer.add_parallel_residual(config.parallel_residual)


def _add_tokenizer(writer: gguf.GGUFWriter, folder: ModelFolder, config: DecoderConfig) -> None:
    import gguf

    path = folder.path / "tokenizer.json"
    tokenizer = read_json(path)
    texts = [
        f"[PAD{i}]" for i in range(config.vocab_size)
    ]  # the model may have more rows than there are tokens
    types = [gguf.TokenType.UNUSED] * config.vocab_size
    try:
        cutting = _cutting(tokenizer)
        merges = [
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in tokenizer["model"]["merges"]
        ]
        for text, i in tokenizer["model"]["vocab"].items():
            texts[i], types[i] = text, gguf.TokenType.NORMAL
        for token in tokenizer["added_tokens"]:
            kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
            texts[token["id"]], types[token["id"]] = token["content"], kind
    except (KeyError, TypeError, AttributeError, IndexError):
        cutting = None
    if cutting is None or not merges:  # llama.cpp reads none without merges
        raise ModelError(
            f"{path} is not a byte-level BPE tokenizer of the kinds that fimls can write into a "
            "GGUF file. "
            "Export with --format hf."
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cutting)
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    if isinstance(bos := folder.config.get("bos_token_id"), int):
        writer.add_bos_token_id(bos)
    if config.stop_ids:
        writer.add_eos_token_id(config.stop_ids[0])
    for name, text in SENTINELS.items():
        if text in texts:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", texts.index(text))


def _cutting(tokenizer: dict[str, Any]) -> str | None:
    """llama.cpp's name for how a byte-level tokenizer cuts text before it merges; None for other
    tokenizers."""
    model, before = tokenizer["model"], tokenizer["pre_tokenizer"]
    steps = before["pretokenizers"] if before["type"] == "Sequence" else [before]
    last = steps[-1]
    normalizer = tokenizer.get("normalizer")
    plain = (
        model["type"] == "BPE"
        and not model.get("ignore_merges")
        and not model.get("byte_fallback")
        # llama.cpp does not compose characters; source text nearly always comes composed
        and (normalizer is None or normalizer["type"] == "NFC")
        and last["type"] == "ByteLevel"
        and not last.get("add_prefix_space")
        and last.get("use_regex", True)
    )
    digits_alone = [
        step["type"] == "Digits" and bool(step.get("individual_digits")) for step in steps[:-1]
    ]
    if not plain or not all(digits_alone):
        return None
    return "starcoder" if digits_alone else "gpt-2"
