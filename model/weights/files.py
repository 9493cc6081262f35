"""ModelFiles: one model on disk, whatever its format, as far as it is known without torch."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from model.decoder.config import DecoderConfig
from model.errors import ModelError
from model.families.hf_config import ConfigReader, max_positions, stated_positions
from model.families.registry import FAMILIES
from model.families.weight_table import WeightSlot
from model.tokenizer import Tokenizer
from model.weights.preferences import Preferences

if TYPE_CHECKING:
    from torch import Tensor

    from model.ggml import Blocks

BUNDLED = Path(__file__).parent.parent / "bundled"
INT8_ROWS = "fimls-int8-rows"  # fimls' own quant_method: see model/weights/tensors.py
UNSTATED_POSITIONS = 4096  # of a model that is not native and states none
ATTRIBUTION = "attribution.bin"  # beside the weights: see fim/attribution.py


class ModelFiles(ABC):
    """A model's configuration, tokenizer and weight files.

    path: a folder, or a GGUF file (of a split one the first). config: shaped as Hugging Face's
    config.json.
    """

    path: Path
    config: Mapping[str, Any]
    before_config: ClassVar[str] = "/"  # in messages, between the path and "config.json"

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
    def is_native(self) -> bool:
        """Whether fimls runs the architecture itself; else transformers does, slower."""
        return self.model_type in FAMILIES

    @property
    def quantization(self) -> Any:
        """The quant_method of config.json; "" where the weights are plain ones."""
        settings = self.config.get("quantization_config")
        if settings is None:
            return ""
        return settings.get("quant_method") if isinstance(settings, dict) else settings

    @property
    def max_positions(self) -> int:
        """Prompt and completion together, in tokens. Raises ModelError."""
        reader = ConfigReader(self.config)
        try:
            if not self.is_native:  # transformers' cache does not fit frequencies that change
                return stated_positions(reader, UNSTATED_POSITIONS)
            return max_positions(reader, FAMILIES[self.model_type].defaults.positions)
        except ModelError as error:
            raise self._refused(error) from None

    def recipe(self) -> tuple[DecoderConfig, dict[str, WeightSlot]]:
        """What decoder the configuration describes, and where the tensors go. Raises ModelError."""
        family = FAMILIES.get(self.model_type)
        if family is None:
            raise ModelError(
                f"{self.path}: {self.model_type} is no native architecture. Use a model in one "
                f"of {', '.join(FAMILIES)}."
            )
        try:
            config = family.decoder_config(self.config)
        except ModelError as error:
            raise self._refused(error) from None
        return config, family.weight_table(config)

    def _refused(self, error: ModelError) -> ModelError:
        """error: begins with config.json."""
        return ModelError(
            f"{self.path}{self.before_config}{error}. Download the model again; if it stays so, "
            "use another or report this one."
        )

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
    def tensor_shapes(
        self, table: Mapping[str, WeightSlot], config: DecoderConfig
    ) -> dict[str, tuple[int, ...]]:
        """The shapes of what `tensors` yields, by name and in that order. Raises ModelError."""

    @abstractmethod
    def tensors(
        self, table: Mapping[str, WeightSlot], config: DecoderConfig
    ) -> Iterator[tuple[Path, str, Tensor]]:
        """The weights as floats, file by file, each with its file and its name in the table, also
        those that have no place there. Loads torch. Raises ModelError."""

    def block_kinds(self, table: Mapping[str, WeightSlot], config: DecoderConfig) -> dict[str, str]:
        """The kinds of those of `stored_tensors` that are blocks, by their names. Raises
        ModelError."""
        return {}

    def stored_tensors(
        self, table: Mapping[str, WeightSlot], config: DecoderConfig
    ) -> Iterator[tuple[Path, str, Tensor | Blocks]]:
        """As `tensors`, but matrices that a file holds in blocks stay so. Raises ModelError."""
        return self.tensors(table, config)

    @abstractmethod
    def load_tokenizer(self) -> Tokenizer:
        """Takes up to a second where the vocabulary is large. Raises ModelError."""

    @abstractmethod
    def tokenizer_json(self) -> str:
        """The content of its tokenizer.json. Raises ModelError, OSError."""

    @property
    def identity(self) -> str:
        """Names these very files: their path, sizes and times of change. An engine serves one
        identity. Raises ModelError."""
        stamps = []
        for file in self.files:
            try:
                status = file.stat()
            except FileNotFoundError:
                raise ModelError(f"{file} is missing. Download the model again.") from None
            except OSError as error:
                raise ModelError(
                    f"{file} cannot be read ({error.strerror}). Download the model again."
                ) from None
            stamps.append((file.name, status.st_size, status.st_mtime_ns))
        return hashlib.sha256(repr((str(self.path.resolve()), stamps)).encode()).hexdigest()[:16]
