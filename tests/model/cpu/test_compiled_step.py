"""The compiled step: close to the floats, each row as it is alone, and put in place only where it
helps."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import LoadedModel, load_model
from model.cpu import code_cache, compiled_step
from model.cpu.compiled_step import CompiledStep, add_compiled_step, upgrade
from model.cpu.kernel_choice import Plan
from model.cpu.measurements import Busy, Measurements
from model.cpu.quantized_linear import Int8Linear
from model.decoder.stopping import Cancelled
from tests.conftest import (
    GEMMA,
    GPT_BIGCODE,
    GRANITE,
    LLAMA,
    QWEN2,
    QWEN3,
    STABLELM,
    STARCODER2,
    write_model,
)
from tests.model.cpu.test_quantized_linear import INTEGER, distance
from tests.model.families.test_parity import (
    CASES,
    LENGTH,
    WINDOW,
    WINDOW_IN_ALL_LAYERS,
    logits_of,
    random_ids,
)
from tests.model.toys import load

pytestmark = [
    pytest.mark.xdist_group("compiled"),  # one process compiles, for all of them
    pytest.mark.usefixtures("code"),
]

FAMILIES = {
    "starcoder2": STARCODER2,
    "window": STARCODER2 | {"sliding_window": WINDOW},
    "untied": STARCODER2 | {"tie_word_embeddings": False, "hidden_act": "gelu"},
    "stablelm": STABLELM | {"qk_layernorm": True},
    "qwen2": QWEN2 | WINDOW_IN_ALL_LAYERS,
    "llama": LLAMA | {"head_dim": 16},
    "llama, all biases": LLAMA | {"attention_bias": True, "mlp_bias": True},
    "qwen3": QWEN3,
    "granite": GRANITE | {"attention_bias": True, "mlp_bias": True},
    "gemma": GEMMA,
    "gpt_bigcode": GPT_BIGCODE,
}


def load_small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    monkeypatch.setattr(
        "model.cpu.quantized_linear.make_plan",
        lambda shapes, folder: Plan(INTEGER, INTEGER, 16, small=True),
    )
    return load_model(folder, "cpu", quantization="int8")


def load_compiled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    m = load_small(folder, monkeypatch)
    m.decoder.use_step(CompiledStep(m.decoder))
    return m


@torch.inference_mode()
def in_steps(
    m: LoadedModel, ids: list[int], start: int, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of all ids after the first `start`, and the cache."""
    cache = m.decoder.new_cache()
    if start:
        m.decoder(torch.tensor([ids[:start]]), cache=cache)
    logits = [
        m.decoder(torch.tensor([ids[i : i + rows]]), cache=cache).logits[0]
        for i in range(start, len(ids), rows)
    ]
    return torch.cat(logits), torch.stack(
        (cache.keys[:, :, : len(ids)], cache.values[:, :, : len(ids)])
    )


