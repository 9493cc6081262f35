"""ModelFiles: one model on disk, whatever its format, as far as it is known without torch."""

from __future__ import annotations

import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.errors import ModelError
from model.families.hf_config import ConfigReader, max_positions
from model.tokenizer import Tokenizer
from model.weights.preferences import Preferences

BUNDLED = Path(__file__).parent.parent / "bundled"
ATTRIBUTION = "attribution.bin"  # beside the weights: see fim/attribution.py
MAX_TEXT = 256 * 2**20  # bytes of config.json, tokenizer.json and other small files


class ModelFiles(ABC):
    """A model's configuration, tokenizer and weight files.

    path: a folder, or a GGUF file (of a split one the first). config: shaped as Hugging Face's
    config.json.
    """

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
        """Prompt and completion together, in tokens. Raises ModelError."""
        return max_positions(ConfigReader(self.config))

    @property
    def attribution(self) -> Path:
        """Its own attribution file, or the bundled model's, which holds for any model's text."""
        own = self.path / ATTRIBUTION
        if own.is_file():
            return own
        return BUNDLED / ATTRIBUTION

    @property
    @abstractmethod
    def preferences(self) -> Preferences:
        """The settings that suit the model. Raises ModelError."""

    @property
    @abstractmethod
    def weight_files(self) -> Sequence[Path]:
        """The files that hold weights, in a fixed order. Raises ModelError."""

    @property
    @abstractmethod
    def files(self) -> Sequence[Path]:
        """All files that say what the model computes. Raises ModelError."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """The number of weights, from the files' headers alone. Raises ModelError."""

    @abstractmethod
    def load_tokenizer(self) -> Tokenizer:
        """Takes up to a second where the vocabulary is large. Raises ModelError."""

    @property
    def identity(self) -> str:
        """Names these very files: their path, sizes and times of change. An engine serves one
        identity. Raises ModelError, OSError."""
        stamps = []
        for file in self.files:
            status = file.stat()
            stamps.append((file.name, status.st_size, status.st_mtime_ns))
        return hashlib.sha256(repr((str(self.path.resolve()), stamps)).encode()).hexdigest()[:16]


def check_regular(path: Path, most: int | None = None) -> None:
    """Raises ModelError for anything else than a regular file of at most so many bytes.

    A FIFO would wait for a writer, and a device has no end. FileNotFoundError and other kinds of
    OSError pass through.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path} is not a regular file. Download the model again.")
    if most is not None and status.st_size > most:
        raise ModelError(
            f"{path} has {status.st_size:,} bytes, more than the {most:,} that such a file may "
            "have. Download the model again."
        )


def read_text(path: Path) -> str:
    """The text of a small file. Raises ModelError, OSError, UnicodeDecodeError."""
    # Opened without waiting, since the path may have become a FIFO after the check.
    check_regular(path, MAX_TEXT)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, encoding="utf-8") as file:
        return file.read(MAX_TEXT)
