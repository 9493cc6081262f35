from __future__ import annotations

import json
from pathlib import Path

from training.plot import main


def test_a_log_becomes_a_picture(tmp_path: Path) -> None:
    lines = [{"step": n, "tokens": n * 4096, "loss": 9 - n / 10, "tokens_per_s": 1} for n in range(0, 40, 10)]
    lines += [{"step": 30, "tokens": 30 * 4096, "held_out_bits_per_byte": 2.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    main(tmp_path, tmp_path / "out.svg")
    drawn = (tmp_path / "out.svg").read_text()
    assert drawn.startswith("<?xml") and "million tokens" in drawn
