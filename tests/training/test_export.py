"""A checkpoint becomes a model folder, or one line says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from model.weights.files import INT8_ROWS
from training import checkpoint
from training.export import main, parse
from training.network import ROPE_THETA, Network, Shape

SHAPE = Shape(320, 32, 64, 1, 4, 2, 64)


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copyfile(data / "tokenizer.json", folder / "tokenizer.json")
    for step in (1, 2):
        state = {
            "model": Network(SHAPE).state_dict(),
            "shape": vars(SHAPE),
            "step": step,
            "tokens": 1,
            "bits": 1.0,
        }
        assert checkpoint.save(folder, state)
    return folder


def test_a_broken_checkpoint_gives_way_to_the_one_before(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / checkpoint.NEWEST).write_bytes(b"cut short")
    main(**vars(parse([str(run), str(tmp_path / "out")])))
    assert "\nstep 1, " in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": INT8_ROWS}
    assert config["rope_parameters"]["rope_theta"] == ROPE_THETA


@pytest.mark.parametrize("missing", ["tokenizer.json", checkpoint.NEWEST])
def test_what_is_missing_is_named_and_nothing_is_written(
    run: Path, tmp_path: Path, missing: str
) -> None:
    (run / missing).unlink()
    (run / checkpoint.BEFORE).unlink()
    with pytest.raises(
        SystemExit, match=r"run holds no (tokenizer\.json|checkpoint): make train RUN="
    ):
        main(run, tmp_path / "out", quantized=True)
    assert not (tmp_path / "out").exists()


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([])
    assert "the following arguments are required: run, out" in capsys.readouterr().err
    assert parse(["a", "b"]).quantized and not parse(["a", "b", "--float32"]).quantized
