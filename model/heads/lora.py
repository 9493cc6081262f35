"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) of a head's linear layers, by peft.

    head = add_lora(CausalLM.load("bundled"), rank=16)
    ...                                # train head.parameters(): only the adapter's have gradients
    save_lora(head, "ADAPTER")         # peft's PeftModel.from_pretrained reads it too
    merge_lora(head).save("TRAINED")   # an ordinary checkpoint

An adapter is stored under the names of transformers' modules. Where they have one for queries, one
for keys and one for values, the decoder has one for all, and so has the adapter: W + B A with the
rows of B split among the three, which share A. One that was trained there has an A for each; here
it gets all their ranks.
"""

from __future__ import annotations

import importlib
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.decoder.factory import Packed
from model.errors import ModelError
from model.families.weight_table import WeightSlot
from model.heads.heads import Head
from model.heads.loading import slots_of
from model.placement.spread import check_changeable
from model.precision.bitsandbytes_linear import keep_quiet
from model.weights.checkpoint import some
from model.weights.folder import read_json

H = TypeVar("H", bound=Head)
LINEAR = ("qkv", "out", "up", "down")  # the linear layers of a decoder's layer
ADAPTER = "default"  # peft's name for the only one
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BEGINS = "base_model.model."  # each name in WEIGHTS
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
# The keys of CONFIG that are followed, and those that do not change what is computed: which modules
# are adapted is seen in WEIGHTS.
KNOWN_KEYS = frozenset(
    """
    auto_mapping base_model_name_or_path exclude_modules fan_in_fan_out inference_mode
    init_lora_weights layers_pattern layers_to_transform lora_alpha lora_dropout modules_to_save
    peft_type peft_version r rank_pattern revision target_modules task_type
    """.split()
)


def library() -> Any:
    """peft. Raises ModelError with the remedy."""
    keep_quiet()  # peft imports bitsandbytes where it is installed
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise ModelError(
            f"LoRA needs the package peft, which cannot be imported ({error}). Install it (pip "
            "install 'fimls[lora]')."
        ) from None


def add_lora(
    head: H, rank: int = 8, alpha: float = 16, dropout: float = 0.0, *, lm_head: bool = False
) -> H:
    """Freezes the head's weights and adds alpha / rank B A to each linear layer of the decoder's
    layers, B at first 0, in place. A classifier's own weights stay trainable.

    dropout: the share of A's inputs that is dropped in training. lm_head: adapts the language
    model's head too, which then must not be tied to the embeddings. Raises ModelError, ValueError.
    """
    check_changeable(head.decoder)
    names = [
        f"decoder.layers.{name}"
        for name, _ in head.decoder.layers.named_modules()
        if name.rpartition(".")[2] in LINEAR
    ]
    if lm_head:
        if head.decoder.config.tie_embeddings:
            raise ValueError(
                "lm_head is tied to the embeddings, which LoRA leaves as they are, or not there"
            )
        names.append("decoder.head")
    _inject(head, dict.fromkeys(names, rank), rank, alpha, dropout)
    return head


def save_lora(head: Head, folder: str | Path) -> None:
    """Writes the adapter, with a classifier's own weights, as peft does. Raises ValueError where
    there is none, OSError."""
    if not head.adapted:
        raise ValueError("the head has no LoRA weights: add_lora(head) makes them")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = cast(Any, head).peft_config[ADAPTER]
    slots = slots_of(head)
    # peft goes by the names in the model itself, and the bare model's have no prefix.
    prefix = _prefix(slots) if head.is_bare else ""
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, slot in slots.items():
        module, _, kind = slot.parameter.rpartition(".")
        layer: Any = head.get_submodule(module)
        theirs = name.removeprefix(prefix).removesuffix(".weight")
        if name in head.own_weights:
            tensors[BEGINS + name] = head.get_parameter(slot.parameter)
        elif kind == "weight" and hasattr(layer, "lora_A"):
            up = layer.lora_B[ADAPTER].weight
            tensors[BEGINS + theirs + DOWN] = layer.lora_A[ADAPTER].weight
            tensors[BEGINS + theirs + UP] = up[slot.first_row : slot.first_row + slot.shape[0]]
            ranks[theirs] = up.shape[1]
    stored = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    library().LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=sorted({name.rpartition(".")[2] for name in ranks}),
        rank_pattern={name: rank for name, rank in ranks.items() if rank != config.r},
        modules_to_save=sorted({name.partition(".")[0] for name in head.own_weights}) or None,
        base_model_name_or_path=str(head.files.path),
        inference_mode=True,
    ).save_pretrained(str(folder))


def load_lora(head: H, folder: str | Path) -> H:
    """Adds a stored adapter to the head, in place, to go on with or to merge: one that `save_lora`
    wrote, or peft for transformers' model. Raises ModelError, ValueError."""
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    _check_config(config, folder / CONFIG)
    parts, own = _read(head, folder / WEIGHTS)
    pairs = {name: _joined(head, name, found) for name, found in parts.items()}
    ranks = {name: len(down) for name, (down, _) in pairs.items()}
    _inject(head, ranks, config["r"], config["lora_alpha"], config.get("lora_dropout", 0.0))
    with torch.no_grad():
        for name, (down, up) in pairs.items():
            layer: Any = head.get_submodule(name)
            layer.lora_A[ADAPTER].weight.copy_(down)
            layer.lora_B[ADAPTER].weight.copy_(up)
        for name, tensor in own.items():
            head.get_parameter(name).copy_(tensor)
    return head


