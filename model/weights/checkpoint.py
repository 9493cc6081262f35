"""Fills a decoder with the tensors of a model's files, whatever their format.

Every tensor of the checkpoint is used exactly once, or the error names it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from model.decoder.config import DecoderConfig
from model.decoder.decoder import Decoder
from model.decoder.factory import Factory, Packed
from model.errors import ModelError
from model.families.weight_table import WeightSlot
from model.ggml import Blocks
from model.weights.files import INT8_ROWS, ModelFiles

HEAD = "lm_head.weight"  # some tools write it for tied models too, as a copy of the embeddings
MAX_WEIGHT = 1e6  # a flipped bit of an exponent gives more
NAMED = 4  # of the tensors that are missing


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's configuration, and the tensors that belong to it."""

    folder: ModelFiles
    config: DecoderConfig
    table: Mapping[str, WeightSlot]  # by the tensors' names
    files: Sequence[Path]

    @classmethod
    def open(cls, folder: ModelFiles) -> Checkpoint:
        """Reads config.json and finds the weights. Raises ModelError."""
        config, table = folder.recipe()
        if folder.quantization not in ("", INT8_ROWS):
            raise ModelError(
                f"{folder.path} holds weights quantized with {folder.quantization!r}, which fimls "
                "does not read. Use the model's float16 or bfloat16 weights."
            )
        return cls(folder, config, table, tuple(folder.weight_files))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the stored tensors, in the order of `tensors`. Raises ModelError."""
        return self.folder.tensor_shapes(self.table, self.config)

    @property
    def block_kinds(self) -> dict[str, str]:
        """The kinds of the tensors that the files hold in blocks, of those that are matrices of the
        decoder, by name. Raises ModelError."""
        return self.folder.block_kinds(self.table, self.config)

    @property
    def parameters(self) -> int:
        return sum(math.prod(slot.shape) for slot in self.table.values())

    def full_name(self, stored: str) -> str:
        """A tensor's name in the table. Without its head, a model may be stored without the names'
        first part too."""
        embeddings = next(n for n, s in self.table.items() if s.parameter == "embed_tokens.weight")
        longer = f"{embeddings.split('.')[0]}.{stored}"
        return longer if longer in self.table else stored

    def tensors(self) -> Iterator[tuple[Path, str, Tensor]]:
        """The tensors, each with its file; what is quantized, as floats. Raises ModelError."""
        return self.folder.tensors(self.table, self.config)

    def stored_tensors(self) -> Iterator[tuple[Path, str, Tensor | Blocks]]:
        """As `tensors`, but what a file holds in blocks stays so. Raises ModelError."""
        return self.folder.stored_tensors(self.table, self.config)

    def fill(self, decoder: Decoder, factory: Factory, progress: Callable[[float], None]) -> None:
        """Writes every tensor to its place in the decoder, which the factory has made: in blocks as
        a file holds it, where the place takes those, else as floats.

        No more than one file is in memory beside the decoder. progress is told the share of tensors
        written, 0 to 1. Raises ModelError.
        """
        places = Places(decoder, self.table.values(), factory.finish)
        waiting = dict(self.table)
        head_copies = []
        for file, name, tensor in self.stored_tensors():
            if name == HEAD and self.config.tie_embeddings:
                head_copies.append(tensor.floats() if isinstance(tensor, Blocks) else tensor)
                continue
            if name not in waiting:
                raise surplus(name, file, again=name in self.table)
            slot = waiting.pop(name)
            if isinstance(tensor, Blocks) and not places.takes(slot, tensor.kind):
                tensor = tensor.floats()
            check(slot, tensor, name, file, decoder.dtype)
            places.write(slot, tensor)
            progress(1 - len(waiting) / len(self.table))
        if waiting:
            raise ModelError(
                f"{self.folder.path} lacks the tensors {some(waiting)}. Download the model again."
            )
        self.check_copies(decoder, head_copies)

    def check_copies(self, decoder: Decoder, head_copies: Iterable[Tensor]) -> None:
        """Raises ModelError where a copy of the embeddings that serves as the head differs."""
        if not all(decoder.embed_tokens.holds(copy) for copy in head_copies):
            raise ModelError(
                f"{self.folder.path}: {HEAD} differs from the embeddings, to which config.json "
                "ties it. Set tie_word_embeddings to false there, or download the model again."
            )


def check(
    slot: WeightSlot,
    tensor: Tensor | Blocks,
    name: str,
    file: Path,
    dtype: torch.dtype | None = None,
) -> None:
    """Raises ModelError for a tensor that cannot be the slot's weights. dtype: of the decoder."""
    if tuple(tensor.shape) != slot.shape:
        raise ModelError(
            f"{file}: {name} is {tuple(tensor.shape)}, but config.json asks for {slot.shape}. "
            "Check that weights and config.json belong together."
        )
    if isinstance(tensor, Blocks):
        if not tensor.is_finite():
            raise _not_finite(name, file)
        return
    if not tensor.is_floating_point():
        raise ModelError(
            f"{file}: {name} is {tensor.dtype}, which is no weight by itself. Download the model "
            "again."
        )
    # As fast as memory in each type, and NaN where one number is; a sum of halves is far slower.
    ends = [float(end) for end in (tensor if tensor.itemsize > 1 else tensor.float()).aminmax()]
    if not all(map(math.isfinite, ends)):
        raise _not_finite(name, file)
    largest = max(map(abs, ends))
    if largest > MAX_WEIGHT:
        raise ModelError(
            f"{file}: {name} holds {largest:.3g}, which no training gives: the file is damaged. "
            "Download the model again."
        )
    if dtype == torch.float16 and largest > torch.finfo(dtype).max:
        raise ModelError(
            f"{file}: {name} holds {largest:.3g}, which float16 has no room for. Set the dtype to "
            "'bfloat16' or 'float32'."
        )


