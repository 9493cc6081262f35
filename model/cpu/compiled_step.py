"""Gives the decoder of an int8 model what is faster as machine code (numba_step.py, interleaved/),
as soon as there is any.

Until then, and where numba is not installed, the step in torch (torch_step.py) does the work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from model.cpu import code_cache
from model.cpu.blocks.decoder_step import add_block_step, is_of_blocks
from model.cpu.blocks.kernel import PRODUCT
from model.cpu.interleaved.kernel import INTERLEAVED
from model.cpu.kernel_choice import Plan, make_plan
from model.cpu.kernels import FEW
from model.cpu.measurements import Busy, Measurements
from model.cpu.quantized_linear import Int8Embedding, Int8Linear, step_shapes
from model.cpu.step_costs import relative_costs, shape_of, step_rows, step_us
from model.cpu.torch_step import add_step
from model.decoder.decoder import Decoder
from model.decoder.factory import Norm, gains_of
from model.decoder.kv_cache import KVCache
from model.decoder.layers import DecoderLayer
from model.decoder.stopping import ShouldStop, ask

if TYPE_CHECKING:
    from model.cpu.numba_step import Floats, Matrices, Weights

log = logging.getLogger(__name__)

PATIENCE_S = 600.0  # for compiling, which takes ten on a machine at rest
BY_THUMB = {1: 1.0, 2: 1.8, 4: 3.2, 8: 6.0, 16: 12.0}  # row costs where nothing can be measured


def upgrade(decoder: Decoder, cache_dir: Path) -> Iterator[None]:
    """Gives a decoder of int8 weights what is faster as machine code, in stages: the caller goes on
    with the iterator now and then, until it ends.

    A small one gets its compiled step, and the interleaved product for a prefill. A large one has
    the latter already, in torch until there is machine code.

    To load machine code takes half a second, and a process beside this one takes longer to make it.
    cache_dir: of the code and of the measurements.
    """
    folder = code_cache.code_folder(cache_dir)
    if folder is not None and is_of_blocks(decoder):
        yield from _make(folder, awaited=True)
        if code_cache.is_intact(folder):
            code_cache.use(folder)
            yield  # requests have their turn: each stage takes tenths of a second
            PRODUCT.load(folder)
            yield
            add_block_step(decoder, cache_dir)
        return
    plan = plan_of(decoder)
    awaited = plan is not None and INTERLEAVED.name in plan.names and not INTERLEAVED.ready
    if plan is None or folder is None or not (plan.small or awaited):
        return
    yield from _make(folder, awaited=False)
    if not code_cache.is_intact(folder):
        return
    if plan.small:
        code_cache.use(folder)
        yield  # requests that came meanwhile have their turn: each stage takes tenths of a second
        code_cache.load_step()
        yield
        add_compiled_step(decoder, Measurements(cache_dir), folder.name)
        yield
        INTERLEAVED.load(folder)
        yield
        prefill_interleaved(decoder, plan, cache_dir)
    else:
        INTERLEAVED.load(folder)
        yield
        add_step(decoder, plan, cache_dir)  # measures it


def _make(folder: Path, *, awaited: bool) -> Iterator[None]:
    """Has the machine code made, where there is none. The caller looks whether that was done."""
    if code_cache.is_intact(folder):
        return
    latest = time.monotonic() + PATIENCE_S
    with code_cache.start(folder, awaited=awaited) as compiler:
        while compiler.poll() is None:
            if time.monotonic() > latest:
                compiler.kill()
            yield
    if not code_cache.is_intact(folder):
        log.warning("nothing was compiled (exit status %s)", compiler.returncode)


def upgrade_now(decoder: Decoder, cache_dir: Path) -> None:
    """As `upgrade`, for callers that can wait: benchmarks."""
    for _ in upgrade(decoder, cache_dir):
        time.sleep(0.1)


def plan_of(decoder: Decoder) -> Plan | None:
    """The kernels of a decoder of int8 weights; None for other weights."""
    if not len(decoder.layers):  # transformers runs it
        return None
    projection = cast(DecoderLayer, decoder.layers[0]).attention.qkv
    return projection.plan if isinstance(projection, Int8Linear) else None


def prefill_interleaved(decoder: Decoder, plan: Plan, cache_dir: Path) -> None:
    """Has a small decoder multiply many rows with interleaved weights, where that is faster."""
    better = make_plan(step_shapes(decoder.config), cache_dir)
    if better.many != INTERLEAVED.name or plan.many == better.many:
        return
    for module in decoder.modules():
        if isinstance(module, Int8Linear) and module.plan is not None:
            module.use_for_many(INTERLEAVED)


def add_compiled_step(decoder: Decoder, measurements: Measurements, version: str) -> None:
    """Lets the decoder use a compiled step if that is faster than the step that it has.

    version: of the compiled code. Raises whatever numba raises.
    """
    compiled = CompiledStep(decoder)
    before = decoder.step
    costs_before = decoder.row_costs
    steps = {"torch": before, "compiled": compiled}

    def measure(way: str, counts: Sequence[int]) -> dict[int, float]:
        decoder.use_step(steps[way])
        return step_us(decoder, counts)

    subject = f"compiled {version} {shape_of(decoder)}"
    wanted = {"torch": [1], "compiled": step_rows(decoder, compiled.max_rows)}
    costs: Mapping[int, float] | None = None
    try:
        times = measurements.times(subject, wanted, measure)
        if times["compiled"][1] < times["torch"][1]:
            costs = relative_costs(times["compiled"])
    except Busy:
        costs = BY_THUMB
    finally:
        decoder.use_step(before, costs_before)
    if costs is not None:
        compiled.share()
        decoder.use_step(compiled, costs)


class CompiledStep:
    """Runs a small decoder of int8 weights: a model.decoder.decoder.FewRowsStep."""

    max_rows = FEW[-1]

    def __init__(self, decoder: Decoder) -> None:
        """Raises whatever numba raises."""
        from model.cpu import numba_step  # code_cache.use has to come first

        config = decoder.config
        self._code = numba_step
        self._vocabulary = config.vocab_size
        self._stacked: list[tuple[Int8Linear, Tensor]] = []  # each with its copy in the weights
        self._weights = self._weights_of(decoder)
        self._shape = numba_step.Shape(
            heads=config.num_heads,
            window=config.sliding_window or 0,
            activation=numba_step.ACTIVATIONS[config.activation],
            gated=config.gated_mlp,
            parallel=config.parallel_residual,
            rms=config.norm == "rms_norm",
            eps=config.norm_eps,
        )

    def __call__(
        self, ids: Tensor, cache: KVCache, keep: int, should_stop: ShouldStop | None
    ) -> Tensor:
        ask(should_stop)  # once: a small model's step is short
        numbers = ids.numpy()
        logits = np.empty((keep, self._vocabulary), np.float32)
        # The compiled code does not check where it reads and writes.
        if not 0 <= numbers.min() <= numbers.max() < self._vocabulary:
            raise IndexError("a token id is not in the vocabulary")
        if cache.length + len(numbers) > cache.capacity:
            raise IndexError("the cache has no room for the rows")
        keys = cache.keys.numpy()
        values = cache.values.numpy()
        self._code.forward(numbers, cache.length, self._shape, self._weights, keys, values, logits)
        cache.commit(len(numbers))
        return torch.from_numpy(logits)

    def share(self) -> None:
        """Makes the decoder's matrices views of the step's, so that nothing is kept twice."""
        for linear, rows in self._stacked:
            linear.share(rows)
        self._stacked.clear()

    def _weights_of(self, decoder: Decoder) -> Weights:
        embed = decoder.embed_tokens
        assert isinstance(embed, Int8Embedding)
        config = decoder.config
        head = embed.linear if config.tie_embeddings else decoder.head
        # A parallel layer has one norm for both, and the step does not read the second.
        mlp_norm = "attention_norm" if config.parallel_residual else "mlp_norm"
        residual = config.residual_multiplier
        return self._code.Weights(
            qkv=self._matrices(_each(decoder, "attention.qkv")),
            out=self._matrices(_each(decoder, "attention.out"), residual),
            up=self._matrices(_each(decoder, "mlp.up")),
            down=self._matrices(_each(decoder, "mlp.down"), residual),
            attention_norm=_norms(_each(decoder, "attention_norm")),
            mlp_norm=_norms(_each(decoder, mlp_norm)),
            gains=_gains(decoder),
            rotations=torch.view_as_real(decoder.rotations.pairs[:, 0]).contiguous().numpy(),
            last_norm=_norms([decoder.norm])[0],
            embed=self._matrices([embed.linear], config.embedding_multiplier),
            positions=_positions(decoder),
            head=self._matrices([head], 1 / config.logits_scaling),
        )

    def _matrices(self, modules: Sequence[nn.Module], factor: float = 1.0) -> Matrices:
        """The matrices of all layers, stacked; a single one as it is. factor: of their products."""
        linears = [cast(Int8Linear, module) for module in modules]
        weights = linears[0].matrix[None]
        if len(linears) > 1:
            weights = torch.stack([linear.matrix for linear in linears])
            self._stacked += zip(linears, weights, strict=True)
        scales = torch.stack([linear.scale for linear in linears])
        biases = torch.zeros_like(scales)
        for into, linear in zip(biases, linears, strict=True):
            if linear.bias is not None:
                into.copy_(linear.bias)
        return self._code.Matrices(
            weights.numpy(), (scales * factor).numpy(), (biases * factor).numpy()
        )


def _each(decoder: Decoder, path: str) -> list[nn.Module]:
    """The module at that path of every layer."""
    return [cast(DecoderLayer, layer).get_submodule(path) for layer in decoder.layers]


def _norms(modules: Sequence[nn.Module]) -> Floats:
    """(L, 2, hidden): weights and biases, which are zero for an RMSNorm."""
    norms = torch.zeros(len(modules), 2, len(cast(Norm, modules[0]).weight))
    for into, norm in zip(norms, modules, strict=True):
        into[0] = gains_of(cast(Norm, norm))
        if isinstance(norm, nn.LayerNorm):
            into[1] = norm.bias
    return norms.numpy()


def _gains(decoder: Decoder) -> Floats:
    """(L, H + K, D): of the norms on queries and keys; (L, 0, D) without these."""
    config = decoder.config
    if not config.qk_norm:
        return torch.empty(config.num_layers, 0, config.head_dim).numpy()
    gains = []
    for layer in decoder.layers:
        attention = cast(DecoderLayer, layer).attention
        queries = attention.q_norm.expand(config.num_heads, -1)
        gains.append(torch.cat((queries, attention.k_norm.expand(config.num_kv_heads, -1))))
    return torch.stack(gains).numpy()


def _positions(decoder: Decoder) -> Floats:
    """(positions, hidden): the learned vectors; (0, hidden) without these."""
    if decoder.config.rope is not None:
        return torch.empty(0, decoder.config.hidden_size).numpy()
    return decoder.embed_positions.numpy()
