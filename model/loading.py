"""load_model: from a model's name to a LoadedModel that generates.

Chooses device, precision and kernels, has the checkpoint fill the decoder, and installs the faster
step where there is one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch.distributed import ProcessGroup

from model.catalogue.records import check_unaltered
from model.cpu.blocks.linear import BlockFactory, can_run, can_wait
from model.cpu.quantized_linear import Int8Factory
from model.cpu.torch_step import add_step
from model.decoder.config import DecoderConfig
from model.decoder.decoder import Decoder
from model.decoder.factory import Factory
from model.decoder.kv_cache import KVCache
from model.errors import ModelError
from model.footprint import Scheme, footprint
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
from model.gpu.cuda_graphs import add_graphs
from model.placement.device_map import GivenMap
from model.placement.spread import Spread, connect
from model.precision.bitsandbytes_linear import KINDS, BitsFactory
from model.precision.devices import choose_device, choose_dtype, free_memory
from model.precision.quantization import Needs, choose_quantization
from model.prepared.weights import PreparedWeights
from model.tokenizer import Tokenizer
from model.weights.checkpoint import Checkpoint
from model.weights.files import ModelFiles
from model.weights.folder import find_model

log = logging.getLogger(__name__)

# The kinds of weights in blocks: to what floats are rounded, and whether a file's blocks are kept.
BLOCKS: Mapping[str, tuple[Scheme, bool]] = {
    "int8": ("q8_0", False),
    "int4": ("q4_0", False),
    "blocks": ("q8_0", True),
}


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run: its folder, tokenizer and decoder.

    prepared: the file that keeps the decoder's weights for the next start; None where that brings
    nothing. precision: which kind of weights it has, and why.
    """

    folder: ModelFiles
    tokenizer: Tokenizer
    decoder: Decoder
    prepared: PreparedWeights | None = None
    precision: str = ""

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
    device_map: Literal["auto"] | GivenMap | None = None,
    max_memory: Mapping[int | str, int | str] | None = None,
    offload_folder: str | Path | None = None,
    tensor_parallel: ProcessGroup | None = None,
) -> LoadedModel:
    """'bundled', a path or a name as in find_path -> LoadedModel. Raises ModelError with the
    remedy.

    device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", "mps". dtype: "auto" (the
    fastest that the device has kernels for), "float32", "float16", "bfloat16". quantization: None
    (floats), "int8" (on a CPU fimls' own; on a GPU "llm.int8"), "int4" (fimls' own on a CPU that
    has the instructions; else "nf4-double"), by bitsandbytes "llm.int8", "nf4", "nf4-double", which
    save memory, not time; or "auto" (on a CPU with the dtype "auto" the blocks of a GGUF file as
    they are, or int8, else floats; fewer bits where the memory that is free asks for them).
    measured: a folder that keeps machine code and its measured speed; without it torch multiplies.
    progress: is told the share of tensors that are loaded, 0 to 1. prepared: the cache folder that
    may hold the weights as another process has prepared them. device_map, max_memory,
    offload_folder, tensor_parallel: see model.placement.spread; there is no faster step for few
    rows then.
    """
    spread = Spread(device_map, max_memory, offload_folder, tensor_parallel)
    folder = find_model(name)
    check_unaltered(folder.files)
    tokenizer = folder.load_tokenizer()
    checkpoint = Checkpoint.open(folder) if folder.is_native else None
    config = None if checkpoint is None else checkpoint.config
    opened = spread.open(checkpoint, config, device, dtype, quantization)
    if not isinstance(opened, str):
        decoder = load_spread(*opened, progress)
        check_vocabulary(folder, tokenizer, decoder.config.vocab_size)
        return LoadedModel(folder, tokenizer, decoder, precision=decoder.scheme)
    where = choose_device(opened)
    chosen_dtype = choose_dtype(dtype, where)
    in_blocks = False
    if checkpoint is not None and where.type == "cpu":
        in_blocks = can_run(measured)
    needs = needs_of(folder, checkpoint, chosen_dtype, in_blocks=in_blocks)
    choice = choose_quantization(
        quantization, dtype, chosen_dtype, where, needs, free_memory(where)
    )
    log.info("%s: %s", folder.path, choice.reason)
    if checkpoint is None:
        decoder = load_with_transformers(folder, where, chosen_dtype, choice.kind)
        kept = None
    else:
        decoder, kept = load_decoder(
            checkpoint, where, chosen_dtype, choice.kind, measured, progress, prepared
        )
    check_vocabulary(folder, tokenizer, decoder.config.vocab_size)
    return LoadedModel(folder, tokenizer, decoder, kept, choice.reason)