@pytest.mark.parametrize("config", CASES)
def test_it_is_close_to_float32(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ids = write_model(tmp_path, config), random_ids(LENGTH)
    expected = logits_of(load(folder), ids)
    m = load_compiled(folder, monkeypatch)
    assert (
        distance(in_steps(m, ids, 0, 5)[0], expected) < 0.06
    )  # only weights are rounded: half of what int8 may
    assert (
        distance(in_steps(m, ids, 20, 1)[0], expected[20:]) < 0.12
    )  # after a prefill, which rounds activations


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_a_row_comes_out_as_it_does_alone(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, in logits and cache: speculative decoding then says what plain decoding says."""
    m = load_compiled(write_model(tmp_path, config), monkeypatch)
    alone = in_steps(m, random_ids(LENGTH), 0, 1)
    for rows in (2, 3, 7, 16):
        for ours, expected in zip(in_steps(m, random_ids(LENGTH), 0, rows), alone, strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("rms", [False, True], ids=["layer norm", "RMS norm"])
def test_a_norm_is_of_the_kind_that_is_asked_for(rms: bool) -> None:
    """On whole rows, and on queries and keys."""
    from model.cpu.numba_step import gain, norm

    generator = torch.Generator().manual_seed(6)
    x = torch.randn(3, 40, generator=generator) + 0.5
    weight = torch.randn(40, generator=generator)
    expected = torch.layer_norm(x, (40,), weight, None, 1e-3)
    if rms:
        expected = torch.rms_norm(x, (40,), weight, 1e-3)
    out = np.empty((3, 40), np.float32)
    eps = np.float32(1e-3)
    norm(x.numpy(), torch.stack((weight, torch.zeros(40))).numpy(), rms, eps, out)
    torch.testing.assert_close(torch.from_numpy(out), expected)
    for row in x:
        gain(row.numpy(), weight.numpy(), rms, eps)
    torch.testing.assert_close(x, expected)


def test_the_largest_values_do_not_overflow() -> None:
    """Rows of equal weights, the widest there are: every product has the largest size, and the same
    sign."""
    from model.cpu.numba_step import Matrices, product

    for width in (512, 513, 12288, 49152):
        matrices = Matrices(
            np.full((1, 2, width), -127, np.int8),
            np.ones((1, 2), np.float32),
            np.zeros((1, 2), np.float32),
        )
        x, out = np.full((1, width), 3.0, np.float32), np.empty((1, 2), np.float32)
        product(x, matrices, 0, out, False)
        assert out == pytest.approx(-127 * 3.0 * width, rel=1e-3)


def test_matrices_are_kept_once_and_serve_prefills_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    m, ids = load_small(write_model(tmp_path, STARCODER2), monkeypatch), random_ids(LENGTH)
    before = logits_of(m, ids)
    step = CompiledStep(m.decoder)
    step.share()
    assert torch.equal(logits_of(m, ids), before)
    matrices = [
        module.matrix for module in m.decoder.layers.modules() if isinstance(module, Int8Linear)
    ]
    assert len(matrices) == 8
    assert len({matrix.untyped_storage().data_ptr() for matrix in matrices}) == 4


def test_it_can_be_cancelled_and_takes_no_ids_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = load_compiled(write_model(tmp_path, STARCODER2), monkeypatch)
    cache = m.decoder.new_cache()
    with pytest.raises(Cancelled):
        m.decoder(torch.tensor([[5]]), cache=cache, should_stop=lambda: True)
    for wrong in (-1, STARCODER2["vocab_size"]):
        with pytest.raises(IndexError, match="vocabulary"):
            m.decoder(torch.tensor([[5, wrong]]), cache=cache)
    assert cache.length == 0


def test_numbers_that_are_none_are_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken model does not write text with an air of confidence."""
    for broken in (float("nan"), float("inf")):
        m = load_small(write_model(tmp_path, STARCODER2), monkeypatch)
        m.decoder.norm.weight[3] = broken
        m.decoder.use_step(CompiledStep(m.decoder))
        assert in_steps(m, random_ids(3), 0, 1)[0].isnan().all()


@pytest.mark.parametrize(("us", "better"), [(50.0, True), (200.0, False)])
def test_it_is_used_where_it_is_faster(
    us: float, better: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = load_small(write_model(tmp_path, STARCODER2), monkeypatch)
    decoder, before, costs = m.decoder, m.decoder.step, m.decoder.row_costs

    def measured(_: object, counts: Sequence[int]) -> dict[int, float]:
        one = us if isinstance(decoder.step, CompiledStep) else 100.0
        return {rows: one * rows for rows in counts}

    monkeypatch.setattr(compiled_step, "step_us", measured)
    monkeypatch.setattr("model.cpu.measurements.is_quiet", lambda: True)
    add_compiled_step(decoder, Measurements(tmp_path), "1")
    assert isinstance(decoder.step, CompiledStep) == better
    assert better or (decoder.step, decoder.row_costs) == (before, costs)
    assert not better or decoder.row_costs == {1: 1, 2: 2, 4: 4, 8: 8, 16: 16}
    # What was measured is remembered.
    monkeypatch.setattr(compiled_step, "step_us", None)
    decoder.use_step(before)
    add_compiled_step(decoder, Measurements(tmp_path), "1")
    assert isinstance(decoder.step, CompiledStep) == better


def test_on_a_busy_machine_it_is_used_unmeasured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = load_small(write_model(tmp_path, STARCODER2), monkeypatch)

    def refuse(*_: object) -> None:
        raise Busy

    monkeypatch.setattr("model.cpu.measurements.Measurements.times", refuse)
    add_compiled_step(m.decoder, Measurements(None), "1")
    assert isinstance(m.decoder.step, CompiledStep)
    assert m.decoder.row_costs == compiled_step.BY_THUMB


class Compiler:
    """A process that compiles until it is told to end."""

    returncode: int | None = None

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.returncode is not None, "it was not waited for"

    def poll(self) -> int | None:
        return self.returncode


@pytest.mark.parametrize(("status", "intact"), [(0, True), (1, False), (0, False)])
def test_an_upgrade_waits_for_the_code(
    status: int, intact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    m, compiler, added = load_small(write_model(tmp_path, STARCODER2), monkeypatch), Compiler(), []
    monkeypatch.setattr(code_cache, "start", lambda folder, awaited: compiler)
    monkeypatch.setattr(
        code_cache, "is_intact", lambda folder: compiler.returncode is not None and intact
    )
    monkeypatch.setattr(code_cache, "use", lambda folder: None)
    monkeypatch.setattr(code_cache, "load_step", lambda: None)
    monkeypatch.setattr(compiled_step.INTERLEAVED, "load", lambda folder: None)
    monkeypatch.setattr(
        compiled_step,
        "add_compiled_step",
        lambda decoder, measurements, version: added.append(decoder),
    )
    monkeypatch.setattr(
        compiled_step,
        "prefill_interleaved",
        lambda decoder, plan, cache_dir: added.append(decoder),
    )
    steps = upgrade(m.decoder, tmp_path)
    for _ in range(3):
        next(steps)
    compiler.returncode = status
    assert len(list(steps)) == 4 * intact  # in between, whoever has asked has his turn
    assert added == [m.decoder] * 2 * intact


def test_a_compiler_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = load_small(write_model(tmp_path, STARCODER2), monkeypatch)
    compiler = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    monkeypatch.setattr(code_cache, "start", lambda folder, awaited: compiler)
    monkeypatch.setattr(compiled_step, "PATIENCE_S", 0.2)
    for _ in upgrade(m.decoder, tmp_path):
        time.sleep(0.05)
    assert compiler.returncode == -signal.SIGKILL


def test_without_numba_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = load_small(write_model(tmp_path, STARCODER2), monkeypatch)
    before = m.decoder.step
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert list(upgrade(m.decoder, tmp_path)) == []
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "0")

    def missing(name: str) -> str:
        raise code_cache.PackageNotFoundError(name)

    monkeypatch.setattr(code_cache, "version", missing)
    assert list(upgrade(m.decoder, tmp_path)) == []
    assert m.decoder.step is before


def test_models_with_one_form_of_their_weights_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path, STARCODER2)
    monkeypatch.setattr(code_cache, "start", lambda folder, awaited: pytest.fail("compiled"))
    assert list(upgrade(load(folder).decoder, tmp_path)) == []
    monkeypatch.setattr(
        "model.cpu.quantized_linear.make_plan", lambda shapes, folder: Plan(INTEGER, INTEGER, 16)
    )
    assert list(upgrade(load_model(folder, "cpu", quantization="int8").decoder, tmp_path)) == []


def test_a_measurement_that_fails_leaves_the_step_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = load_small(write_model(tmp_path, STARCODER2), monkeypatch)
    before, costs = m.decoder.step, m.decoder.row_costs

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("model.cpu.measurements.is_quiet", lambda: True)
    monkeypatch.setattr(compiled_step, "step_us", fail)
    with pytest.raises(MemoryError):
        add_compiled_step(m.decoder, Measurements(None), "1")
    assert (m.decoder.step, m.decoder.row_costs) == (before, costs)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)
def test_every_family_runs_what_was_compiled_for_the_toy(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the engine would compile, for seconds and into a folder that is then in doubt."""
    m = load_compiled(write_model(tmp_path, config), monkeypatch)
    from model.cpu.numba_step import forward, toy

    forward(*toy())
    before = list(forward.signatures)
    in_steps(m, random_ids(LENGTH), 3, 4)
    assert forward.signatures == before
    assert len(before) == 1
