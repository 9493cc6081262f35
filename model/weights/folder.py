"""From a model's name to its folder, checked as far as that is possible without torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.errors import ModelError
from model.families.hf_config import ConfigReader, max_positions
from model.families.registry import FAMILIES

BUNDLED = Path(__file__).parent.parent / "bundled"
ATTRIBUTION = "attribution.bin"  # beside the weights: see fim/attribution.py
COPY_WEIGHTS = {"bias", "length", "agreement", "confidence"}
LARGEST_WEIGHT = 1e6  # of copying; JSON as Python reads it may also hold NaN and Infinity
MAX_HEADER = 100 * 2**20  # bytes; safetensors' own limit


@dataclass(frozen=True, slots=True)
class Preferences:
    """What was measured to suit one model."""

    layout: Literal["psm", "spm", "anchored"] | None = None  # None: the format's own preference
    min_confidence: float = 0.0  # suggestions below are not worth showing
    time_budget: float | None = (
        None  # milliseconds until an answer is worth showing in part; None if unknown
    )
    heal_tokens: bool = (
        False  # the last piece of the prefix is spelled anew by the model: see fim.prompt
    )
    copying: Mapping[str, float] | None = (
        None  # weights for what follows equal tokens: model.copying
    )
    languages: tuple[str, ...] = ()  # what it was trained on, by LSP's identifiers; () if unknown
    other_languages: str = ""  # the model to use for the rest


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model on disk: config.json, tokenizer.json and safetensors, as on the Hugging Face hub."""

    path: Path
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def is_bundled(self) -> bool:
        return self.path == BUNDLED

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type"))

    @property
    def max_positions(self) -> int:
        """Prompt and completion together, in tokens."""
        return max_positions(ConfigReader(self.config))

    @property
    def attribution(self) -> Path:
        """Its own attribution file, or the bundled model's: what is found there holds whoever wrote
        the text."""
        own = self.path / ATTRIBUTION
        return own if own.exists() else BUNDLED / ATTRIBUTION

    @property
    def preferences(self) -> Preferences:
        """What fimls.json beside the weights says; nothing where there is none. Raises
        ModelError."""
        path = self.path / "fimls.json"
        raw = read_json(path) if path.exists() else {}
        layout, confidence, languages = (
            raw.get("layout"),
            raw.get("min_confidence", 0.0),
            raw.get("languages", []),
        )
        heal, budget = raw.get("heal_tokens", False), raw.get("time_budget")
        if layout not in (None, "psm", "spm", "anchored"):
            raise ModelError(
                f"{path}: layout is {layout!r}. It must be 'psm', 'spm' or 'anchored'; correct or "
                "delete the file."
            )
        if not isinstance(confidence, int | float) or not 0 <= confidence <= 1:
            raise ModelError(
                f"{path}: min_confidence is {confidence!r}. It must be from 0 to 1; correct the "
                "file."
            )
        if budget is not None and not (type(budget) in (int, float) and budget >= 0):
            raise ModelError(
                f"{path}: time_budget is {budget!r}. It must be at least 0 (milliseconds); "
                "correct it."
            )
        if not isinstance(heal, bool):
            raise ModelError(
                f"{path}: heal_tokens is {heal!r}. It must be true or false; correct the file."
            )
        copying = raw.get("copying")
        if copying is not None and not (
            isinstance(copying, dict)
            and copying.keys() == COPY_WEIGHTS
            and all(type(v) in (int, float) and abs(v) < LARGEST_WEIGHT for v in copying.values())
        ):
            raise ModelError(
                f"{path}: copying is {copying!r}. It needs the numbers "
                f"{', '.join(sorted(COPY_WEIGHTS))}, "
                f"each within ±{LARGEST_WEIGHT:,.0f}; correct or delete it."
            )
        if not isinstance(languages, list):
            raise ModelError(
                f"{path}: languages is {languages!r}. It must be a list; correct or delete the "
                "file."
            )
        return Preferences(
            layout,
            float(confidence),
            budget,
            heal,
            copying,
            tuple(map(str, languages)),
            str(raw.get("other_languages", "")),
        )

    @property
    def weight_files(self) -> list[Path]:
        """The safetensors files in a fixed order; raises ModelError when there are none or the
        index is wrong."""
        index = self.path / "model.safetensors.index.json"
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise ModelError(f"{index} has no weight_map. Download the model again.")
            names = sorted(set(map(str, weight_map.values())))
            if any(Path(n).name != n or not n.endswith(".safetensors") for n in names):
                raise ModelError(
                    f"{index} names files that are not safetensors beside it. Download the model "
                    "again."
                )
            files = [self.path / n for n in names]
        else:
            files = sorted(self.path.glob("*.safetensors"))
        missing = [f.name for f in files if not f.is_file()]
        if missing:
            raise ModelError(f"{self.path} lacks {', '.join(missing)}. Download the model again.")
        if not files:
            pickled = sorted(
                f.name
                for f in self.path.iterdir()
                if f.suffix in {".bin", ".pt", ".pth", ".ckpt"} and f.name != ATTRIBUTION
            )
            raise ModelError(
                f"{self.path} has only pickled weights ({', '.join(pickled)}), which could run "
                "code when loaded. "
                "Use the model's safetensors, or convert it with transformers' save_pretrained."
                if pickled
                else f"{self.path} has no *.safetensors. Download the model again."
            )
        return files

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight by name, from the files' headers alone, in the order of files
        and names.

        The scales of int8 rows (see model/weights/checkpoint.py) are no weights. Raises ModelError.
        """
        found = {name: shape for file in self.weight_files for name, shape in _header(file).items()}
        scales = {f"{name}_scale" for name in found}
        return {name: shape for name, shape in found.items() if name not in scales}

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.shapes.values()))

    @property
    def identity(self) -> str:
        """Names these very files: their path, sizes and times of change. An engine serves one
        identity."""
        stamps = [
            (f.name, f.stat().st_size, f.stat().st_mtime_ns)
            for f in [self.path / "config.json", self.path / "tokenizer.json", *self.weight_files]
        ]
        return hashlib.sha256(repr((str(self.path.resolve()), stamps)).encode()).hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing. Point the model setting at a whole model folder."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error}). Download the model again.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object. Download the model again.")
    return value


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a safetensors file's tensors. Its header is JSON behind its own length, 8 bytes
    little-endian."""
    try:
        with file.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(length)) if length <= MAX_HEADER else {}
        shapes = {
            name: tuple(entry["shape"])
            for name, entry in sorted(header.items())
            if name != "__metadata__"
        }
        if not shapes or any(type(size) is not int for shape in shapes.values() for size in shape):
            raise ValueError("its header lists no tensors")
        return shapes
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read ({error}). Download it again.") from None


def find_model(name: str | Path, *, to_run: bool = True) -> ModelFolder:
    """'bundled' or the path of a folder -> ModelFolder. Raises ModelError.

    to_run False: only its tokenizer and config are wanted, for a model that runs elsewhere.
    """
    try:
        path = BUNDLED if str(name) == "bundled" else Path(name).expanduser()
        contents = list(path.iterdir())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: ~ of an unknown user
        raise ModelError(
            f"There is no model folder {name}. Use 'bundled' or the path of a downloaded model's "
            "folder."
        ) from None
    if not contents:
        raise ModelError(f"The model folder {path} is empty. Download the model into it.")
    config = read_json(path / "config.json")
    if "auto_map" in config:
        raise ModelError(
            f"{path}/config.json asks to run code of its own (auto_map), which fimls never does. "
            "Use a checkpoint in one of the native architectures: " + ", ".join(FAMILIES) + "."
        )
    folder = ModelFolder(path, config)
    if to_run and folder.model_type not in FAMILIES:
        raise ModelError(
            f"{path}/config.json has the model_type {folder.model_type!r}, which fimls does not "
            "run. "
            f"It runs {', '.join(FAMILIES)}."
        )
    return folder
