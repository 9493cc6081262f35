"""Fills a head with a checkpoint, which may be another head's, and writes one."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.catalogue.records import check_unaltered
from model.decoder.config import DecoderConfig
from model.decoder.decoder import Decoder
from model.decoder.factory import Factory, Packed, pack
from model.errors import ModelError
from model.families.hf_config import ConfigReader
from model.families.registry import FAMILIES
from model.families.weight_table import WeightSlot
from model.heads.initialization import draw, draw_all, mark_padding, read_config
from model.heads.layers import Dropouts, read_dropout
from model.heads.losses import PROBLEM_TYPES, ProblemType
from model.loading import needs_of
from model.placement.spread import Spread, connect, is_first, weights_of, whole_config
from model.precision.bitsandbytes_linear import BitsFactory
from model.precision.devices import choose_device, choose_dtype, free_memory
from model.precision.quantization import Needs, choose_quantization
from model.weights.checkpoint import HEAD, Checkpoint, Places, check, some, surplus
from model.weights.files import ModelFiles
from model.weights.folder import find_model

log = logging.getLogger(__name__)
DECODER = "decoder."  # begins the names of its parameters in a head
# How the names of heads begin, as transformers writes them: of language models, classifiers, and
# models that mark the answer to a question in a text.
HEADS = ("lm_head.", "score.", "classifier.", "qa_outputs.")


@dataclass(frozen=True, slots=True)
class LoadingReport:
    """missing: the head's weights that the checkpoint does not have, drawn at random. left_over:
    the checkpoint's weights of another head. Names as in the checkpoint."""

    missing: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """What config.json states for heads and for training."""

    num_labels: int
    problem_type: ProblemType | None
    pad_id: int | None
    use_cache: bool  # whether a pass returns one where nobody says it
    classifier_dropout: float
    initializer_range: float  # the standard deviation of new weights
    dropouts: Dropouts

    @classmethod
    def of(cls, files: ModelFiles, num_labels: int | None, problem_type: str | None) -> HeadConfig:
        """The arguments overrule config.json where they are not None. Raises ModelError."""
        try:
            return cls._read(files, num_labels, problem_type)
        except ModelError as error:  # begins with config.json
            raise ModelError(f"{files.path}{files.before_config}{error}") from None

    @classmethod
    def _read(
        cls, files: ModelFiles, num_labels: int | None, problem_type: str | None
    ) -> HeadConfig:
        reader = ConfigReader(files.config)
        names = reader.get("id2label", dict, {})
        if num_labels is None:
            num_labels = reader.get("num_labels", int, len(names) or 2)
        if num_labels < 1:
            raise ModelError(f"config.json: num_labels is {num_labels}, but must be positive")
        problem = problem_type or reader.get("problem_type", str)
        if problem is not None and problem not in PROBLEM_TYPES:
            raise ModelError(
                f"config.json: problem_type is {problem!r}, but must be one of "
                f"{', '.join(PROBLEM_TYPES)}"
            )
        family = FAMILIES[files.model_type]
        dropout = read_dropout(files.config, "hidden_dropout", family.classifier_dropout)
        deviation = reader.get("initializer_range", float, family.initializer_range)
        if deviation < 0:
            raise ModelError(f"config.json: initializer_range is {deviation}, but must be positive")
        return cls(
            num_labels,
            problem,
            reader.get("pad_token_id", int),
            reader.get("use_cache", bool, True),
            read_dropout(files.config, "classifier_dropout", dropout),
            deviation,
            Dropouts.of(files.config, family),
        )


class _Head(Protocol):
    """The part of model.heads.heads.Head that is needed here."""

    decoder: Decoder
    config: HeadConfig
    files: ModelFiles

    @property
    def own_weights(self) -> Mapping[str, WeightSlot]: ...

    def get_parameter(self, target: str) -> torch.nn.Parameter: ...


def open_checkpoint(
    name: str | Path,
    device: str,
    dtype: str,
    quantization: str | None,
    keeps_lm_head: bool,
    spread: Spread,
) -> tuple[Checkpoint, Decoder]:
    """A model's name -> its checkpoint, and a decoder without weights for it, frozen where its
    matrices are quantized. Raises ModelError."""
    files = find_model(name)
    check_unaltered(files.files)
    checkpoint = Checkpoint.open(files)
    config = checkpoint.config if keeps_lm_head else without_lm_head(checkpoint.config)
    opened = spread.open(checkpoint, config, device, dtype, quantization)
    if not isinstance(opened, str):
        return opened
    where = choose_device(opened)
    chosen = choose_dtype(dtype, where)
    needs = replace(needs_of(files, checkpoint, chosen), trainable=True)
    choice = choose_quantization(quantization, dtype, chosen, where, needs, free_memory(where))
    log.info("%s: %s", files.path, choice.reason)
    if choice.kind is None:
        return checkpoint, Decoder(config, Factory(where, chosen))
    factory = BitsFactory(where, chosen, choice.kind)
    return checkpoint, Decoder(config, factory).requires_grad_(False)


