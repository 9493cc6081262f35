"""GgufModel: a GGUF file, or a split one, seen as a model folder."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from model.decoder.config import DecoderConfig
from model.errors import ModelError
from model.families.family import Family
from model.families.registry import FAMILIES
from model.families.weight_table import WeightSlot
from model.tokenizer import Tokenizer
from model.weights.files import ModelFiles
from model.weights.gguf.header import Header, StringArray, TensorInfo, read_floats, read_header
from model.weights.gguf.special_tokens import stop_ids
from model.weights.gguf.vocabulary import make_tokenizer
from model.weights.preferences import Preferences, known_preferences

if TYPE_CHECKING:
    from torch import Tensor

    from model.ggml import Blocks

SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
# Keys after the architecture's name -> keys of config.json, in every family.
COMMON_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "rope.freq_base": "rope_theta",
}
# llama.cpp opens no file without these and the epsilon of the norms.
NEEDED = ("embedding_length", "block_count", "feed_forward_length", "attention.head_count")
# Keys that other functions of this module read, and those that change no result.
OTHER_KEYS = {
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scale_linear",
    "tensor_data_layout",  # of 2023: says what the converter read
    "vocab_size",
}
HIDDEN_ACTS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu"}
EMBEDDINGS = "token_embd.weight"
HEAD = "output.weight"
ROPE_FACTORS = "rope_freqs.weight"  # of Llama 3: what each frequency is divided by
LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class GgufModel(ModelFiles):
    """A model in one or more GGUF files. config is made from their metadata."""

    path: Path
    config: Mapping[str, Any]
    parts: Mapping[Path, Header]  # in order
    before_config: ClassVar[str] = ", as "

    @classmethod
    def open(cls, path: Path) -> GgufModel:
        """Raises ModelError."""
        parts = {file: read_header(file) for file in _split_files(path)}
        metadata = next(iter(parts.values())).metadata
        tensors = {name: info for part in parts.values() for name, info in part.tensors.items()}
        count = metadata.get("split.tensors.count", len(tensors))
        if count != len(tensors):
            raise ModelError(
                f"{path} and its parts hold {len(tensors)} tensors instead of {count}. Download "
                "the model again."
            )
        try:
            config = hugging_face_config(metadata, tensors)
            config |= _llama3_scaling(parts, config)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        return cls(path, config, parts)

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @property
    def weight_files(self) -> Sequence[Path]:
        return list(self.parts)

    @property
    def files(self) -> Sequence[Path]:
        return self.weight_files

    @property
    def metadata(self) -> Mapping[str, Any]:
        return next(iter(self.parts.values())).metadata

    @property
    def parameters(self) -> int:
        count = 0
        for part in self.parts.values():
            count += sum(math.prod(info.shape) for info in part.tensors.values())
        return count

    @cached_property
    def preferences(self) -> Preferences:
        """What the catalogue knows of the file. Raises ModelError."""
        return known_preferences(self.path)

    def tensor_shapes(
        self, table: Mapping[str, WeightSlot], config: DecoderConfig
    ) -> dict[str, tuple[int, ...]]:
        from model.weights.gguf.tensors import gguf_shapes

        return gguf_shapes(self, table, config)

    def tensors(
        self, table: Mapping[str, WeightSlot], config: DecoderConfig
    ) -> Iterator[tuple[Path, str, Tensor]]:
        from model.ggml import Blocks

        for file, name, stored in self.stored_tensors(table, config):
            yield file, name, stored.floats() if isinstance(stored, Blocks) else stored

    def block_kinds(self, table: Mapping[str, WeightSlot], config: DecoderConfig) -> dict[str, str]:
        from model.weights.gguf.tensors import gguf_block_kinds

        return gguf_block_kinds(self, table, config)

    def stored_tensors(
        self, table: Mapping[str, WeightSlot], config: DecoderConfig
    ) -> Iterator[tuple[Path, str, Tensor | Blocks]]:
        from model.weights.gguf.tensors import gguf_tensors

        return gguf_tensors(self, table, config)

    def load_tokenizer(self) -> Tokenizer:
        try:
            return make_tokenizer(self.metadata)
        except ModelError as error:
            raise ModelError(f"{self.path}: {error}") from None

    def tokenizer_json(self) -> str:
        return self.load_tokenizer().to_json()


def _split_files(path: Path) -> list[Path]:
    """The files of a model by any of them. Raises ModelError for one that is missing."""
    match = SPLIT.search(path.name)
    if match is None:
        return [path]
    count = int(match[2])
    start = path.name[: match.start()]
    files = [path.with_name(f"{start}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise ModelError(
            f"{path.parent} lacks {', '.join(missing[:4])} of a model in {count} files. Download "
            "the model again."
        )
    return files


def hugging_face_config(
    metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
) -> dict[str, Any]:
    """The metadata of a file -> the content of config.json for the same model.

    Raises ModelError for an architecture, or for a key that changes the result, that is unknown.
    """
    architecture = metadata.get("general.architecture")
    family = _family_of(architecture)
    own: dict[str, Any] = {}
    for key, value in metadata.items():
        if key.startswith(f"{architecture}."):
            own[key.removeprefix(f"{architecture}.")] = value
    _check_keys(own, family)
    embeddings = tensors.get(EMBEDDINGS)
    if embeddings is None:
        raise ModelError(f"it lacks the tensor {EMBEDDINGS}. Download the model again.")
    config: dict[str, Any] = {
        "model_type": family.model_type,
        "vocab_size": embeddings.shape[0],
        "hidden_act": HIDDEN_ACTS[family.gguf.activation],
        "tie_word_embeddings": HEAD not in tensors,
        # null, since an absent key would mean the family's default
        "eos_token_id": stop_ids(metadata) or None,
    }
    if "tokenizer.ggml.bos_token_id" in metadata:
        config["bos_token_id"] = metadata["tokenizer.ggml.bos_token_id"]
    for key, name in (COMMON_KEYS | dict(family.gguf.config_keys)).items():
        if key in own:
            config[name] = own[key]
    config.setdefault("num_key_value_heads", config.get("num_attention_heads"))  # as llama.cpp
    config |= _head_sizes(own, config)
    config |= _rope_scaling(own)
    config |= family.gguf.config_of_tensors(tensors)
    return config


def _family_of(architecture: object) -> Family:
    known: dict[str, Family] = {}
    for family in FAMILIES.values():
        known.setdefault(family.architecture, family)
    if architecture not in known:
        raise ModelError(
            f"the architecture {architecture!r} is none that fimls runs from a GGUF file. It runs "
            f"{', '.join(known)}."
        )
    return known[str(architecture)]


def _check_keys(own: Mapping[str, Any], family: Family) -> None:
    known = COMMON_KEYS.keys() | OTHER_KEYS | family.gguf.config_keys.keys()
    harmless = family.gguf.harmless_keys
    unknown = [key for key in own if key not in known and key not in harmless]
    epsilons = [key for key in family.gguf.config_keys if key.endswith("epsilon")]
    missing = [key for key in (*NEEDED, *epsilons) if key not in own]
    if missing:
        raise ModelError(f"it lacks the keys {', '.join(missing)}. Download the model again.")
    if unknown:
        raise ModelError(
            "it has keys that fimls does not know and that may change the result: "
            f"{', '.join(sorted(unknown))}. Use another file of the model, or report this one."
        )
    for key, value in own.items():
        if isinstance(value, tuple | StringArray):
            raise ModelError(
                f"{key} differs by layer, which fimls does not run. Use another model."
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ModelError(f"{key} is {value}. Download the model again.")


def _head_sizes(own: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """head_dim where it does not follow from the other sizes, and the share that is rotated."""
    hidden = config.get("hidden_size")
    heads = config.get("num_attention_heads")
    if type(hidden) is not int or type(heads) is not int or heads < 1:
        raise ModelError(f"it has {heads!r} heads and {hidden!r} dimensions. Download it again.")
    sizes: dict[str, Any] = {}
    head_dim = own.get("attention.key_length", hidden // heads)
    rotated = own.get("rope.dimension_count", head_dim)
    if type(head_dim) is not int or type(rotated) is not int or head_dim < 1:
        raise ModelError(
            f"its heads have {head_dim!r} dimensions, of which {rotated!r} are rotated. Download "
            "the model again."
        )
    if own.get("attention.value_length", head_dim) != head_dim:
        raise ModelError(
            "its keys and values differ in width, which fimls does not run. Use another model."
        )
    if head_dim != hidden // heads:
        sizes["head_dim"] = head_dim
    if rotated != head_dim:
        sizes["partial_rotary_factor"] = rotated / head_dim
    return sizes


def _rope_scaling(own: Mapping[str, Any]) -> dict[str, Any]:
    """rope_scaling, where positions are stretched."""
    kind = own.get("rope.scaling.type", "none")
    factor = own.get("rope.scaling.factor", own.get("rope.scale_linear", 1.0))
    if "rope.scaling.type" not in own and factor not in (0.0, 1.0):
        kind = "linear"
    if kind == "none" or factor in (0.0, 1.0):
        return {}
    if kind not in ("linear", "yarn"):
        raise ModelError(
            f"the rotary embedding's scaling {kind!r} is none that fimls knows. Use another model."
        )
    scaling = {"rope_type": kind, "factor": factor}
    if kind == "yarn" and "rope.scaling.original_context_length" in own:
        scaling["original_max_position_embeddings"] = own["rope.scaling.original_context_length"]
    return {"rope_scaling": scaling}


def _llama3_scaling(parts: Mapping[Path, Header], config: Mapping[str, Any]) -> dict[str, Any]:
    """rope_scaling of Llama 3.1 and later, of which a file holds only the divisor of each
    frequency.

    The original context and the two limits are those of all released models (model cards of
    meta-llama/Llama-3.1-8B, Llama-3.2-1B). Raises ModelError where they give other divisors.
    """
    holders = [path for path, part in parts.items() if ROPE_FACTORS in part.tensors]
    if not holders:
        return {}
    info = parts[holders[0]].tensors[ROPE_FACTORS]
    pairs = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"]) // 2
    if info.kind != "F32" or info.shape != (pairs,):
        raise ModelError(
            f"{ROPE_FACTORS} is {info.kind} {info.shape} instead of F32 ({pairs},). Download the "
            "model again."
        )
    found = read_floats(holders[0], info)
    factor = max(found)
    expected = _llama3_divisors(factor, pairs, config.get("rope_theta", 10000.0))
    if not all(math.isclose(*both, rel_tol=1e-3) for both in zip(found, expected, strict=True)):
        raise ModelError(
            f"{ROPE_FACTORS} divides the frequencies in a way that fimls does not know. Use the "
            "model's folder with config.json."
        )
    return {"rope_scaling": {"rope_type": "llama3", "factor": factor, **LLAMA3}}


def _llama3_divisors(factor: float, pairs: int, theta: float) -> list[float]:
    """What each frequency is divided by: see model/decoder/rope.py."""
    low, high, positions = LLAMA3.values()
    divisors = []
    for pair in range(pairs):
        turns = positions * theta ** (-pair / pairs) / (2 * math.pi)
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / max(factor, 1.0) + smooth))
    return divisors
