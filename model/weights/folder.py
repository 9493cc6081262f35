"""From a model's name to its folder, checked as far as that is possible without torch."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from model.catalogue.entries import find_entry
from model.catalogue.installed import is_gguf, locate
from model.decoder.config import DecoderConfig
from model.errors import ModelError
from model.families.registry import FAMILIES
from model.families.weight_table import WeightSlot
from model.regular_files import open_regular, read_text, reason
from model.tokenizer import Tokenizer
from model.weights.files import ATTRIBUTION, BUNDLED, INT8_ROWS, ModelFiles
from model.weights.gguf.model import GgufModel
from model.weights.preferences import Preferences, known_preferences, read_preferences

if TYPE_CHECKING:
    from torch import Tensor

TOKENIZER = "tokenizer.json"
PREFERENCES = "fimls.json"
SCALE = "_scale"  # ends the name of the scales of int8 rows
PICKLED = {".bin", ".pt", ".pth", ".ckpt"}
MAX_HEADER = 2**24  # bytes; a large model's has 100 kB


@dataclass(frozen=True)
class ModelFolder(ModelFiles):
    """A folder with config.json, tokenizer.json and safetensors, as on the Hugging Face hub."""

    path: Path
    config: Mapping[str, Any]

    @property
    def preferences(self) -> Preferences:
        """The content of fimls.json beside the weights; without one, what the catalogue knows.

        Raises ModelError.
        """
        path = self.path / PREFERENCES
        if not path.exists():
            return known_preferences(self.path)
        return read_preferences(read_json(path), path)

    @property
    def weight_files(self) -> list[Path]:
        """The safetensors files in a fixed order.

        Raises ModelError when there are none, when one is missing or when the index is wrong.
        """
        index = self.path / "model.safetensors.index.json"
        if index.exists():
            files = [self.path / name for name in _names_in(index)]
        else:
            files = sorted(self.path.glob("*.safetensors"))
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelError(f"{self.path} lacks {', '.join(missing)}. Download the model again.")
        if not files:
            raise _without_weights(self.path)
        return files

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight by name, from the files' headers alone, in the order of files
        and names. The scales of int8 rows are left out.

        Raises ModelError.
        """
        found: dict[str, tuple[int, ...]] = {}
        for file in self.weight_files:
            found |= _header(file)
        scales = {name + SCALE for name in found}
        return {name: shape for name, shape in found.items() if name not in scales}

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.shapes.values()))

    def tensor_shapes(
        self, table: Mapping[str, WeightSlot], config: DecoderConfig
    ) -> dict[str, tuple[int, ...]]:
        return self.shapes

    def tensors(
        self, table: Mapping[str, WeightSlot], config: DecoderConfig
    ) -> Iterator[tuple[Path, str, Tensor]]:
        from model.weights.tensors import safetensors_tensors

        return safetensors_tensors(self.weight_files, self.quantization == INT8_ROWS)

    @property
    def files(self) -> list[Path]:
        return [self.path / "config.json", self.path / TOKENIZER, *self.weight_files]

    def load_tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(self.path / TOKENIZER)

    def tokenizer_json(self) -> str:
        return read_text(self.path / TOKENIZER)