def needs_of(
    folder: ModelFiles,
    checkpoint: Checkpoint | None,
    dtype: torch.dtype,
    *,
    in_blocks: bool = False,
) -> Needs:
    """The memory that each kind of weights takes; without a checkpoint floats alone.

    in_blocks: on a CPU the weights are in blocks.
    """
    name = str(folder.path)
    if checkpoint is None:
        return Needs(name, {None: folder.parameters * dtype.itemsize})
    schemes: dict[str | None, Scheme] = {None: "floats", "int8": "int8"}
    schemes |= {kind: kind for kind in KINDS}
    config, table = checkpoint.config, checkpoint.table
    kept: dict[str, str] = {}
    if in_blocks:
        schemes |= {kind: name for kind, (name, _) in BLOCKS.items()}
        kept = checkpoint.block_kinds
        if not kept:
            del schemes["blocks"]
    sizes = {}
    for kind, scheme in schemes.items():
        stays = kept if kind == "blocks" else None
        sizes[kind] = footprint(config, table, scheme, dtype.itemsize, stays).total
    return Needs(name, sizes)


def load_decoder(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    quantization: str | None,
    measured: Path | None,
    progress: Callable[[float], None],
    prepared: Path | None = None,
) -> tuple[Decoder, PreparedWeights | None]:
    """Makes the decoder of a checkpoint, fills it file by file, or from prepared weights, and gives
    it its step.

    Matrices are quantized as they are read, so that no more than one file of the checkpoint is in
    memory beside them. The arguments are those of load_model, chosen. Raises ModelError.
    """
    folder = checkpoint.folder
    # The decoder is not made by way of the meta device: what torch imports for that (sympy, its
    # compiler) takes longer than loading.
    try:
        factory = choose_factory(checkpoint.config, device, dtype, quantization, measured)
        decoder = Decoder(checkpoint.config, factory).eval().requires_grad_(False)
        decoder.rotations  # noqa: B018 - of a long context they take memory, too
    except RuntimeError as error:
        first_line = str(error).splitlines()[0]
        raise ModelError(
            f"{folder.path} does not fit into the memory of {device} ({first_line}). Use a "
            "smaller model."
        ) from None
    kept = None
    if prepared is not None and isinstance(factory, BlockFactory) and not can_wait(factory.config):
        kept = PreparedWeights.of(folder, factory, prepared)
    if kept is None or not kept.restore(decoder):
        checkpoint.fill(decoder, factory, progress)
    if isinstance(factory, Int8Factory):
        add_step(decoder, factory.plan)
    elif device.type == "cuda" and quantization is None:
        add_graphs(decoder)
    return decoder, kept


def load_spread(
    checkpoint: Checkpoint, decoder: Decoder, progress: Callable[[float], None]
) -> Decoder:
    """Fills what Spread.open has opened. Raises ModelError."""
    decoder.eval().requires_grad_(False)
    checkpoint.fill(decoder, Factory(decoder.device, decoder.dtype), progress)
    connect(decoder)
    return decoder


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
    """The maker of matrices for the kind of weights: floats, fimls' own, bitsandbytes'."""
    if quantization is None:
        return Factory(device, dtype)
    if quantization in BLOCKS and can_run(measured):
        name, keeps = BLOCKS[quantization]
        return BlockFactory.for_cpu(config, name, keeps=keeps)
    if quantization == "int8":
        return Int8Factory.for_cpu(config)
    return BitsFactory(device, dtype, quantization)


def check_vocabulary(folder: ModelFiles, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises ModelError where the tokenizer has more ids than the model has entries."""
    if tokenizer.vocab_size > vocab_size:
        raise ModelError(
            f"{folder.path}: the tokenizer has {tokenizer.vocab_size} entries, the model "
            f"{vocab_size}. Check that tokenizer.json and config.json belong together."
        )
