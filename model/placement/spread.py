"""Spread: a decoder that is not whole on one device, as load_model and the heads are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from model.decoder.config import DecoderConfig
from model.decoder.decoder import Decoder
from model.decoder.factory import Factory
from model.errors import ModelError
from model.families.weight_table import WeightSlot
from model.placement.device_map import DISK, GivenMap, Placement
from model.placement.placed_decoder import PlacedDecoder
from model.placement.shares import Share, SharedCheckpoint
from model.placement.tensor_parallel import ParallelDecoder
from model.precision.devices import choose_device, choose_dtype, free_memory
from model.precision.quantization import Needs, named
from model.weights.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Spread:
    """device_map, max_memory, offload_folder: see Placement. tensor_parallel: the processes that
    share a decoder (see tensor_parallel); each of them loads the same model to a device of its own.
    """

    device_map: Literal["auto"] | GivenMap | None = None
    max_memory: Mapping[int | str, int | str] | None = None
    offload_folder: str | Path | None = None
    tensor_parallel: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if self.device_map is None and (self.max_memory or self.offload_folder):
            raise ModelError(
                "max_memory and offload_folder go with a device_map. Set device_map to 'auto'."
            )
        if self.device_map is not None and self.tensor_parallel is not None:
            raise ModelError(
                "A decoder is either shared by processes or spread by a device_map. Leave out "
                "tensor_parallel or device_map."
            )

    def open(
        self,
        checkpoint: Checkpoint | None,
        config: DecoderConfig | None,
        device: str,
        dtype: str,
        quantization: str | None,
    ) -> tuple[Checkpoint, Decoder] | str:
        """The checkpoint as this process reads it, and a decoder without weights for it; or the
        name of the one device that is to have all of the decoder.

        checkpoint, config: None for an architecture that is not native. config: of the decoder,
        which may lack the checkpoint's head. The others: load_model's arguments. Raises ModelError.
        """
        if self.device_map is None and self.tensor_parallel is None:
            return device
        if checkpoint is None or config is None:
            raise ModelError(
                "A model that is not of a native architecture is whole on one device. Leave out "
                "device_map and tensor_parallel."
            )
        if self.tensor_parallel is not None:
            if quantization not in (None, "none", "auto"):
                raise ModelError(
                    f"{quantization} weights are not shared by processes. Leave out "
                    "tensor_parallel, or set the quantization to 'none'."
                )
            return _shared(checkpoint, config, self.tensor_parallel, device, dtype)
        assert self.device_map is not None
        if device != "auto":
            raise ModelError(
                f"The device_map says where the model is, and the device {device!r} too. Leave out "
                "one of them."
            )
        folder = None if self.offload_folder is None else Path(self.offload_folder)
        placement = Placement(self.device_map, self.max_memory, folder)
        chosen = choose_dtype(dtype, placement.main)
        kind = _kind(quantization, dtype, placement.main)
        decoder = _placed(str(checkpoint.folder.path), config, placement, chosen, kind)
        return decoder if isinstance(decoder, str) else (checkpoint, decoder)


def connect(decoder: Decoder, drawn: Iterable[Tensor] = ()) -> None:
    """Makes a decoder of Spread.open ready to run, when its weights are there. Does nothing for
    others. drawn: those that were drawn at random."""
    if isinstance(decoder, PlacedDecoder):
        decoder.connect()
    elif isinstance(decoder, ParallelDecoder):
        decoder.agree(drawn)


def whole_config(decoder: Decoder) -> DecoderConfig:
    """Of the decoder that the processes share, or of any other."""
    return decoder.share.config if isinstance(decoder, ParallelDecoder) else decoder.config


def weights_of(decoder: Decoder, slot: WeightSlot) -> Tensor:
    """What a slot of the whole decoder holds. All processes that share the decoder ask for the
    same."""
    if isinstance(decoder, ParallelDecoder):
        return decoder.gather(slot)
    if isinstance(decoder, PlacedDecoder):
        return slot.read(decoder.stored(slot.parameter))
    return slot.read(decoder.get_parameter(slot.parameter))


def check_changeable(decoder: Decoder) -> None:
    """Raises ModelError for a decoder whose layers or embeddings cannot be replaced by others."""
    if isinstance(decoder, ParallelDecoder):
        raise ModelError(
            "A decoder that processes share keeps its layers and embeddings as they are. Leave out "
            "tensor_parallel to change them."
        )
    if any(parameter.is_meta for parameter in decoder.parameters()):
        raise ModelError(
            "Weights on the disk, or in the CPU's memory beside a GPU, cannot be replaced. Give a "
            "device_map without them to change layers or embeddings."
        )


def is_first(decoder: Decoder) -> bool:
    """Whether this process is the one that writes files for all that share the decoder."""
    return not isinstance(decoder, ParallelDecoder) or decoder.share.rank == 0


def _shared(
    checkpoint: Checkpoint, config: DecoderConfig, group: dist.ProcessGroup, device: str, dtype: str
) -> tuple[Checkpoint, Decoder]:
    where = choose_device(device)
    chosen = choose_dtype(dtype, where)
    share = Share.of(config, group)
    own = SharedCheckpoint.of(checkpoint, Share.of(checkpoint.config, group))
    _check_memory(str(checkpoint.folder.path), own.parameters * chosen.itemsize, where)
    return own, ParallelDecoder(share, Factory(where, chosen), group)


def _kind(quantization: str | None, dtype: str, device: torch.device) -> str | None:
    """bitsandbytes' kind of that name; None for floats, "auto" too. Raises ModelError."""
    if quantization == "auto":
        return None
    kind = named(quantization, dtype, device, Needs("", {}))
    if kind == "int8":
        raise ModelError(
            "fimls' own int8 weights are whole on a CPU. Leave out device_map, or set the "
            "quantization to 'llm.int8'."
        )
    return kind


def _placed(
    name: str,
    config: DecoderConfig,
    placement: Placement,
    dtype: torch.dtype,
    kind: str | None,
) -> PlacedDecoder | str:
    decoder = PlacedDecoder(config, dtype, placement, kind)
    if decoder.only_device is not None:
        return str(decoder.only_device)
    for place, needed in decoder.bytes_by_place().items():
        if place != DISK:
            _check_memory(name, needed, place)
    try:
        decoder.allocate()
    except RuntimeError as error:
        first_line = str(error).splitlines()[0]
        raise ModelError(
            f"{name} does not fit into the memory of its devices ({first_line}). Place more of it "
            "on 'disk'."
        ) from None
    return decoder


def _check_memory(name: str, needed: int, device: torch.device) -> None:
    free = free_memory(device)
    if free is not None and needed > free:
        raise ModelError(
            f"{name} needs {needed / 1e9:.1f} GB of the memory of {device}, of which "
            f"{free / 1e9:.1f} GB are free. Place more of it on other devices or on 'disk', or use "
            "a smaller model."
        )