def _names_in(index: Path) -> list[str]:
    """The files that an index of shards names."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} has no weight_map. Download the model again.")
    names = sorted(set(map(str, weight_map.values())))
    if any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise ModelError(
            f"{index} names files that are not safetensors beside it. Download the model again."
        )
    return names


def _without_weights(folder: Path) -> ModelError:
    files = [file for file in folder.iterdir() if file.name != ATTRIBUTION]
    pickled = sorted(file.name for file in files if file.suffix in PICKLED)
    if not pickled:
        return ModelError(f"{folder} has no *.safetensors. Download the model again.")
    return ModelError(
        f"{folder} has only pickled weights ({', '.join(pickled)}), which could run code when "
        "loaded. Use the model's safetensors, or convert it with transformers' save_pretrained."
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelError."""
    try:
        value = json.loads(read_text(path))
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing. Point the model setting at a whole model folder."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} cannot be read ({reason(error)}). Download the model again."
        ) from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object. Download the model again.")
    return value


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a safetensors file's tensors by name, sorted.

    Such a file begins with the length of its header, 8 bytes little-endian, and the header as JSON.
    """
    try:
        with os.fdopen(open_regular(file), "rb") as raw:
            header = json.loads(raw.read(header_length(raw)))
        shapes = {}
        for name, entry in sorted(header.items()):
            if name != "__metadata__":
                shapes[name] = tuple(entry["shape"])
        if not shapes or any(type(size) is not int for shape in shapes.values() for size in shape):
            raise ValueError("its header lists no tensors")
        return shapes
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read ({reason(error)}). Download it again.") from None


def header_length(raw: BinaryIO) -> int:
    """Reads the length of a safetensors file's header. Raises ValueError for one that no model has:
    it would fill the memory."""
    length = int.from_bytes(raw.read(8), "little")
    if length > MAX_HEADER:
        raise ValueError(f"its header of {length:,} bytes is longer than any model's")
    return length


def find_path(name: str | Path) -> Path:
    """'bundled', a path, or a name of the catalogue or the hub that is on the disk -> its path.
    Raises ModelError."""
    if str(name) == "bundled":
        return BUNDLED
    is_entry = isinstance(name, str) and find_entry(name) is not None
    try:
        path = Path(name).expanduser()
        if not is_entry and path.exists():
            return path
    except (OSError, ValueError, RuntimeError):  # RuntimeError: ~ of an unknown user
        pass
    if isinstance(name, str) and (here := locate(name)) is not None:
        return here
    if is_entry:
        raise ModelError(f"The model {name} is not on this disk. `fimls pull {name}` fetches it.")
    hint = ""
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:[^/]+)?", str(name), re.ASCII):
        hint = f" `fimls pull {name}` fetches one from the Hugging Face hub."
    raise ModelError(
        f"There is no model folder {name}. Use 'bundled', a name that `fimls models` lists, or the "
        f"path of a downloaded model.{hint}"
    )


def find_model(name: str | Path, *, to_run: bool = True) -> ModelFiles:
    """'bundled', the path of a folder or of a GGUF file, or the name of a model that is on the disk
    -> ModelFiles. Raises ModelError.

    to_run False: only the tokenizer and the config are wanted, for a model that runs elsewhere.
    """
    path = find_path(name)
    if path.is_dir():
        return _open_folder(path, to_run=to_run)
    if not is_gguf(path):
        raise ModelError(
            f"There is no model folder {path}, and it is no whole GGUF file. Point the model "
            "setting at one, or download the file again."
        )
    return GgufModel.open(path)


def _open_folder(path: Path, *, to_run: bool) -> ModelFolder:
    if not any(path.iterdir()):
        raise ModelError(f"The model folder {path} is empty. Download the model into it.")
    folder = ModelFolder(path, read_json(path / "config.json"))
    native = ", ".join(FAMILIES)
    if folder.model_type == "stablelm_epoch":
        raise ModelError(
            f"{path}/config.json is of the first StableLM and Stable Code models (model_type "
            "'stablelm_epoch'). Set its model_type to 'stablelm' and remove auto_map: the weights "
            "are the same."
        )
    if "auto_map" in folder.config:
        raise ModelError(
            f"{path}/config.json asks to run code of its own (auto_map), which fimls never does. "
            f"Use a checkpoint in one of the native architectures: {native}."
        )
    if to_run and not folder.is_native and find_spec("transformers") is None:
        raise ModelError(
            f"{path}/config.json has the model_type {folder.model_type!r}, which fimls does not "
            f"run. It runs {native}; others run through transformers, slower: "
            "pip install 'fimls[hf]'."
        )
    return folder