def _not_finite(name: str, file: Path) -> ModelError:
    return ModelError(
        f"{file}: {name} holds numbers that are not finite. Download the model again."
    )


class Places:
    """The places of a checkpoint's tensors in a module. `finish` is called with each submodule that
    has all of its tensors."""

    def __init__(
        self, root: nn.Module, slots: Iterable[WeightSlot], finish: Callable[[nn.Module], None]
    ) -> None:
        self._root = root
        self._finish = finish
        self._unfinished = Counter(slot.parameter.rpartition(".")[0] for slot in slots)

    def takes(self, slot: WeightSlot, kind: str) -> bool:
        """Whether the slot's place takes blocks of that kind."""
        module, _, name = slot.parameter.rpartition(".")
        owner = self._root.get_submodule(module)
        return isinstance(owner, Packed) and name == "weight" and owner.takes_blocks(kind)

    def write(self, slot: WeightSlot, tensor: Tensor | Blocks) -> None:
        """Writes a tensor to its rows. A vector becomes one row of a matrix."""
        module, _, name = slot.parameter.rpartition(".")
        owner = self._root.get_submodule(module)
        first = slot.first_row
        if isinstance(tensor, Blocks):
            assert isinstance(owner, Packed)
            owner.fill_blocks(first, tensor.kind, tensor.raw)
        elif isinstance(owner, Packed) and name == "weight":
            owner.fill(first, tensor)
        else:
            parameter = owner.get_parameter(name)
            row = tensor[None] if parameter.dim() > tensor.dim() else tensor
            parameter[first : first + len(row)] = row
        self._unfinished[module] -= 1
        if not self._unfinished[module]:
            self._finish(owner)


def surplus(name: str, file: Path, *, again: bool) -> ModelError:
    """The error for a tensor that has no place, or whose place is taken."""
    if again:
        return ModelError(f"{file}: {name} comes a second time. Download the model again.")
    return ModelError(
        f"{file}: {name} has no place in the decoder that config.json describes. "
        "Check that weights and config.json belong together."
    )


def some(names: Iterable[str]) -> str:
    """The names, or the first of many and how many more there are."""
    names = list(names)
    first = ", ".join(names[:NAMED])
    if len(names) <= NAMED:
        return first
    return f"{first} and {len(names) - NAMED} more"
