"""An engine's upgrade: machine code is waited for between requests, and nothing depends on it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from model import LoadedModel, load_model
from model.cpu import code_cache, upgrade
from model.cpu.blocks.decoder_step import BlockStep, is_of_blocks
from model.cpu.blocks.kernel import PRODUCT
from tests.conftest import STARCODER2, write_model
from tests.model.cpu.test_quantized_linear import distance
from tests.model.families.test_parity import LENGTH, logits_of, random_ids
from tests.model.toys import load

pytestmark = pytest.mark.xdist_group("compiled")  # one process compiles, for all of them


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """A small model in blocks, before there is machine code."""
    monkeypatch.setattr("model.loading.can_run", lambda folder: True)
    monkeypatch.setattr(PRODUCT, "_code", None)
    return load_model(write_model(tmp_path / "toy", STARCODER2), "cpu", quantization="int8")


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
    status: int, intact: bool, model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, added = Compiler(), []
    monkeypatch.setattr(code_cache, "start", lambda folder, awaited: compiler)
    monkeypatch.setattr(
        code_cache, "is_intact", lambda folder: compiler.returncode is not None and intact
    )
    monkeypatch.setattr(code_cache, "use", lambda folder: None)
    monkeypatch.setattr(PRODUCT, "load", lambda folder: None)
    monkeypatch.setattr(upgrade, "add_block_step", lambda decoder, folder: added.append(decoder))
    steps = upgrade.upgrade(model.decoder, tmp_path)
    for _ in range(3):
        next(steps)
    compiler.returncode = status
    assert len(list(steps)) == 2 * intact  # in between, whoever has asked has his turn
    assert added == [model.decoder] * intact


def test_a_small_model_answers_before_and_after(
    model: LoadedModel, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From floats, which go when there is machine code."""
    ids = random_ids(LENGTH)
    assert is_of_blocks(model.decoder)
    before = logits_of(model, ids)
    matrix = model.decoder.layers[0].mlp.up
    assert distance(before, logits_of(load(tmp_path / "toy"), ids)) < 0.12
    assert matrix._floats is not None
    monkeypatch.setattr(code_cache, "code_folder", lambda folder: code)
    monkeypatch.setattr(code_cache, "is_intact", lambda folder: True)
    monkeypatch.setattr("model.cpu.measurements.is_quiet", lambda: False)
    upgrade.upgrade_now(model.decoder, tmp_path)
    assert isinstance(model.decoder.step, BlockStep)
    assert distance(logits_of(model, ids), before) < 0.05
    assert matrix._floats is None
    with torch.inference_mode():
        cache = model.decoder.new_cache()
        rows = torch.tensor([ids]).split(5, dim=1)
        steps = torch.cat([model.decoder(part, cache=cache).logits[0] for part in rows])
    assert distance(steps, before) < 0.05


def test_a_compiler_that_does_not_end_is_ended(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    monkeypatch.setattr(code_cache, "start", lambda folder, awaited: compiler)
    monkeypatch.setattr(upgrade, "PATIENCE_S", 0.2)
    for _ in upgrade.upgrade(model.decoder, tmp_path):
        time.sleep(0.05)
    assert compiler.returncode == -signal.SIGKILL
    assert model.decoder.step is None


def test_without_numba_nothing_changes(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert list(upgrade.upgrade(model.decoder, tmp_path)) == []
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "0")

    def missing(name: str) -> str:
        raise code_cache.PackageNotFoundError(name)

    monkeypatch.setattr(code_cache, "version", missing)
    assert list(upgrade.upgrade(model.decoder, tmp_path)) == []
    assert model.decoder.step is None


def test_other_weights_are_left_alone(
    starcoder2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_cache, "start", lambda folder, awaited: pytest.fail("compiled"))
    for quantization in (None, "int8"):  # rows of int8 without a cache folder
        decoder = load_model(starcoder2_folder, "cpu", quantization=quantization).decoder
        assert list(upgrade.upgrade(decoder, tmp_path)) == []


def test_a_measurement_that_fails_leaves_a_step(
    model: LoadedModel, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which drafts nothing, as nobody knows what its rows cost."""

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(code_cache, "code_folder", lambda folder: code)
    monkeypatch.setattr(code_cache, "is_intact", lambda folder: True)
    monkeypatch.setattr("model.cpu.measurements.is_quiet", lambda: True)
    monkeypatch.setattr("model.cpu.step_costs.step_us", fail)
    with pytest.raises(MemoryError):
        upgrade.upgrade_now(model.decoder, tmp_path)
    assert isinstance(model.decoder.step, BlockStep)
    assert not model.decoder.row_costs