def open_config(
    config: str | Path | Mapping[str, Any], device: str, dtype: str, keeps_lm_head: bool
) -> tuple[ModelFiles, Decoder]:
    """A model's name, or what its config.json holds -> the model's files, and a decoder without
    weights for it. Raises ModelError."""
    files, wanted = read_config(config)
    where = choose_device(device)
    chosen = choose_dtype(dtype, where)
    if not keeps_lm_head:
        wanted = without_lm_head(wanted)
    table = FAMILIES[files.model_type].weight_table(wanted)
    weights = sum(math.prod(slot.shape) for slot in table.values())
    needs = Needs(str(files.path), {None: weights * chosen.itemsize}, trainable=True)
    choose_quantization(None, dtype, chosen, where, needs, free_memory(where))
    return files, Decoder(wanted, Factory(where, chosen))


def without_lm_head(config: DecoderConfig) -> DecoderConfig:
    """A decoder with tied embeddings has no head of its own."""
    return replace(config, tie_embeddings=True)


@torch.no_grad()
def fill(head: _Head, checkpoint: Checkpoint) -> LoadingReport:
    """Writes every tensor of the checkpoint to its place in the head, and draws what only the head
    lacks. Raises ModelError."""
    decoder = head.decoder
    slots = slots_of(head)
    places = Places(cast(torch.nn.Module, head), slots.values(), pack)
    waiting = dict(slots)
    left_over: list[str] = []
    copies: list[Tensor] = []
    for file, stored, tensor in checkpoint.tensors():
        name = checkpoint.full_name(stored)
        slot = waiting.pop(name, None)
        if slot is not None:
            check(slot, tensor, name, file, decoder.dtype)
            places.write(slot, tensor)
        elif name in slots or not name.startswith(HEADS):
            raise surplus(name, file, again=name in slots)
        elif name == HEAD and checkpoint.config.tie_embeddings:
            copies.append(tensor)
        else:
            left_over.append(name)
    new = {name: slot for name, slot in waiting.items() if name.startswith(HEADS)}
    if lost := waiting.keys() - new.keys():
        raise ModelError(
            f"{head.files.path} lacks the tensors {some(sorted(lost))}. Download the model again."
        )
    checkpoint.check_copies(decoder, copies)
    for slot in new.values():
        draw(head.get_parameter(slot.parameter), head.config.initializer_range)
    mark_padding(decoder, FAMILIES[head.files.model_type], head.config.pad_id)
    connect(decoder, [head.get_parameter(slot.parameter) for slot in new.values()])
    report = LoadingReport(tuple(new), tuple(left_over))
    if new:
        log.warning("%s has no %s: drawn at random", head.files.path, some(new))
    if left_over:
        log.warning("%s: %s is left over, of another head", head.files.path, some(left_over))
    return report


def draw_new(head: torch.nn.Module) -> LoadingReport:
    """Draws every weight of a head, as for a training from scratch."""
    new = cast(_Head, head)
    family = FAMILIES[new.files.model_type]
    mark_padding(new.decoder, family, new.config.pad_id)
    draw_all(head, new.decoder, family, new.config.initializer_range)
    return LoadingReport(missing=tuple(slots_of(new)))


def slots_of(head: _Head, config: DecoderConfig | None = None) -> dict[str, WeightSlot]:
    """The names of the tensors in a checkpoint -> their places among the head's parameters.

    config: of the whole decoder where the head's has a share of it alone.
    """
    table = FAMILIES[head.files.model_type].weight_table(config or head.decoder.config)
    slots = {
        name: replace(slot, parameter=DECODER + slot.parameter) for name, slot in table.items()
    }
    return slots | dict(head.own_weights)


@torch.no_grad()
def save(head: _Head, folder: Path) -> None:
    """Writes config.json, model.safetensors and tokenizer.json. All processes that share a decoder
    call it, and the first one writes. Raises ModelError, OSError."""
    if any(isinstance(module, Packed) for module in head.decoder.modules()):
        raise ModelError(
            f"The decoder's weights are {head.decoder.scheme}, in which fimls writes no model. "
            "Load the head without a quantization to save it; a classifier's own weights are in "
            "head.score.state_dict()."
        )
    tokenizer = head.files.tokenizer_json()
    weights = {
        name: _stored(head, slot).cpu().contiguous().clone()
        for name, slot in slots_of(head, whole_config(head.decoder)).items()
    }
    if not is_first(head.decoder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {key: v for key, v in head.files.config.items() if key != "quantization_config"}
    config["dtype"] = str(head.decoder.dtype).removeprefix("torch.")
    config["vocab_size"] = head.decoder.config.vocab_size
    for stale in ("torch_dtype", "architectures"):  # the latter names a class of one head
        config.pop(stale, None)
    if head.own_weights:
        config |= _labels(head.config, config.get("id2label"))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if tokenizer:
        (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")


def _stored(head: _Head, slot: WeightSlot) -> Tensor:
    if not slot.parameter.startswith(DECODER):
        return head.get_parameter(slot.parameter)
    own = replace(slot, parameter=slot.parameter.removeprefix(DECODER))
    return weights_of(head.decoder, own)


def _labels(config: HeadConfig, names: dict[str, str] | None) -> dict[str, Any]:
    """The keys of config.json for a classifier's labels. names: those that it has so far."""
    if names is None or len(names) != config.num_labels:
        names = {str(i): f"LABEL_{i}" for i in range(config.num_labels)}
    return {
        "id2label": names,
        "label2id": {name: int(i) for i, name in names.items()},
        "problem_type": config.problem_type,
    }
