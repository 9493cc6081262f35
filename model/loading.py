"""load_model: the door to this room for tests, benchmarks, the engine, and people who want the model alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from model.copying import Copier, CopyWeights
from model.decoder import Decoder
from model.errors import ModelError
from model.generate import Token, generate
from model.healing import Healing
from model.hub import ModelFolder, find_model
from model.kv_cache import KVCache
from model.sampling import Sampling
from model.tokenizer import Tokenizer
from model.weights import load_decoder

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    folder: ModelFolder
    tokenizer: Tokenizer
    decoder: Decoder

    def generate(
        self,
        ids: Sequence[int],
        *,
        max_new_tokens: int,
        cache: KVCache | None = None,
        sampling: Sampling | None = None,
        stop_ids: Iterable[int] = (),
        begin_with: str = "",
        copying: CopyWeights | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[Token]:
        """Continues ids, whose first cache.length the cache has already; with a cache of its own where none is given.

        See model.generate.generate. Raises ValueError for a begin_with that the model cannot spell.
        """
        stop_ids = frozenset(stop_ids) | set(self.decoder.config.stop_ids)
        return generate(
            self.decoder,
            self.decoder.new_cache() if cache is None else cache,
            ids,
            max_new_tokens=max_new_tokens,
            text=self.tokenizer.stream(),
            sampling=sampling or Sampling(),
            stop_ids=stop_ids,
            should_stop=should_stop,
            healing=Healing(self.tokenizer.texts, begin_with) if begin_with else None,
            copier=Copier(copying, ids, never=stop_ids) if copying else None,
        )


def load_model(
    name: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    progress: Callable[[float], None] = lambda share: None,
) -> LoadedModel:
    """'bundled' or a model's folder -> LoadedModel, ready to run. Raises ModelError with the remedy.

    device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1"; dtype: "auto" (the fastest that the device has
    kernels for), "float32", "float16", "bfloat16".
    """
    folder = find_model(name)
    tokenizer = Tokenizer(folder.path / "tokenizer.json")
    where = choose_device(device)
    decoder = load_decoder(folder, dtype=choose_dtype(dtype, where), device=where, progress=progress)
    check_vocabulary(folder, tokenizer, decoder.config.vocab_size)
    return LoadedModel(folder, tokenizer, decoder)


def check_vocabulary(folder: ModelFolder, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises ModelError where the tokenizer has ids that the model, of vocab_size entries, does not."""
    if tokenizer.vocab_size > vocab_size:
        raise ModelError(
            f"{folder.path}: the tokenizer has {tokenizer.vocab_size} entries, the model {vocab_size}. "
            "Check that tokenizer.json and config.json belong together."
        )


def choose_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise ModelError(f"The device {name!r} cannot be used ({first_line}). Set the device to 'auto'.") from None
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        # On a CPU without bfloat16 kernels its matmuls are hundreds of times slower than float32's.
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else (
            device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
        name = "bfloat16" if native else "float16" if device.type == "cuda" else "float32"
    if name not in DTYPES:
        raise ModelError(f"The dtype {name!r} is unknown. Use 'auto', {', '.join(map(repr, DTYPES))}.")
    return DTYPES[name]
