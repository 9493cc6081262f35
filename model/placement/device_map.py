"""Which place holds which part of a decoder: the caller's map, or accelerate's choice.

Parts are the embeddings, each layer, the last norm, and the head where it has weights of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from model.decoder.decoder import Decoder
from model.errors import ModelError
from model.machine import available_memory
from model.precision.devices import choose_device

DISK: Literal["disk"] = "disk"
CPU = torch.device("cpu")
Place = torch.device | Literal["disk"]
# Parts by their names ("layers.3"), or what begins like that ("layers"; "" is all) -> a device as
# torch names it, a GPU's number, or "disk".
GivenMap = Mapping[str, str | int | torch.device]
POSITIONS = "embed_positions"  # learned vectors are with the embeddings, wherever a map puts them


@dataclass(frozen=True, slots=True)
class Placement:
    """What a caller asks for.

    device_map: "auto" fills the GPUs first, each with its share, then the CPU's memory, then the
    disk. max_memory: how much "auto" may use of each for weights, in bytes or as "10GB": {0: ...,
    "cpu": ...}; KV caches come on top.
    offload_folder: where weights that are on the disk are kept in a folder of their own, which is
    deleted with the decoder; None is the system's folder for temporary files.
    """

    device_map: Literal["auto"] | GivenMap
    max_memory: Mapping[int | str, int | str] | None = None
    offload_folder: Path | None = None

    def __post_init__(self) -> None:
        is_map = isinstance(self.device_map, Mapping)
        if not is_map and self.device_map != "auto":
            raise ModelError(
                f"The device_map {self.device_map!r} is unknown. Use 'auto', or a map from parts "
                "of the model to devices."
            )
        if is_map and self.max_memory is not None:
            raise ModelError(
                "max_memory is for the device_map 'auto' alone. Leave it out where a map is given."
            )

    def places(self, decoder: Decoder, bits: Mapping[str, int]) -> dict[str, Place]:
        """The place of each part of a decoder of floats, which may be on the meta device. bits: 8
        or 4, of the weights that will have so few. Raises ModelError."""
        given = self.device_map
        if given == "auto":
            given = _chosen(decoder, self.max_memory, bits)
        return _resolved(given, parts_of(decoder))

    @property
    def main(self) -> torch.device:
        """The device that ids go to, as far as it is known without a decoder. Raises ModelError."""
        if self.device_map == "auto":
            return choose_device("auto")
        return main_device(map(_place, self.device_map.values()))


def accelerate() -> Any:
    """The package. Raises ModelError with the remedy."""
    try:
        return importlib.import_module("accelerate")
    except ImportError as error:
        raise ModelError(
            f"A device_map needs the package accelerate, which cannot be imported ({error}). "
            "Install it (pip install 'fimls[gpu]'), or name one device."
        ) from None


def parts_of(decoder: Decoder) -> list[str]:
    """The names of a decoder's parts, in the order in which they run."""
    layers = [f"layers.{i}" for i in range(decoder.config.num_layers)]
    head = [] if decoder.config.tie_embeddings else ["head"]
    return ["embed_tokens", *layers, "norm", *head]


def main_device(places: Iterable[Place]) -> torch.device:
    """The device that computes what is in the CPU's memory or on the disk: the first other device,
    or the CPU."""
    return next((p for p in places if p != DISK and p.type != "cpu"), CPU)


def _chosen(
    decoder: Decoder, max_memory: Mapping[int | str, int | str] | None, bits: Mapping[str, int]
) -> GivenMap:
    """accelerate's map. Raises ModelError."""
    library = accelerate()
    types = {8: torch.int8, 4: library.utils.CustomDtype.INT4}
    known = {
        "no_split_module_classes": [type(decoder.layers[0]).__name__],
        "special_dtypes": {name: types[count] for name, count in bits.items()},
    }
    try:
        limits = library.utils.get_max_memory(None if max_memory is None else dict(max_memory))
        free = available_memory()
        if max_memory is None and free is not None and "cpu" in limits:
            limits["cpu"] = min(limits["cpu"], free)  # what control groups leave of it
        limits = library.utils.get_balanced_memory(decoder, max_memory=limits, **known)
        chosen: GivenMap = library.infer_auto_device_map(decoder, max_memory=limits, **known)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"max_memory {max_memory} cannot be used ({error}). Give GPUs by number and 'cpu', "
            "each with its bytes or a size such as '10GB'."
        ) from None
    return chosen


def _resolved(given: GivenMap, parts: Sequence[str]) -> dict[str, Place]:
    """The place of each part by the longest name that is the part's or begins it. Raises
    ModelError."""
    places: dict[str, Place] = {}
    for part in parts:
        names = [name for name in given if _covers(name, part)]
        if not names:
            raise ModelError(
                f"The device_map has no place for {part}. Add it, or '' for all that is not named."
            )
        places[part] = _place(given[max(names, key=len)])
    for name in given:
        if name != POSITIONS and not any(_covers(name, part) for part in parts):
            raise ModelError(
                f"The device_map names {name!r}, which is no part of the model. Its parts are "
                f"{', '.join(parts)}; a layer stays whole."
            )
    return places


def _covers(name: str, part: str) -> bool:
    return name in ("", part) or part.startswith(f"{name}.")


def _place(value: str | int | torch.device) -> Place:
    """Raises ModelError for a device that is not there."""
    if value == DISK:
        return DISK
    try:
        device = torch.device(value)
        made = torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        first_line = str(error).splitlines()[0]
        raise ModelError(
            f"The device_map names the device {value!r}, which cannot be used ({first_line}). Use "
            "'cpu', 'disk', or a device that this machine has."
        ) from None
    return made.device if device.index is None else device  # "cuda" is "cuda:0"
