from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.plot import main, parse


def test_a_log_becomes_a_picture(tmp_path: Path) -> None:
    lines = [
        {"step": n, "tokens": n * 4096, "loss": 9 - n / 10, "tokens_per_s": 1}
        for n in range(0, 40, 10)
    ]
    lines += [{"step": 30, "tokens": 30 * 4096, "held_out_bits_per_byte": 2.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    main(tmp_path, tmp_path / "out.svg")
    drawn = (tmp_path / "out.svg").read_text()
    assert drawn.startswith("<?xml") and "million tokens" in drawn


def test_a_run_without_a_whole_log_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"holds no log\.jsonl: make train RUN="):
        main(tmp_path / "none", tmp_path / "out.svg")
    (tmp_path / "log.jsonl").write_text('{"step": 1, "tok')
    with pytest.raises(SystemExit, match=r"log\.jsonl cannot be read"):
        main(tmp_path, tmp_path / "out.svg")


def test_arguments_that_are_missing_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["a_run"])
    assert "the following arguments are required: out" in capsys.readouterr().err
    assert vars(parse(["a", "b.svg"])) == {"run": Path("a"), "out": Path("b.svg")}
