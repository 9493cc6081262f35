from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training import checkpoint
from training.checkpoint import BEFORE, NEWEST, PARTIAL, load, save


def state(step: int) -> dict[str, object]:
    return {"step": step, "model": {"w": torch.full((1000,), float(step))}}


def test_the_newest_is_loaded_and_the_one_before_is_kept(tmp_path: Path) -> None:
    assert load(tmp_path) is None
    for step in (1, 2, 3):
        assert save(tmp_path, state(step))
    loaded = load(tmp_path)
    assert loaded is not None and loaded["step"] == 3 and loaded["model"]["w"].eq(3).all()
    (tmp_path / NEWEST).unlink()
    before = load(tmp_path)
    assert before is not None and before["step"] == 2


@pytest.mark.parametrize("keep", [0, 10, 2000])
def test_one_cut_short_gives_way_to_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keep: int
) -> None:
    for step in (1, 2):
        save(tmp_path, state(step))
    whole = (tmp_path / NEWEST).read_bytes()
    (tmp_path / NEWEST).write_bytes(whole[:keep])
    loaded = load(tmp_path)
    assert loaded is not None and loaded["step"] == 1
    assert "cannot be read" in capsys.readouterr().out
    (tmp_path / BEFORE).write_bytes(b"")
    with pytest.raises(SystemExit, match="No checkpoint in"):
        load(tmp_path)


def test_a_full_disk_leaves_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, state(1))

    def full(content: object, file: object) -> None:
        file.write(b"half of it")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    assert not save(tmp_path, state(2))
    assert "No space left" in capsys.readouterr().out
    assert not (tmp_path / PARTIAL).exists()
    loaded = load(tmp_path)
    assert loaded is not None and loaded["step"] == 1
