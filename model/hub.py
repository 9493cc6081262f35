"""From a model's name to its folder, checked as far as that is possible without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.config import Keys
from model.errors import ModelError

BUNDLED = Path(__file__).parent / "bundled"
NATIVE_TYPES = ("starcoder2", "stablelm")


@dataclass(frozen=True, slots=True)
class Preferences:
    """What was measured to suit one model."""

    layout: Literal["psm", "spm"] | None = None  # None: the format's own preference
    min_confidence: float = 0.0  # suggestions below are not worth showing
    heal_tokens: bool = False  # the last piece of the prefix is spelled anew by the model: see fim.prompt
    languages: tuple[str, ...] = ()  # what it was trained on, by LSP's identifiers; () if unknown


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
        return int(Keys(self.config).get("max_position_embeddings", int, 4096))

    @property
    def preferences(self) -> Preferences:
        """What fimls.json beside the weights says; nothing where there is none. Raises ModelError."""
        path = self.path / "fimls.json"
        raw = read_json(path) if path.exists() else {}
        layout, confidence, languages = raw.get("layout"), raw.get("min_confidence", 0.0), raw.get("languages", [])
        heal = raw.get("heal_tokens", False)
        if layout not in (None, "psm", "spm"):
            raise ModelError(f"{path}: layout is {layout!r}. It must be 'psm' or 'spm'; correct or delete the file.")
        if not isinstance(confidence, int | float) or not 0 <= confidence <= 1:
            raise ModelError(f"{path}: min_confidence is {confidence!r}. It must be from 0 to 1; correct the file.")
        if not isinstance(heal, bool):
            raise ModelError(f"{path}: heal_tokens is {heal!r}. It must be true or false; correct the file.")
        if not isinstance(languages, list):
            raise ModelError(f"{path}: languages is {languages!r}. It must be a list; correct or delete the file.")
        return Preferences(layout, float(confidence), heal, tuple(map(str, languages)))

    @property
    def weight_files(self) -> list[Path]:
        """The safetensors files in a fixed order; raises ModelError when there are none or the index is wrong."""
        index = self.path / "model.safetensors.index.json"
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise ModelError(f"{index} has no weight_map. Download the model again.")
            names = sorted(set(map(str, weight_map.values())))
            if any(Path(n).name != n or not n.endswith(".safetensors") for n in names):
                raise ModelError(f"{index} names files that are not safetensors beside it. Download the model again.")
            files = [self.path / n for n in names]
        else:
            files = sorted(self.path.glob("*.safetensors"))
        missing = [f.name for f in files if not f.is_file()]
        if missing:
            raise ModelError(f"{self.path} lacks {', '.join(missing)}. Download the model again.")
        if not files:
            pickled = sorted(f.name for f in self.path.iterdir() if f.suffix in {".bin", ".pt", ".pth", ".ckpt"})
            raise ModelError(
                f"{self.path} has only pickled weights ({', '.join(pickled)}), which could run code when loaded. "
                "Use the model's safetensors, or convert it with transformers' save_pretrained."
                if pickled
                else f"{self.path} has no *.safetensors. Download the model again."
            )
        return files

    @property
    def identity(self) -> str:
        """Names these very files: their path, sizes and times of change. An engine serves one identity."""
        stamps = [(f.name, f.stat().st_size, f.stat().st_mtime_ns)
                  for f in [self.path / "config.json", self.path / "tokenizer.json", *self.weight_files]]
        return hashlib.sha256(repr((str(self.path.resolve()), stamps)).encode()).hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing. Point the model setting at a whole model folder.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error}). Download the model again.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object. Download the model again.")
    return value


def find_model(name: str | Path, *, to_run: bool = True) -> ModelFolder:
    """'bundled' or the path of a folder -> ModelFolder. Raises ModelError.

    to_run False: only its tokenizer and config are wanted, for a model that runs elsewhere.
    """
    try:
        path = BUNDLED if str(name) == "bundled" else Path(name).expanduser()
        contents = list(path.iterdir())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: ~ of an unknown user
        raise ModelError(
            f"There is no model folder {name}. Use 'bundled' or the path of a downloaded model's folder."
        ) from None
    if not contents:
        raise ModelError(f"The model folder {path} is empty. Download the model into it.")
    config = read_json(path / "config.json")
    if "auto_map" in config:
        raise ModelError(
            f"{path}/config.json asks to run code of its own (auto_map), which fimls never does. "
            "Use a checkpoint in one of the native architectures: " + ", ".join(NATIVE_TYPES) + "."
        )
    folder = ModelFolder(path, config)
    if to_run and folder.model_type not in NATIVE_TYPES:
        raise ModelError(
            f"{path}/config.json has the model_type {folder.model_type!r}, which fimls does not run. "
            f"It runs {', '.join(NATIVE_TYPES)}."
        )
    return folder
