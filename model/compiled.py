"""Gives the decoder of a small int8 model its compiled step (model.compiled_step), as soon as there is machine code.

Until then, and where numba is not installed, model.step does the work.
"""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from model.decoder import Cancelled, Decoder
from model.kernels import FEW, Book, Busy, Times
from model.kv_cache import KVCache
from model.layers import DecoderLayer
from model.machine_code import code_folder, is_whole, start, use
from model.quantize import Int8Embedding, Int8Linear
from model.step import relative, shape_of, step_rows, step_us

if TYPE_CHECKING:
    from model.compiled_step import Floats, Matrices

log = logging.getLogger(__name__)

BY_THUMB = {1: 1.0, 2: 1.8, 4: 3.2, 8: 6.0, 16: 12.0}  # row costs where nothing can be measured


class Upgrade:
    """Brings a decoder its compiled step; to be called now and then until it says that there is nothing more to do.

    Not at once: to load machine code takes half a second, and to make it, in a process beside this one, some more.
    """

    def __init__(self, decoder: Decoder, cache: Path) -> None:
        """cache: where to keep machine code, and what was measured."""
        self._decoder, self._cache, self._folder = decoder, cache, code_folder(cache)
        self._maker: subprocess.Popen[bytes] | None = None

    def __call__(self) -> bool:
        if self._folder is None:
            return True
        if self._maker is not None and self._maker.poll() is None:
            return False
        if is_whole(self._folder):
            use(self._folder)
            add_compiled_step(self._decoder, self._cache)
            return True
        if self._maker is None:
            self._maker = start(self._folder)
            return False
        log.warning("nothing was compiled (exit status %s)", self._maker.returncode)
        return True


def upgrade_for(decoder: Decoder, cache: Path | None) -> Upgrade | None:
    """None for a decoder that needs its threads, or is not of int8 weights, and where nothing may be kept."""
    projection = cast(DecoderLayer, decoder.layers[0]).attention.qkv
    small = isinstance(projection, Int8Linear) and projection.plan.small
    return Upgrade(decoder, cache) if small and cache else None


def upgrade_now(decoder: Decoder, cache: Path) -> None:
    """For those who can wait: a benchmark, say."""
    upgrade = upgrade_for(decoder, cache)
    while upgrade is not None and not upgrade():
        time.sleep(0.1)


def add_compiled_step(decoder: Decoder, measured: Path | None = None) -> None:
    """Puts it in the step's place where it is faster. measured: see kernels.make_plan. Raises whatever numba raises."""
    before, compiled = decoder.few_rows, CompiledStep(decoder)

    def measure() -> Times:
        found = {}
        for way, decoder.few_rows, most in (("torch", before, 1), ("compiled", compiled, compiled.most)):
            found[way] = step_us(decoder, most)
        return found

    wanted = {"torch": [1], "compiled": step_rows(decoder, compiled.most)}
    try:
        times = Book(measured).times(f"compiled {shape_of(decoder)}", wanted, measure)
    except Busy:
        decoder.few_rows, decoder.row_costs = compiled, BY_THUMB
        return
    if times["compiled"][1] < times["torch"][1]:
        decoder.few_rows, decoder.row_costs = compiled, relative(times["compiled"])
    else:
        decoder.few_rows = before


class CompiledStep:
    """See model.decoder.FewRows."""

    most = FEW[-1]

    def __init__(self, decoder: Decoder) -> None:
        """Raises ImportError without numba, and whatever numba raises."""
        from model import compiled_step as code

        c, layers = decoder.config, [cast(DecoderLayer, layer) for layer in decoder.layers]
        self._run, self._vocabulary = code.run, c.vocab_size
        gains = [
            torch.cat((layer.attention.q_norm, layer.attention.k_norm)) if c.qk_norm else torch.empty(0, c.head_dim)
            for layer in layers
        ]
        embed = decoder.embed_tokens
        assert isinstance(embed, Int8Embedding)
        self._weights = code.Weights(
            qkv=_matrices([layer.attention.qkv for layer in layers]),
            out=_matrices([layer.attention.out for layer in layers]),
            up=_matrices([layer.mlp.up for layer in layers]),
            down=_matrices([layer.mlp.down for layer in layers]),
            attention_norm=_norms([layer.attention_norm for layer in layers]),
            mlp_norm=_norms([layer.attention_norm if layer.parallel else layer.mlp_norm for layer in layers]),
            gains=torch.stack(gains).numpy(),
            turns=torch.view_as_real(decoder.turns.pairs[:, 0]).contiguous().numpy(),
            last_norm=_norms([decoder.norm])[0],
            embed=_matrices([embed.linear]),
            head=_matrices([embed.linear if c.tie_embeddings else decoder.head]),
        )
        self._shape = code.Shape(
            c.num_heads, c.sliding_window or 0, code.ACTIVATIONS[c.activation], c.gated_mlp, c.parallel_residual,
            c.norm_eps,
        )  # fmt: skip

    def __call__(
        self, ids: Tensor, cache: KVCache, keep: int, should_stop: Callable[[], bool] | None
    ) -> Tensor:
        if should_stop is not None and should_stop():
            raise Cancelled
        numbers, logits = ids.numpy(), np.empty((keep, self._vocabulary), np.float32)
        # Nothing behind this looks where it reads and writes.
        if not 0 <= numbers.min() <= numbers.max() < self._vocabulary:
            raise IndexError("a token id is not in the vocabulary")
        if cache.length + len(numbers) > cache.capacity:
            raise IndexError("the cache has no room for the rows")
        self._run(
            numbers, cache.length, self._shape, self._weights, cache.keys.numpy(), cache.values.numpy(), logits
        )
        cache.commit(len(numbers))
        return torch.from_numpy(logits)


def _matrices(modules: Sequence[nn.Module]) -> Matrices:
    """Side by side, which they stay in: nothing is kept twice."""
    from model.compiled_step import Matrices

    linears = [cast(Int8Linear, module) for module in modules]
    weights = linears[0].matrix[None]
    if len(linears) > 1:
        weights = torch.stack([linear.matrix for linear in linears])
        for linear, rows in zip(linears, weights, strict=True):
            linear.move(rows)
    biases = [torch.zeros(linear.out) if linear.bias is None else linear.bias for linear in linears]
    return Matrices(
        weights.numpy(), torch.stack([linear.scale for linear in linears]).numpy(), torch.stack(biases).numpy()
    )


def _norms(modules: Sequence[nn.LayerNorm]) -> Floats:
    return torch.stack([torch.stack((module.weight, module.bias)) for module in modules]).numpy()
