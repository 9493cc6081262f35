"""load_model: from a model's name to a LoadedModel that generates.

Chooses device, precision and kernels, has the checkpoint fill the decoder, and installs the faster
step where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from model.catalogue.records import check_unaltered
from model.cpu.quantized_linear import Int8Factory
from model.cpu.torch_step import add_step
from model.decoder.config import DecoderConfig
from model.decoder.decoder import Decoder
from model.decoder.factory import Factory
from model.decoder.kv_cache import KVCache
from model.errors import ModelError
from model.generation.copying import Copying, CopyWeights
from model.generation.drafting import Drafter, DraftHistory
from model.generation.generate import (
    GREEDY,
    DecodeCounts,
    GenerationOptions,
    ScoreProcessor,
    Token,
    generate,
)
from model.generation.sampling import Sampling
from model.generation.token_healing import Spelling, TokenHealing
from model.gpu.bitsandbytes_linear import BITS, BitsFactory, library
from model.gpu.cuda_graphs import add_graphs
from model.machine import available_memory
from model.prepared.weights import PreparedWeights
from model.tokenizer import Tokenizer
from model.weights.checkpoint import Checkpoint
from model.weights.files import ModelFiles
from model.weights.folder import find_model

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run: its folder, tokenizer and decoder.

    prepared: the file that keeps the decoder's weights for the next start; None where that brings
    nothing.
    """

    folder: ModelFiles
    tokenizer: Tokenizer
    decoder: Decoder
    prepared: PreparedWeights | None = None

    @cached_property
    def spelling(self) -> Spelling:
        """The tokens by their texts, for healing."""
        return Spelling(self.tokenizer.texts)

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
        history: DraftHistory | None = None,
        counts: DecodeCounts | None = None,
        should_stop: Callable[[], bool] | None = None,
        prefill_chunk: int | None = None,
    ) -> Iterator[Token]:
        """Continues ids, the first cache.length of which the cache already holds; without a cache
        it makes one.

        begin_with: the text that the answer begins with, which is not yielded. copying: mixes in
        the tokens that followed the same text before. history: the texts to draft from; None runs
        one pass for each token. counts: is added to. Raises ValueError for a begin_with that the
        model cannot spell. See model.generation.generate.
        """
        stop_ids = frozenset(stop_ids) | set(self.decoder.config.stop_ids)
        options = GenerationOptions(
            max_new_tokens, sampling or GREEDY, stop_ids, should_stop, prefill_chunk
        )
        matches = None
        drafter = None
        processors: list[ScoreProcessor] = []
        if history or copying:
            matches = (history or DraftHistory()).begin(ids, stop_ids)
            drafter = Drafter(history, matches)
            if copying:
                processors.append(Copying(copying, matches))
        if begin_with:
            processors.append(TokenHealing(self.spelling, begin_with))
        if cache is None:
            cache = self.decoder.new_cache()
        text = self.tokenizer.stream()
        try:
            yield from generate(
                self.decoder, cache, ids, text, options, processors, drafter, counts
            )
        finally:
            if history and matches:
                history.end(matches, len(ids))


def load_model(
    name: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    quantization: str | None = None,
    measured: Path | None = None,
    progress: Callable[[float], None] = lambda share: None,
    prepared: Path | None = None,
) -> LoadedModel:
    """'bundled', a path or a name as in find_path -> LoadedModel. Raises ModelError with the
    remedy.

    device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1". dtype: "auto" (the fastest
    that the device has kernels for), "float32", "float16", "bfloat16". quantization: None, "int8",
    "int4" (on a GPU only, where both are bitsandbytes' and save memory, not time), or "auto" (int8
    where it is faster: on a CPU with the dtype "auto"). measured: a folder that keeps the measured
    speed of kernels. progress: is told the share of tensors that are loaded, 0 to 1. prepared: the
    cache folder that may hold the weights as another process has prepared them.
    """
    folder = find_model(name)
    check_unaltered(folder.weight_files)
    tokenizer = folder.load_tokenizer()
    where = choose_device(device)
    chosen_dtype = choose_dtype(dtype, where)
    if quantization == "auto" and not folder.is_native:
        quantization = None
    chosen_quantization = choose_quantization(quantization, dtype, where)
    decoder, kept = load_decoder(
        folder, where, chosen_dtype, chosen_quantization, measured, progress, prepared
    )
    check_vocabulary(folder, tokenizer, decoder.config.vocab_size)
    return LoadedModel(folder, tokenizer, decoder, kept)


