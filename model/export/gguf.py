"""Writes one GGUF file, for llama.cpp and the programs that are built on it.

A model that llama.cpp would compute otherwise than our decoder is refused.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from model.decoder.config import DecoderConfig
from model.errors import ModelError
from model.families.registry import FAMILIES
from model.weights.checkpoint import Checkpoint
from model.weights.files import ModelFiles
from model.weights.gguf.model import GgufModel
from model.weights.gguf.tensors import gguf_names

if TYPE_CHECKING:
    import gguf

# Our names of the types -> GGUF's.
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
# How the tokenizers of Qwen2 and Qwen2.5 cut text (their tokenizer.json).
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SENTINELS = {
    "fim_pre": "<fim_prefix>",
    "fim_suf": "<fim_suffix>",
    "fim_mid": "<fim_middle>",
    "fim_pad": "<fim_pad>",
    "fim_rep": "<repo_name>",
    "fim_sep": "<file_sep>",
}


def write_gguf(checkpoint: Checkpoint, out: Path, dtype: str) -> None:
    """Writes NAME-TYPE.gguf into the folder out. dtype: one of TYPES.

    Vectors stay float32, as llama.cpp wants them. Raises ModelError, and OSError from writing.
    """
    try:
        import gguf
    except ImportError:
        raise ModelError(
            "A GGUF file takes the package gguf, which is not installed: pip install gguf"
        ) from None
    folder = checkpoint.folder
    _refuse_what_differs(folder, checkpoint.config)
    name = "fimls" if folder.is_bundled else folder.path.resolve().name
    wanted = gguf.GGMLQuantizationType[TYPES[dtype]]
    file_type = "ALL_F32" if dtype == "float32" else f"MOSTLY_{wanted.name}"
    file = out / f"{name}-{wanted.name.lower()}.gguf"
    writer = gguf.GGUFWriter(file, FAMILIES[folder.model_type].architecture)
    try:
        writer.add_name(name)
        _add_shape(writer, folder, checkpoint.config)
        writer.add_file_type(gguf.LlamaFileType[file_type])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_tokenizer(writer, folder, checkpoint.config)
        _write_tensors(writer, checkpoint, wanted)
    finally:
        writer.close()


def _write_tensors(
    writer: gguf.GGUFWriter, checkpoint: Checkpoint, wanted: gguf.GGMLQuantizationType
) -> None:
    """Writes what was added so far, the table of tensors and the tensors, one in memory at a
    time."""
    import gguf

    family = FAMILIES[checkpoint.folder.model_type]
    names = gguf_names(family, checkpoint.table, checkpoint.config)
    kinds = {}
    for source, shape in checkpoint.shapes.items():
        # Others are a second copy of tied embeddings, or are computed from the config.
        if source in checkpoint.table:
            kind = _kind(wanted, shape)
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            size = math.prod(shape) // block * block_bytes
            writer.add_tensor_info(names[source], shape, np.dtype(np.float32), size, raw_dtype=kind)
            kinds[source] = kind
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    expected = iter(kinds)
    for _, source, tensor in checkpoint.tensors():
        if source in kinds:
            assert source == next(expected)
            slot = checkpoint.table[source]
            if family.gguf.interleaved and slot.is_rotated(checkpoint.config):
                tensor = _interleave(tensor, checkpoint.config)
            if family.gguf.added_one and slot.is_norm:
                tensor = 1 + tensor.float()
            writer.write_tensor_data(gguf.quantize(tensor.float().numpy(), kinds[source]))
    assert next(expected, None) is None


def _kind(wanted: gguf.GGMLQuantizationType, shape: tuple[int, ...]) -> gguf.GGMLQuantizationType:
    """The type of one tensor: vectors are float32, rows that do not fill blocks are float16."""
    import gguf

    if len(shape) == 1:
        return gguf.GGMLQuantizationType.F32
    if shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]:
        return gguf.GGMLQuantizationType.F16
    return wanted


def _interleave(tensor: Tensor, config: DecoderConfig) -> Tensor:
    """Queries' or keys' rows with the two dimensions of a rotated pair side by side, as the
    converter of llama.cpp does (its function permute)."""
    halves = tensor.view(-1, 2, config.head_dim // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _refuse_what_differs(folder: ModelFiles, config: DecoderConfig) -> None:
    """Raises ModelError with the reasons for which llama.cpp computes the model otherwise."""
    rules = FAMILIES[folder.model_type].gguf
    known = rules.activation
    kind = config.rope.kind if config.rope else "default"
    reasons = {
        f"{config.activation} instead of {known}": config.activation != known,
        f"rotary embedding of the kind {kind!r}": kind != "default",
        **rules.refusals(config),
        "partly rotated heads": not rules.partly_rotated
        and config.rotated_dim not in (0, config.head_dim),
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise ModelError(
            f"{folder.path} cannot become a GGUF file: fimls writes none for a {folder.model_type} "
            f"with {', '.join(found)}. Export it with --format hf."
        )


def _add_shape(writer: gguf.GGUFWriter, folder: ModelFiles, config: DecoderConfig) -> None:
    """Adds the sizes and switches."""
    family = FAMILIES[folder.model_type]
    rules = family.gguf
    # llama.cpp knows no sliding window for these families; within one window nothing differs.
    window = config.sliding_window or config.max_positions
    writer.add_context_length(min(config.max_positions, window))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    usual = config.head_dim * config.num_heads == config.hidden_size
    if not usual or "attention.key_length" in rules.config_keys:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.norm == "rms_norm":
        writer.add_layer_norm_rms_eps(config.norm_eps)
    else:
        writer.add_layer_norm_eps(config.norm_eps)
    if config.rope:
        writer.add_rope_dimension_count(config.rope.dim)
        writer.add_rope_freq_base(config.rope.theta)
    for key, value in rules.metadata(config).items():
        name = f"{family.architecture}.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        else:
            writer.add_float32(name, value)


def _add_tokenizer(writer: gguf.GGUFWriter, folder: ModelFiles, config: DecoderConfig) -> None:
    """Adds the tokens, their kinds and their merges. Raises ModelError."""
    tokenizer = json.loads(folder.tokenizer_json())
    try:
        if isinstance(folder, GgufModel):
            cutting = folder.metadata["tokenizer.ggml.pre"]
        else:
            cutting = _cutting(tokenizer)
        merges = [_joined(merge) for merge in tokenizer["model"]["merges"]]
        texts, types = _tokens(tokenizer, config.vocab_size)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        cutting = None
    if cutting is None or not merges:  # llama.cpp reads none without merges
        raise ModelError(
            f"{folder.path}: the tokenizer is not a byte-level BPE tokenizer of the kinds that "
            "fimls can write into a GGUF file. Export with --format hf."
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cutting)
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    bos = folder.config.get("bos_token_id")
    if isinstance(bos, int):
        writer.add_bos_token_id(bos)
    ends = [token for token in config.stop_ids if token < len(texts)]
    if ends:
        writer.add_eos_token_id(ends[0])
    for name, text in SENTINELS.items():
        if text in texts:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", texts.index(text))


def _joined(merge: str | list[str]) -> str:
    """Older tokenizer.json files write a merge as one string, newer ones as two."""
    if isinstance(merge, str):
        return merge
    return " ".join(merge)


def _tokens(tokenizer: dict[str, Any], count: int) -> tuple[list[str], list[gguf.TokenType]]:
    """Text and kind of every id below count. The model may have more rows than there are tokens."""
    import gguf

    texts = [f"[PAD{i}]" for i in range(count)]
    types = [gguf.TokenType.UNUSED] * count
    for text, i in tokenizer["model"]["vocab"].items():
        texts[i] = text
        types[i] = gguf.TokenType.NORMAL
    for token in tokenizer["added_tokens"]:
        i = token["id"]
        texts[i] = token["content"]
        types[i] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    return texts, types


def _cutting(tokenizer: dict[str, Any]) -> str | None:
    """llama.cpp's name for how a byte-level tokenizer cuts text before it merges bytes.

    None for a tokenizer that llama.cpp would not follow.
    """
    before = tokenizer["pre_tokenizer"]
    steps = before["pretokenizers"] if before["type"] == "Sequence" else [before]
    *first_steps, last = steps
    if not _merges_plainly(tokenizer["model"], tokenizer.get("normalizer")):
        return None
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if not last.get("use_regex", True):
        return "qwen2" if [_split_pattern(step) for step in first_steps] == [QWEN2_SPLIT] else None
    for step in first_steps:
        if step["type"] != "Digits" or not step.get("individual_digits"):
            return None
    return "starcoder" if first_steps else "gpt-2"


def _merges_plainly(model: dict[str, Any], normalizer: dict[str, Any] | None) -> bool:
    """Whether llama.cpp merges as this model does.

    llama.cpp does not compose characters, as NFC does. Source text nearly always comes composed.
    """
    return (
        model["type"] == "BPE"
        and not model.get("ignore_merges")
        and not model.get("byte_fallback")
        and (normalizer is None or normalizer["type"] == "NFC")
    )


def _split_pattern(step: dict[str, Any]) -> str | None:
    """The regular expression whose matches a step makes pieces of their own."""
    if step["type"] != "Split" or step["behavior"] != "Isolated" or step["invert"]:
        return None
    pattern: str | None = step["pattern"].get("Regex")
    return pattern
