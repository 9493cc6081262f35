"""Gives the decoder of a small int8 model its compiled step (model.cpu.numba_step), as soon as
there is machine code.

Until then, and where numba is not installed, model.step does the work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from model.cpu import code_cache
from model.cpu.kernels import FEW, Book, Busy
from model.cpu.quantized_linear import Int8Embedding, Int8Linear
from model.cpu.torch_step import relative, shape_of, step_rows, step_us
from model.decoder.decoder import Cancelled, Decoder
from model.decoder.kv_cache import KVCache
from model.decoder.layers import DecoderLayer

if TYPE_CHECKING:
    from model.cpu.numba_step import Floats, Matrices

log = logging.getLogger(__name__)

PATIENCE_S = 600.0  # for compiling, which takes ten on a machine at rest
BY_THUMB = {1: 1.0, 2: 1.8, 4: 3.2, 8: 6.0, 16: 12.0}  # row costs where nothing can be measured


def upgrade(decoder: Decoder, cache_dir: Path) -> Iterator[None]:
    """Gives a small decoder of int8 weights its compiled step; to be gone on with now and then,
    until it ends.

    Not at once: to load machine code takes half a second, and to make it, in a process beside this
    one, some more. cache_dir is for the code, and for what was measured.
    """
    if not is_small(decoder) or (folder := code_cache.code_folder(cache_dir)) is None:
        return
    if not code_cache.is_intact(folder):
        late = time.monotonic() + PATIENCE_S
        with code_cache.start(folder) as compiler:
            while compiler.poll() is None:
                if time.monotonic() > late:
                    compiler.kill()
                yield
        if not code_cache.is_intact(folder):
            log.warning("nothing was compiled (exit status %s)", compiler.returncode)
            return
    code_cache.use(folder)
    yield  # to whoever has asked meanwhile: each of these takes some tenths of a second
    code_cache.load()
    yield
    add_compiled_step(decoder, Book(cache_dir), folder.name)


def is_small(decoder: Decoder) -> bool:
    """Whether its weights are int8 and small, as model.kernels' Plan says."""
    projection = cast(DecoderLayer, decoder.layers[0]).attention.qkv
    return isinstance(projection, Int8Linear) and projection.plan.small


def upgrade_now(decoder: Decoder, cache_dir: Path) -> None:
    """For those who can wait: a benchmark, say."""
    for _ in upgrade(decoder, cache_dir):
        time.sleep(0.1)


def add_compiled_step(decoder: Decoder, book: Book, version: str) -> None:
    """Puts it in the step's place where it is faster. version: of its code. Raises whatever numba
    raises."""
    compiled = CompiledStep(decoder)
    before = decoder.step
    costs_before = decoder.row_costs
    ways = {"torch": before, "compiled": compiled}

    def measure(way: str, rows: Sequence[int]) -> dict[int, float]:
        decoder.use_step(ways[way])
        return step_us(decoder, rows)

    wanted, costs = {"torch": [1], "compiled": step_rows(decoder, compiled.max_rows)}, None
    try:
        times = book.times(f"compiled {version} {shape_of(decoder)}", wanted, measure)
        if times["compiled"][1] < times["torch"][1]:
            costs = relative(times["compiled"])
    except Busy:
        costs = BY_THUMB
    finally:
        decoder.use_step(before, costs_before)
    if costs is not None:
        compiled.share()
        decoder.use_step(compiled, costs)


class CompiledStep:
    """See model.decoder.decoder.FewRowsStep."""

    max_rows = FEW[-1]

    def __init__(self, decoder: Decoder) -> None:
        """Raises whatever numba raises."""
        from model.cpu import numba_step as code  # see code_cache.use

        c, layers = decoder.config, [cast(DecoderLayer, layer) for layer in decoder.layers]
        self._run, self._vocabulary = code.forward, c.vocab_size
        self._shared: list[tuple[Int8Linear, Tensor]] = []
        gains = [
            torch.cat((layer.attention.q_norm, layer.attention.k_norm))
            if c.qk_norm
            else torch.empty(0, c.head_dim)
            for layer in layers
        ]
        embed = decoder.embed_tokens
        assert isinstance(embed, Int8Embedding)
        self._weights = code.Weights(
            qkv=self._matrices([layer.attention.qkv for layer in layers]),
            out=self._matrices([layer.attention.out for layer in layers]),
            up=self._matrices([layer.mlp.up for layer in layers]),
            down=self._matrices([layer.mlp.down for layer in layers]),
            attention_norm=_norms([layer.attention_norm for layer in layers]),
            mlp_norm=_norms(
                [layer.attention_norm if layer.parallel else layer.mlp_norm for layer in layers]
            ),
            gains=torch.stack(gains).numpy(),
            turns=torch.view_as_real(decoder.rotations.pairs[:, 0]).contiguous().numpy(),
            last_norm=_norms([decoder.norm])[0],
            embed=self._matrices([embed.linear]),
            head=self._matrices([embed.linear if c.tie_embeddings else decoder.head]),
        )
        self._shape = code.Shape(
            c.num_heads,
            c.sliding_window or 0,
            code.ACTIVATIONS[c.activation],
            c.gated_mlp,
            c.parallel_residual,
            c.norm_eps,
        )

    def __call__(
        self, ids: Tensor, cache: KVCache, keep: int, should_stop: Callable[[], bool] | None
    ) -> Tensor:
        if should_stop is not None and should_stop():  # once: a small model's step is short
            raise Cancelled
        numbers, logits = ids.numpy(), np.empty((keep, self._vocabulary), np.float32)
        # Nothing behind this looks where it reads and writes.
        if not 0 <= numbers.min() <= numbers.max() < self._vocabulary:
            raise IndexError("a token id is not in the vocabulary")
        if cache.length + len(numbers) > cache.capacity:
            raise IndexError("the cache has no room for the rows")
        self._run(
            numbers,
            cache.length,
            self._shape,
            self._weights,
            cache.keys.numpy(),
            cache.values.numpy(),
            logits,
        )
        cache.commit(len(numbers))
        return torch.from_numpy(logits)

    def share(self) -> None:
        """The decoder's matrices become views of those in here, so that nothing is kept twice."""
        for linear, rows in self._shared:
            linear.share(rows)
        self._shared.clear()

    def _matrices(self, modules: Sequence[nn.Module]) -> Matrices:
        from model.cpu.numba_step import Matrices

        linears = [cast(Int8Linear, module) for module in modules]
        weights = linears[0].matrix[None]
        if len(linears) > 1:
            weights = torch.stack([linear.matrix for linear in linears])
            self._shared += zip(linears, weights, strict=True)
        biases = [
            torch.zeros(linear.out) if linear.bias is None else linear.bias for linear in linears
        ]
        return Matrices(
            weights.numpy(),
            torch.stack([linear.scale for linear in linears]).numpy(),
            torch.stack(biases).numpy(),
        )


def _norms(modules: Sequence[nn.LayerNorm | nn.RMSNorm]) -> Floats:
    layer_norms = [cast(nn.LayerNorm, module) for module in modules]
    return torch.stack([torch.stack((norm.weight, norm.bias)) for norm in layer_norms]).numpy()