def load_decoder(
    folder: ModelFiles,
    device: torch.device,
    dtype: torch.dtype,
    quantization: str | None,
    measured: Path | None,
    progress: Callable[[float], None],
    prepared: Path | None = None,
) -> tuple[Decoder, PreparedWeights | None]:
    """Makes the decoder of a folder, fills it file by file, or from prepared weights, and gives it
    its step.

    Matrices are quantized as they are read, so that no more than one file of the checkpoint is in
    memory beside them. The arguments are those of load_model, chosen. Raises ModelError.
    """
    bits = 8 * dtype.itemsize if quantization is None else BITS[quantization]
    if not folder.is_native:
        check_memory(folder, folder.parameters, device, bits / 8)
        return load_with_transformers(folder, device, dtype, quantization), None
    checkpoint = Checkpoint.open(folder)
    check_memory(folder, checkpoint.parameters, device, bits / 8)
    # The decoder is not made by way of the meta device: what torch imports for that (sympy, its
    # compiler) takes longer than loading.
    try:
        factory = choose_factory(checkpoint.config, device, dtype, quantization, measured)
        decoder = Decoder(checkpoint.config, factory).eval().requires_grad_(False)
    except RuntimeError as error:
        first_line = str(error).splitlines()[0]
        raise ModelError(
            f"{folder.path} does not fit into the memory of {device} ({first_line}). Use a "
            "smaller model."
        ) from None
    kept = None
    if prepared is not None and isinstance(factory, Int8Factory):
        kept = PreparedWeights.of(folder, factory, prepared)
    if kept is None or not kept.restore(decoder):
        checkpoint.fill(decoder, factory, progress)
    if isinstance(factory, Int8Factory):
        add_step(decoder, factory.plan, measured)
    elif device.type == "cuda" and quantization is None:
        add_graphs(decoder)
    return decoder, kept


def load_with_transformers(
    folder: ModelFiles, device: torch.device, dtype: torch.dtype, quantization: str | None
) -> Decoder:
    """The decoder of an architecture that is not native. Raises ModelError."""
    if quantization is not None:
        raise ModelError(
            f"{folder.path} is not of a native architecture: its weights run as floats only. Set "
            "the quantization to 'none'."
        )
    from model.transformers_decoder import load  # transformers takes seconds to import

    return load(folder, device, dtype)


def choose_factory(
    config: DecoderConfig,
    device: torch.device,
    dtype: torch.dtype,
    quantization: str | None,
    measured: Path | None,
) -> Factory:
    """The maker of matrices for the precision: floats, int8 on a CPU, fewer bits on a GPU."""
    if quantization is None:
        return Factory(device, dtype)
    if device.type == "cpu":
        return Int8Factory.for_cpu(config, measured)
    return BitsFactory(device, dtype, BITS[quantization])


def check_memory(
    folder: ModelFiles, parameters: int, device: torch.device, itemsize: float
) -> None:
    """Raises ModelError where the weights, of itemsize bytes each, do not fit into what is free."""
    free = free_memory(device)
    needed = parameters * itemsize
    if free is None or needed <= free:
        return
    smaller = "a smaller model"
    if itemsize > 1:
        smaller = 'fimls.engine.quantization "int8" or a smaller model'
    raise ModelError(
        f"{folder.path} needs {needed / 1e9:.1f} GB for its weights, but "
        f"{free / 1e9:.1f} GB of the memory of {device} are free. Use {smaller}, or close what "
        "else uses the memory."
    )


def free_memory(device: torch.device) -> int | None:
    """Bytes; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory()


def check_vocabulary(folder: ModelFiles, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises ModelError where the tokenizer has more ids than the model has entries."""
    if tokenizer.vocab_size > vocab_size:
        raise ModelError(
            f"{folder.path}: the tokenizer has {tokenizer.vocab_size} entries, the model "
            f"{vocab_size}. Check that tokenizer.json and config.json belong together."
        )


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one. Raises ModelError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise ModelError(
            f"The device {name!r} cannot be used ({first_line}). Set the device to 'auto'."
        ) from None
    return device


def choose_quantization(quantization: str | None, dtype: str, device: torch.device) -> str | None:
    """None for the weights as they are, or "int8" or "int4". Raises ModelError with the remedy."""
    if quantization not in (None, "none", "auto", *BITS):
        raise ModelError(
            f"The quantization {quantization!r} is unknown. Use 'auto', 'int8', 'int4' or 'none'."
        )
    on_cpu = device.type == "cpu"
    if quantization == "auto":
        return "int8" if on_cpu and dtype == "auto" else None
    if quantization in (None, "none"):
        return None
    if quantization == "int4" and on_cpu:
        raise ModelError(
            "int4 weights run on a CUDA device, not on a CPU. Set the quantization to 'int8'."
        )
    if on_cpu and dtype not in ("auto", "float32"):
        raise ModelError(
            f"int8 weights go with float32, not with {dtype}. Set the dtype to 'auto'."
        )
    if device.type not in ("cpu", "cuda"):
        raise ModelError(
            f"{quantization} weights do not run on {device}. Set the quantization to 'none'."
        )
    if not on_cpu:
        library()
    return quantization


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of that name; "auto" is the fastest on the device. Raises ModelError."""
    if name in DTYPES:
        return DTYPES[name]
    if name != "auto":
        raise ModelError(
            f"The dtype {name!r} is unknown. Use 'auto', {', '.join(map(repr, DTYPES))}."
        )
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    # On a CPU without bfloat16 kernels its matmuls are hundreds of times slower than float32's.
    if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16
    return torch.float32
