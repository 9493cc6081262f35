"""PreparedWeights: the file of a decoder's weights in the form in which they are multiplied.

The form of the file is safetensors', whose library maps it. That library leaves no say over where
a tensor begins, so the file is written here: kernels read whole lines of the CPU's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.cpu.blocks.decoder_step import add_block_step, is_of_blocks
from model.cpu.blocks.linear import BlockFactory, BlockLinear
from model.cpu.quantized_linear import TensorSpec
from model.decoder.decoder import Decoder
from model.prepared.files import MODEL, file_name, prepared_folder, prune
from model.private_files import (
    is_private_file,
    is_private_folder,
    new_private_file,
    own_private_folder,
)
from model.weights.files import ModelFiles

log = logging.getLogger(__name__)
PROGRAM = Path(__file__).parent.parent
SUMS = "sums"
ALIGNMENT = 64  # bytes: a line of the CPU's cache
PIECE = 4 * 2**20  # bytes that are written before others have their turn
SPARE_BYTES = 2 * 2**30  # of the disk, which stay free
TYPES = {torch.float32: "F32", torch.int32: "I32", torch.int8: "I8", torch.uint8: "U8"}

Value = TypeVar("Value")


class Stopped(Exception):
    """The process ends before the file is whole."""


@dataclass(slots=True)
class PreparedWeights:
    """The prepared file of one model for one set of kernels, whether it exists or not.

    restored: the decoder's weights are those of the file.
    """

    path: Path
    cache_dir: Path
    model: Path
    restored: bool = False

    @classmethod
    def of(cls, folder: ModelFiles, factory: BlockFactory, cache_dir: Path) -> PreparedWeights:
        model = folder.path.absolute()
        origin = (folder.identity, program_digest(), factory.scheme)
        key = hashlib.sha256(repr(origin).encode()).hexdigest()[:16]
        return cls(prepared_folder(cache_dir) / file_name(model, key), cache_dir, model)

    def restore(self, decoder: Decoder) -> bool:
        """Gives a new decoder the weights of the file; False where there is none, or none that is
        whole. Such a one is deleted."""
        try:
            if not is_private_folder(self.path.parent) or not is_private_file(self.path):
                return False
        except OSError:
            return False
        try:
            tensors = self._read(decoder)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is not used (%s); it will be written again", self.path, error)
            with contextlib.suppress(OSError):
                self.path.unlink()
            return False
        give(decoder, tensors)
        with contextlib.suppress(OSError):  # another process may have deleted it meanwhile
            os.utime(self.path)
        self.restored = True
        return True

    def take_over(self, decoder: Decoder) -> Iterator[None]:
        """Gives a decoder of blocks that runs the weights of the file in place of those that it was
        filled with, whose memory is free then. For the thread that runs it, in one stage."""
        filled = {name: tensor.detach() for name, tensor in tensors_of(decoder).items()}
        if is_of_blocks(decoder) and self.restore(decoder) and decoder.step is not None:
            try:  # the step that it has reads weights by their addresses
                add_block_step(decoder, self.cache_dir)
            except BaseException:
                give(decoder, filled)
                raise
        yield

    def prune(self) -> None:
        """Deletes what other files are of no use any longer."""
        prune(self.cache_dir, self.path, self.model)

    def _read(self, decoder: Decoder) -> dict[str, Tensor]:
        """The tensors of the file, mapped. Raises ValueError where they are not those expected."""
        with safe_open(self.path, framework="pt") as file:
            sums = json.loads(file.metadata()[SUMS])
            specs = specs_of(decoder, file.keys())
            if set(file.keys()) != specs.keys():
                raise ValueError("it has other tensors than the model")
            tensors = {name: file.get_tensor(name) for name in specs}
        for name, tensor in tensors.items():
            if (tuple(tensor.shape), tensor.dtype) != specs[name]:
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}")
            if sum_of(tensor) != sums[name]:
                raise ValueError(f"{name} is not as it was written")
        return tensors

    def write(self, decoder: Decoder, let_others: Callable[[], None]) -> None:
        """Writes the file, from a decoder that is filled.

        let_others is called before each piece of work, and may wait, or raise to give the file up.
        Raises OSError.
        """
        tensors = tensors_of(decoder)
        size = sum(tensor.nbytes for tensor in tensors.values())
        own_private_folder(self.path.parent)
        self.prune()  # first: the new file may need their place
        free = shutil.disk_usage(self.path.parent).free
        if free < size + SPARE_BYTES:
            log.info(
                "the weights are not prepared for the next start: %.1f GB of the disk are free, "
                "and %.1f GB of them stay so",
                free / 1e9,
                SPARE_BYTES / 1e9,
            )
            return
        header = header_of(tensors, self.model, let_others)
        # Nothing is flushed to the disk itself: after a power cut the sums tell what is missing.
        with new_private_file(self.path) as partial, partial.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for tensor in tensors.values():
                content = tensor.detach().contiguous().numpy().data.cast("B")
                for start in range(0, len(content), PIECE):
                    let_others()
                    file.write(content[start : start + PIECE])


def header_of(tensors: Mapping[str, Tensor], model: Path, let_others: Callable[[], None]) -> bytes:
    """The header of a safetensors file: each tensor's type, shape and place, in this order without
    gaps, and as metadata the model's path and the tensors' sums."""
    sums = {}
    for name, tensor in tensors.items():
        let_others()
        sums[name] = sum_of(tensor)
    header: dict[str, object] = {"__metadata__": {MODEL: str(model), SUMS: json.dumps(sums)}}
    end = 0
    for name, tensor in tensors.items():
        start = end
        end += tensor.nbytes
        header[name] = {
            "dtype": TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header).encode()
    return encoded + b" " * (-(len(encoded) + 8) % ALIGNMENT)


def sum_of(tensor: Tensor) -> int:
    """The sum of a tensor's bytes, eight at once: as fast as memory, and different after any small
    damage. What reads the tensor anyway is not slower for it."""
    content = tensor.detach().contiguous().view(-1).view(torch.uint8)
    whole = len(content) // 8 * 8
    return int(content[:whole].view(torch.int64).sum()) + int(content[whole:].sum())


def matrices_of(decoder: Decoder) -> Iterator[tuple[str, BlockLinear]]:
    """The modules whose matrices are not parameters, by their names."""
    for name, module in decoder.named_modules():
        if isinstance(module, BlockLinear):
            yield name, module


def give(decoder: Decoder, tensors: Mapping[str, Tensor]) -> None:
    """Gives a decoder the tensors, which are named and shaped as those of `tensors_of`."""
    for name, module in matrices_of(decoder):
        module.restore(part_of(tensors, name))
    for name, parameter in decoder.named_parameters():
        parameter.data = tensors[name]


def part_of(named: Mapping[str, Value], module: str) -> dict[str, Value]:
    """What belongs to a module, by the names that it has there."""
    start = f"{module}."
    return {
        name.removeprefix(start): value for name, value in named.items() if name.startswith(start)
    }


def specs_of(decoder: Decoder, stored: Iterable[str]) -> dict[str, TensorSpec]:
    """The shape and type of each tensor of `tensors_of`, for a decoder that is not filled.

    stored: the names in the file, which say in which formats a matrix is. Raises ValueError where
    they make up none.
    """
    specs: dict[str, TensorSpec] = {}
    names = dict.fromkeys(stored)
    for name, module in matrices_of(decoder):
        own = module.specs_of(part_of(names, name))
        specs |= {f"{name}.{key}": spec for key, spec in own.items()}
    for name, parameter in decoder.named_parameters():
        specs[name] = tuple(parameter.shape), parameter.dtype
    return specs


def tensors_of(decoder: Decoder) -> dict[str, Tensor]:
    """All weights of a decoder, as they are after loading, in the order of the file: there matrices
    begin at multiples of ALIGNMENT, as the file's header ends at one."""
    tensors: dict[str, Tensor] = {}
    for name, module in matrices_of(decoder):
        tensors |= {f"{name}.{key}": tensor for key, tensor in module.finished.items()}
    tensors |= dict(decoder.named_parameters())
    # safetensors allows no gaps: what fills no whole lines comes last.
    return dict(sorted(tensors.items(), key=lambda each: each[1].nbytes % ALIGNMENT != 0))


@cache
def program_digest() -> str:
    """Changes with any source that weights go through."""
    digest = hashlib.sha256()
    for source in sorted(PROGRAM.rglob("*.py")):
        digest.update(f"{source.relative_to(PROGRAM)}\n".encode() + source.read_bytes())
    return digest.hexdigest()