def merge_lora(head: H) -> H:
    """Adds the adapter to the weights, in place. The head is an ordinary one then, with all weights
    trainable. Raises ModelError, ValueError where there is no adapter."""
    if not head.adapted:
        raise ValueError("the head has no LoRA weights: add_lora(head) makes them")
    layers: dict[str, Any] = {
        name: module for name, module in head.named_modules() if hasattr(module, "lora_A")
    }
    if any(isinstance(layer.get_base_layer(), Packed) for layer in layers.values()):
        raise ModelError(
            "LoRA cannot be merged into quantized weights. Save the adapter with save_lora, load "
            "the head in floats, then load_lora and merge_lora."
        )
    for name, layer in layers.items():
        layer.merge()
        head.set_submodule(name, layer.get_base_layer())
    del head.peft_config
    head.adapted = False
    head.requires_grad_(True)
    return head


@dataclass(frozen=True, slots=True)
class _Part:
    """What a stored adapter has for some rows of a module: A (rank, width) and B (rows, rank)."""

    first_row: int
    down: Tensor
    up: Tensor | None

    def check(self, shape: tuple[int, ...], file: Path, name: str) -> None:
        """Raises ModelError where A and B do not belong to weights of the shape."""
        up = self.up
        rank = self.down.shape[0]
        if up is None or self.down.shape[1:] != shape[1:] or up.shape != (shape[0], rank):
            raise ModelError(
                f"{file}: {name} and its lora_B do not make a matrix of {shape}. Load the head "
                "that the adapter was trained with."
            )
        if not torch.isfinite(self.down.sum() + up.sum()):
            raise ModelError(f"{file}: {name} or its lora_B holds numbers that are not finite.")


def _read(head: Head, file: Path) -> tuple[dict[str, list[_Part]], dict[str, Tensor]]:
    """An adapter's matrices by the module that they belong to, and a classifier's own weights by
    parameter. Raises ModelError."""
    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read ({error}). Save the adapter again.") from None
    slots = slots_of(head)
    prefix = _prefix(slots)
    parts: dict[str, list[_Part]] = defaultdict(list)
    own: dict[str, Tensor] = {}
    strange = []
    for key, tensor in stored.items():
        if key.endswith(UP):
            continue  # comes with its A
        name = key.removeprefix(BEGINS)
        weight = name.removesuffix(DOWN) + ".weight" if name.endswith(DOWN) else name
        slot = slots.get(weight) or slots.get(prefix + weight)
        if slot is not None and name.endswith(DOWN):
            part = _Part(slot.first_row, tensor, stored.get(key.removesuffix(DOWN) + UP))
            part.check(slot.shape, file, name)
            parts[slot.parameter.rpartition(".")[0]].append(part)
        elif slot is not None and weight in head.own_weights and tensor.shape == slot.shape:
            own[slot.parameter] = tensor
        else:
            strange.append(name)
    if strange or not parts:
        raise ModelError(
            f"{file}: {some(strange) or 'what it holds'} has no place in this head. Load the head "
            "that the adapter was trained with."
        )
    return parts, own


def _prefix(slots: Mapping[str, WeightSlot]) -> str:
    """How the names of all but the head's tensors begin."""
    embeddings = next(
        name for name, slot in slots.items() if slot.parameter == "decoder.embed_tokens.weight"
    )
    return f"{embeddings.split('.')[0]}."


def _joined(head: Head, name: str, parts: list[_Part]) -> tuple[Tensor, Tensor]:
    """A and B of the whole module, of the sum of the ranks, or of one where all have the same A."""
    rows = cast(nn.Linear, head.get_submodule(name)).out_features
    shared = all(torch.equal(part.down, parts[0].down) for part in parts)
    down = parts[0].down if shared else torch.cat([part.down for part in parts])
    up = down.new_zeros(rows, len(down))
    first = 0
    for part in parts:
        assert part.up is not None
        rank = part.up.shape[1]
        columns = slice(0, rank) if shared else slice(first, first + rank)
        # The factor is alpha / rank, and the rank is another now.
        up[part.first_row : part.first_row + len(part.up), columns] = part.up * (len(down) / rank)
        first += rank
    return down, up


def _inject(head: Head, ranks: Mapping[str, int], rank: int, alpha: float, dropout: float) -> None:
    """ranks: of each module that is adapted; rank: of most. Raises ModelError, ValueError."""
    if head.adapted:
        raise ValueError("the head has LoRA weights already: merge_lora(head) comes first")
    peft = library()
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(ranks),
        rank_pattern={name: own for name, own in ranks.items() if own != rank},
    )
    with warnings.catch_warnings():
        if any(isinstance(head.get_submodule(name), Packed) for name in ranks):
            # peft does not know these modules. Its class for floats does for them.
            linear = importlib.import_module("peft.tuners.lora").Linear
            config._register_custom_module({Packed: linear})
            warnings.filterwarnings("ignore", "Unsupported layer type")
        peft.inject_adapter_in_model(config, head, ADAPTER)
    head.adapted = True
    for slot in head.own_weights.values():
        head.get_parameter(slot.parameter).requires_grad_(True)


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    """Raises ModelError for an adapter of another kind than B A with the factor alpha / rank."""
    plain = library().LoraConfig().to_dict()
    changed = [
        key
        for key, value in config.items()
        if key not in KNOWN_KEYS and value and value != plain.get(key)
    ]
    if config.get("peft_type") != "LORA" or changed:
        raise ModelError(
            f"{path}: fimls does not know such adapters ({', '.join(changed) or 'no LoRA'}). Merge "
            "it into the model with peft, and load that."
        )
    numbers = (config.get("r"), config.get("lora_alpha"), config.get("lora_dropout", 0.0))
    if not all(isinstance(number, int | float) for number in numbers):
        raise ModelError(f"{path} lacks r, lora_alpha or lora_dropout. Save the adapter again.")
