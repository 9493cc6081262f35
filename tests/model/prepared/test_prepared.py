"""Prepared weights: the same model after them as before, and never a worse one than without."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model import LoadedModel, load_model
from model.decoder.decoder import Decoder
from model.engine import loading
from model.engine.http.routes import engine_status
from model.engine.loading import keep_weights, load_engine
from model.engine.options import EngineOptions, Launch
from model.errors import ModelError
from model.prepared.files import prepared_files, prepared_folder, remove_prepared
from model.prepared.weights import Stopped, tensors_of
from model.weights.checkpoint import Checkpoint
from tests.conftest import (
    GEMMA,
    GPT_BIGCODE,
    GRANITE,
    QWEN2,
    QWEN3,
    STABLELM,
    STARCODER2,
    write_model,
)
from tests.model.families.test_parity import LENGTH, logits_of, random_ids
from tests.model.folders import Weights, rewrite

FAMILIES = {
    "starcoder2": STARCODER2,
    "untied": STARCODER2 | {"tie_word_embeddings": False},
    "stablelm": STABLELM,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "granite": GRANITE,
    "gemma": GEMMA,
    "gpt_bigcode": GPT_BIGCODE,
}
IDS = random_ids(LENGTH)
PART = "0.q8_0"  # of a matrix in blocks: from row 0


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toys are treated as large models, on a machine that can compile."""
    monkeypatch.setattr("model.loading.can_run", lambda folder: True)
    monkeypatch.setattr("model.loading.can_wait", lambda config: False)
    # A process has machine code of one cache folder, and each test has its own.
    monkeypatch.setattr("model.cpu.upgrade.upgrade_now", lambda decoder, folder: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", STARCODER2)


def start(folder: Path, cache_dir: Path) -> LoadedModel:
    """As an engine starts; and as it goes on once it is idle."""
    m = load_model(folder, "cpu", quantization="int8", prepared=cache_dir)
    assert m.prepared is not None
    if not m.prepared.restored:
        m.prepared.write(m.decoder, lambda: None)
    return m


def is_restored(folder: Path, cache_dir: Path) -> bool:
    m = load_model(folder, "cpu", quantization="int8", prepared=cache_dir)
    assert m.prepared is not None
    return m.prepared.restored


def only_file(cache_dir: Path) -> Path:
    (path,) = prepared_folder(cache_dir).iterdir()
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_the_second_start_reads_no_file_of_the_model_and_computes_the_same(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "model", FAMILIES[family])
    first = start(folder, tmp_path)
    expected = logits_of(first, IDS)

    def fill(*arguments: object) -> None:
        raise AssertionError("it reads the model's own files")

    monkeypatch.setattr(Checkpoint, "fill", fill)
    second = start(folder, tmp_path)
    assert torch.equal(logits_of(second, IDS), expected)
    written = [token.id for token in first.generate(IDS, max_new_tokens=8)]
    assert [token.id for token in second.generate(IDS, max_new_tokens=8)] == written
    for (name, one), other in zip(
        tensors_of(first.decoder).items(), tensors_of(second.decoder).values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_matrices_are_mapped_at_whole_lines_of_the_cache(folder: Path, tmp_path: Path) -> None:
    start(folder, tmp_path)
    m = start(folder, tmp_path)
    places = Path("/proc/self/maps")
    for name, tensor in tensors_of(m.decoder).items():
        if name.endswith(PART):
            assert tensor.data_ptr() % 64 == 0, name
    if places.exists():
        assert str(only_file(tmp_path)) in places.read_text()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Changes the header; what follows stays."""

    def edited(path: Path) -> None:
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:end])
        change(header)
        encoded = json.dumps(header).encode()
        path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[end:])

    return edited


def name_in(header: dict[str, Any]) -> str:
    """The name of a tensor that belongs to a matrix."""
    return next(name for name in header if name.endswith(f"mlp.up.{PART}"))


def reshape(header: dict[str, Any]) -> None:
    """The same bytes as a narrower matrix: machine code would read beyond the end of its inputs."""
    entry = header[name_in(header)]
    entry["shape"] = [*entry["shape"], 1]


def retype(header: dict[str, Any]) -> None:
    entry = header[name_in(header)]
    entry["dtype"] = "I32"


def rename(header: dict[str, Any]) -> None:
    header["other"] = header.pop(name_in(header))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "a flipped bit": flip,
    "no header": lambda path: path.write_bytes(b"x" * 1000),
    "a header of 2^60 bytes": lambda path: path.write_bytes((2**60).to_bytes(8, "little") * 9),
    "another shape": edit(reshape),
    "another type": edit(retype),
    "another name": edit(rename),
    "no sums": edit(lambda header: header["__metadata__"].pop("sums")),
    "no metadata": edit(lambda header: header.pop("__metadata__")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_deleted_and_written_again(
    damage: str, folder: Path, tmp_path: Path
) -> None:
    expected = logits_of(start(folder, tmp_path), IDS)
    path = only_file(tmp_path)
    DAMAGE[damage](path)
    m = load_model(folder, "cpu", quantization="int8", prepared=tmp_path)
    assert m.prepared is not None
    assert not m.prepared.restored
    assert not path.exists()
    assert torch.equal(logits_of(m, IDS), expected)
    m.prepared.write(m.decoder, lambda: None)
    assert is_restored(folder, tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no modes")
def test_a_file_that_others_may_have_written_is_not_used(folder: Path, tmp_path: Path) -> None:
    start(folder, tmp_path)
    path = only_file(tmp_path)
    path.chmod(0o666)
    assert not is_restored(folder, tmp_path)
    path.chmod(0o600)
    assert is_restored(folder, tmp_path)
    path.parent.chmod(0o777)
    assert not is_restored(folder, tmp_path)
    path.parent.chmod(0o700)
    elsewhere = path.rename(tmp_path / "elsewhere")
    path.symlink_to(elsewhere)
    assert not is_restored(folder, tmp_path)
    path.unlink()
    os.mkfifo(path)
    assert not is_restored(folder, tmp_path)


def test_a_changed_model_is_prepared_anew_in_place_of_the_old_one(
    folder: Path, tmp_path: Path
) -> None:
    start(folder, tmp_path)
    old = only_file(tmp_path)
    shutil.rmtree(folder)
    write_model(folder, STARCODER2, seed=1)
    expected = logits_of(load_model(folder, "cpu", quantization="int8"), IDS)
    assert torch.equal(logits_of(start(folder, tmp_path), IDS), expected)
    assert only_file(tmp_path) != old
    assert torch.equal(logits_of(start(folder, tmp_path), IDS), expected)


def test_files_are_listed_removed_and_forgotten(folder: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other model", QWEN2)
    gone = write_model(tmp_path / "gone", QWEN2)
    for each in (folder, other, gone):
        start(each, tmp_path)
    listed = {file.model: file for file in prepared_files(tmp_path)}
    assert set(listed) == {folder, other, gone}
    assert listed[other].path.name.startswith("other-model-")
    assert listed[other].bytes == listed[other].path.stat().st_size
    (prepared_folder(tmp_path) / "strange.safetensors").write_bytes(b"\xff" * 20)
    assert len(list(prepared_files(tmp_path))) == 3
    assert remove_prepared(tmp_path, folder) == listed[folder].bytes
    assert remove_prepared(tmp_path, folder) == 0
    assert is_restored(other, tmp_path)
    shutil.rmtree(gone)
    os.utime(listed[other].path, (0, 0))  # not used for long
    unfinished = prepared_folder(tmp_path) / "x.tmp"
    unfinished.touch()
    os.utime(unfinished, (0, 0))
    start(folder, tmp_path)
    assert [file.model for file in prepared_files(tmp_path)] == [folder]
    assert not unfinished.exists()
    start(other, tmp_path)
    os.utime(next(file.path for file in prepared_files(tmp_path) if file.model == folder), (0, 0))
    m = start(other, tmp_path)
    assert m.prepared is not None and m.prepared.restored
    m.prepared.prune()
    assert [file.model for file in prepared_files(tmp_path)] == [other]


def test_a_use_keeps_a_file_from_being_forgotten(folder: Path, tmp_path: Path) -> None:
    start(folder, tmp_path)
    path = only_file(tmp_path)
    os.utime(path, (0, 0))
    assert is_restored(folder, tmp_path)
    assert path.stat().st_mtime > 10**9


def test_what_is_of_no_use_makes_place_before_a_file_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(folder, tmp_path)
    monkeypatch.setattr("model.prepared.weights.program_digest", lambda: "of a newer fimls")

    def disk_usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=0 if list(path.iterdir()) else 2**40)

    monkeypatch.setattr("model.prepared.weights.shutil.disk_usage", disk_usage)
    start(folder, tmp_path)
    assert is_restored(folder, tmp_path)
    assert only_file(tmp_path)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_folder_that_cannot_be_changed_stops_no_start(
    damaged: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits_of(start(folder, tmp_path), IDS)
    if damaged:
        flip(only_file(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr("model.prepared.weights.os.utime", refuse)
        patch.setattr(Path, "unlink", refuse)
        m = load_model(folder, "cpu", quantization="int8", prepared=tmp_path)
    assert m.prepared is not None
    assert m.prepared.restored != damaged
    assert torch.equal(logits_of(m, IDS), expected)


def test_what_is_given_up_or_fails_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = load_model(folder, "cpu", quantization="int8", prepared=tmp_path)
    assert m.prepared is not None

    def stop() -> None:
        if any(prepared_folder(tmp_path).iterdir()):  # it is being written
            raise Stopped

    with pytest.raises(Stopped):
        m.prepared.write(m.decoder, stop)
    assert list(prepared_folder(tmp_path).iterdir()) == []

    def full() -> None:
        if any(prepared_folder(tmp_path).iterdir()):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        m.prepared.write(m.decoder, full)
    assert list(prepared_folder(tmp_path).iterdir()) == []
    usage = SimpleNamespace(free=2**30)
    monkeypatch.setattr("model.prepared.weights.shutil.disk_usage", lambda path: usage)
    m.prepared.write(m.decoder, lambda: None)
    assert list(prepared_folder(tmp_path).iterdir()) == []
    assert not is_restored(folder, tmp_path)


def test_small_models_and_other_weights_are_not_prepared(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_model(folder, "cpu", prepared=tmp_path).prepared is None  # floats
    monkeypatch.setattr("model.loading.can_wait", lambda config: True)
    assert load_model(folder, "cpu", quantization="int8", prepared=tmp_path).prepared is None
    monkeypatch.setattr("model.loading.can_run", lambda folder: False)
    monkeypatch.setattr("model.loading.can_wait", lambda config: False)
    assert load_model(folder, "cpu", quantization="int8", prepared=tmp_path).prepared is None


def test_an_engine_keeps_its_weights_once_no_request_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "QUIET_S", 0.01)
    monkeypatch.setattr(loading, "LOWEST", os.getpriority(os.PRIO_PROCESS, 0))
    options = EngineOptions(cache_disk=0)
    launch = Launch(model=str(folder), cache_folder=str(tmp_path / "cache"), options=options)
    for restored in (False, True):
        engine = load_engine(launch, lambda share: None)
        assert engine_status(engine)["prepared"] == restored
        keep_weights(engine)
        assert only_file(tmp_path / "cache")
    engine.close()
    only_file(tmp_path / "cache").unlink()
    assert engine.model.prepared is not None
    engine.model.prepared.restored = False
    keep_weights(engine)  # it ends: nothing is begun
    assert list(prepared_files(tmp_path / "cache")) == []
    off = replace(launch, options=replace(options, cache_weights=False))
    assert load_engine(off, lambda share: None).model.prepared is None


@pytest.mark.parametrize("fails", [False, True])
def test_a_running_decoder_takes_over_what_was_written(
    fails: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = start(folder, tmp_path)
    assert m.prepared is not None
    expected = logits_of(m, IDS)
    filled = {name: tensor.data_ptr() for name, tensor in tensors_of(m.decoder).items()}
    steps = []

    def add_step(decoder: Decoder, cache_dir: Path) -> None:
        steps.append(cache_dir)
        if fails:
            raise OSError("no step")

    monkeypatch.setattr("model.prepared.weights.add_block_step", add_step)
    monkeypatch.setattr(type(m.decoder), "step", "reads weights by their addresses")
    if fails:
        with pytest.raises(OSError, match="no step"):
            list(m.prepared.take_over(m.decoder))
    else:
        list(m.prepared.take_over(m.decoder))
    assert steps == [tmp_path]
    places = {name: tensor.data_ptr() for name, tensor in tensors_of(m.decoder).items()}
    assert all((places[name] == filled[name]) == fails for name in filled)
    assert torch.equal(logits_of(m, IDS), expected)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), TypeError("a fault")])
def test_a_full_disk_costs_an_engine_nothing_but_a_line_in_the_log(
    error: Exception,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(loading, "QUIET_S", 0.01)
    monkeypatch.setattr(loading, "LOWEST", os.getpriority(os.PRIO_PROCESS, 0))
    launch = Launch(model=str(folder), cache_folder=str(tmp_path / "cache"))
    engine = load_engine(launch, lambda share: None)

    def full(path: Path) -> None:
        raise error

    monkeypatch.setattr("model.prepared.weights.own_private_folder", full)
    keep_weights(engine)
    assert "the weights are not prepared" in caplog.text
    assert str(error) in caplog.text


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_nothing_is_kept_of_bad_weights(number: float, folder: Path, tmp_path: Path) -> None:
    start(folder, tmp_path)
    good = only_file(tmp_path)

    def spoil(weights: Weights) -> None:
        weights["model.layers.0.mlp.c_fc.weight"][3, 3] = number

    rewrite(folder, spoil)
    launch = Launch(model=str(folder), cache_folder=str(tmp_path))
    for load in (lambda: start(folder, tmp_path), lambda: load_engine(launch, lambda share: None)):
        with pytest.raises(ModelError, match=r"c_fc\.weight holds numbers that are not finite"):
            load()
    assert only_file(tmp_path) == good
