"""PlacedDecoder: a decoder whose parts are on several devices, or on the disk.

It runs layer by layer as every decoder does. accelerate's AlignDevicesHook brings a part's inputs
to its device, and, where its weights are kept elsewhere, the weights for as long as it runs.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.decoder.config import DecoderConfig
from model.decoder.decoder import Decoder
from model.decoder.factory import Embedding, Embeddings, Factory, Packed
from model.decoder.kv_cache import KVCache
from model.errors import ModelError
from model.placement.device_map import (
    CPU,
    DISK,
    Place,
    Placement,
    accelerate,
    main_device,
)
from model.placement.split_cache import SplitCache
from model.precision.bitsandbytes_linear import BitsFactory
from model.private_files import make_private_folder

ON_DISK = Path("/var/tmp")  # where it exists; /tmp is in memory on many systems
META = torch.device("meta")


class PlacedEmbedding(Embedding):
    """Embeddings that are also the head by being called, so that hooks hold there too."""

    def forward(self, x: Tensor) -> Tensor:
        """ids (...) -> (..., hidden), or states (..., hidden) -> logits (..., vocabulary)."""
        if x.is_floating_point():
            return F.linear(x, self.weight)
        return super().forward(x)

    def as_head(self, x: Tensor) -> Tensor:
        logits: Tensor = self(x)
        return logits


@dataclass(frozen=True)
class PlacedFactory(Factory):
    """Makes the modules of a placed decoder, without memory for their weights."""

    def embedding(self, vocabulary: int, hidden: int) -> Embeddings:
        return PlacedEmbedding(vocabulary, hidden, device=self.device, dtype=self.dtype)


@dataclass(frozen=True)
class PlacedBitsFactory(PlacedFactory, BitsFactory):
    """The same with bitsandbytes' matrices, which are packed on the factory's device."""


class PlacedDecoder(Decoder):
    """A new one has no memory for its weights. `allocate` takes it, a checkpoint fills it, and
    `connect` makes it run. It is not moved to other devices or types afterwards.

    places: of the parts. Weights whose layer computes elsewhere (on the disk, or in the CPU's
    memory beside a GPU) are on the meta device while the layer does not run, and are not trained.
    What a layer leaves (its keys and values, states, attention weights) is where it computes.
    """

    def __init__(
        self,
        config: DecoderConfig,
        dtype: torch.dtype,
        placement: Placement,
        kind: str | None = None,
    ) -> None:
        """kind: of the layers' matrices by bitsandbytes; None for floats. Raises ModelError."""
        # Matrices of few bits are packed on the CPU, which has no memory for the others either
        # until they are written to.
        factory = (
            PlacedFactory(META, dtype) if kind is None else PlacedBitsFactory(CPU, dtype, kind)
        )
        super().__init__(config, factory)
        self.requires_grad_(kind is None)
        packed = [name for name, module in self.named_modules() if isinstance(module, Packed)]
        bits = {f"{name}.weight": 8 if kind == "llm.int8" else 4 for name in packed}
        floats = Decoder(config, Factory(META, dtype)) if packed else self  # whose sizes are known
        self.places: Mapping[str, Place] = placement.places(floats, bits)
        self._nbytes = {part: _nbytes(floats, part, bits) for part in self.places}
        self._offload_folder = placement.offload_folder
        self._dtype = dtype
        self._main = main_device(self.places.values())
        self._offloaded: dict[str, Tensor] = {}
        for name in packed:
            part = ".".join(name.split(".")[:2])
            if self._is_offloaded(self.places[part]):
                raise ModelError(
                    f"{kind} weights are on the device that computes them, but {part} is on "
                    f"{self.places[part]}. Place it on a device that computes, or set the "
                    "quantization to 'none'."
                )

    @property
    def only_device(self) -> torch.device | None:
        """The device that has all parts, if there is one."""
        first = self.places["embed_tokens"]
        alone = first != DISK and all(place == first for place in self.places.values())
        return first if alone and isinstance(first, torch.device) else None

    @property
    def device(self) -> torch.device:
        """Where ids go to, and where states and logits come from."""
        return self._main

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def bytes_by_place(self) -> dict[Place, int]:
        """The memory of the weights in each place."""
        needed: defaultdict[Place, int] = defaultdict(int)
        for part, place in self.places.items():
            needed[place] += self._nbytes[part]
        return dict(needed)

    def allocate(self) -> None:
        """Takes the memory of the weights, which then hold whatever is there. Weights for the disk
        are in files that are mapped into memory.

        Raises ModelError where the disk has no room or cannot be written, RuntimeError where the
        memory of a device is too small.
        """
        on_disk = self.bytes_by_place().get(DISK)
        folder = None if on_disk is None else self._new_folder(on_disk)
        for part, place in self.places.items():
            if place == DISK:
                assert folder is not None
                make: Callable[[str, Tensor], Tensor] = partial(_mapped, folder / part)
            else:
                make = partial(_empty, place)
            self._take(part, make, trainable=not self._is_offloaded(place))
        if self.config.rope is None:
            old = self.embed_positions
            weights = torch.empty_like(old, device=self._device_of("embed_tokens"))
            self.embed_positions = nn.Parameter(weights, old.requires_grad)

    def _take(self, part: str, make: Callable[[str, Tensor], Tensor], *, trainable: bool) -> None:
        """Gives the parameters of a part the memory that `make` takes for each of them."""
        module = self.get_submodule(part)
        for name, parameter in list(module.named_parameters()):
            owner, _, last = name.rpartition(".")
            weights = nn.Parameter(make(name, parameter), trainable and parameter.requires_grad)
            module.get_submodule(owner).register_parameter(last, weights)

    def _new_folder(self, needed: int) -> Path:
        """A private folder with room for so many bytes, which goes with the decoder. Raises
        ModelError."""
        parent = self._offload_folder
        try:
            if parent is not None:
                make_private_folder(parent)
            elif "TMPDIR" not in os.environ and ON_DISK.is_dir():
                parent = ON_DISK
            folder = Path(tempfile.mkdtemp(prefix="fimls-offload-", dir=parent))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise ModelError(
                f"Weights cannot be written to {parent or tempfile.gettempdir()} "
                f"({error.strerror}). Name another offload_folder."
            ) from None
        if needed > free:
            raise ModelError(
                f"{needed / 1e9:.1f} GB of weights are to go to the disk, but {free / 1e9:.1f} GB "
                f"are free in {folder.parent}. Name an offload_folder on another disk, or place "
                "fewer layers there."
            )
        return folder

    def connect(self) -> None:
        """Puts accelerate's hooks in. Called once, when the weights are there."""
        library = accelerate()
        for part, place in self.places.items():
            module = self.get_submodule(part)
            weights = None
            if self._is_offloaded(place):
                weights = {name: p.data for name, p in module.named_parameters()}
                self._offloaded |= {f"{part}.{name}": held for name, held in weights.items()}
            hook = library.hooks.AlignDevicesHook(
                execution_device=self._device_of(part),
                offload=weights is not None,
                weights_map=weights,
                place_submodules=weights is not None,
            )
            if weights is None:
                module.to(self._device_of(part))  # matrices of few bits; others are there
            library.hooks.add_hook_to_module(module, hook)
            if not part.startswith("layers."):
                module.register_forward_hook(self._bring_back)

    def _bring_back(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.to(self._main)

    def stored(self, parameter: str) -> Tensor:
        """The content of a parameter, wherever it is kept."""
        held = self._offloaded.get(parameter)
        return self.get_parameter(parameter) if held is None else held

    def new_cache(self, capacity: int = 0) -> KVCache:
        devices = [self._device_of(f"layers.{i}") for i in range(self.config.num_layers)]
        if len(set(devices)) == 1:
            return KVCache(self.config, dtype=self.dtype, device=devices[0], capacity=capacity)
        return SplitCache(self.config, dtype=self.dtype, devices=devices, capacity=capacity)

    def _is_offloaded(self, place: Place) -> bool:
        """Whether weights in the place are brought to the main device each time."""
        return place == DISK or (place.type == "cpu" and self._main.type != "cpu")

    def _device_of(self, part: str) -> torch.device:
        """The device that computes the part."""
        place = self.places[part]
        return self._main if place == DISK or self._is_offloaded(place) else place

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PlacedDecoder:
        """What `to`, `half` and the like come down to. Raises RuntimeError."""
        raise RuntimeError(
            "a decoder with a device_map cannot be moved or cast: load it with another map or dtype"
        )


def _nbytes(decoder: Decoder, part: str, bits: Mapping[str, int]) -> int:
    """The memory of a part. bits: of the weights that will have fewer than they have."""
    weights = decoder.get_submodule(part).named_parameters(part)
    return sum(w.numel() * bits.get(name, 8 * w.itemsize) // 8 for name, w in weights)


def _empty(device: torch.device, name: str, like: Tensor) -> Tensor:
    return torch.empty_like(like, device=device)


def _mapped(prefix: Path, name: str, like: Tensor) -> Tensor:
    """A tensor whose content is a file's, which is made."""
    path = prefix.with_name(f"{prefix.name}.{name}")
    flat = torch.from_file(str(path), shared=True, size=like.numel(), dtype=like.dtype)
    return flat.view(like.shape)
