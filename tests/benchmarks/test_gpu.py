"""benchmarks.gpu on the CPU at toy shapes: every part runs, its figures hang together; without a
device it says so."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Bench, distance
from benchmarks.gpu_models import SHAPES, cache_bytes, make_decoder, weight_bytes
from model.decoder.config import DecoderConfig
from model.families.native.starcoder2 import decoder_config
from tests.conftest import ROOT, STARCODER2

CPU = torch.device("cpu")
TOY = STARCODER2 | {"max_position_embeddings": 512, "sliding_window": 32}
HERE = [part for part in gpu.PARTS if part != "start"]  # which begins a process with a device


def parameters(config: DecoderConfig) -> int:
    with torch.device("meta"):
        from model.decoder.decoder import Decoder
        from model.decoder.factory import Factory

        return sum(
            p.numel()
            for p in Decoder(config, Factory(torch.device("meta"), torch.bfloat16)).parameters()
        )


@pytest.mark.slow
def test_every_part_gives_figures(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    bench = Bench(CPU, torch.float32, {"toy": TOY}, 64)
    text = gpu.run(bench, HERE, 5, tmp_path, "a toy")
    assert "Left out" not in text
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert (tmp_path / "gpu.md").read_text() == text
    assert [name for name in found if name in HERE] == HERE
    for part in HERE:
        for row in found[part]:
            assert all(v > 0 for v in row.values() if isinstance(v, float)), row
    for row in found["decode"]:
        assert row["share of the floor"] == pytest.approx(
            row["ours, tokens/s"] / row["floor, tokens/s"]
        )
    for row in found["rows"]:
        assert float(row["distance from plain"]) < 1e-4
        assert row["recorded = as it is"] == "True"
    assert {row["key"] for row in found["keys"]} == {"first", "typed"}
    assert [row["weights"] for row in found["bits"]] == ["bfloat16", "8 bits", "4 bits"]
    plain, eight, four = (row["MB"] for row in found["bits"])
    assert plain > eight > four
    near, far = (float(row["distance of logits"]) for row in found["bits"][1:])
    assert 0 < near < far < 0.5
    assert [row["cache"] for row in found["peer"]] == ["dynamic"] * 3 + ["static"] * 2
    assert all(math.isfinite(row["ours / theirs"]) for row in found["peer"])


@pytest.mark.slow
def test_what_would_begin_too_late_or_cannot_run_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(CPU, torch.float32, {"toy": TOY}, 64)
    text = gpu.run(bench, ["prefill"], 0, tmp_path, "a toy")
    assert "Left out: prefill at toy, for it would begin after 0.00 minutes." in text
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    text = gpu.run(bench, ["bits", "prefill"], 5, tmp_path, "a toy")
    assert "Left out: bits at toy: Weights of 8 or 4 bits need the package bitsandbytes" in text
    assert "## prefill" in text


def test_without_a_device_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, "-m", "benchmarks.gpu"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, len(run.stderr.splitlines())) == (2, 1)


def test_the_shapes_are_those_of_the_released_models() -> None:
    for name, millions in (("3b", 3030.4), ("7b", 7173.9)):
        config = decoder_config(SHAPES[name])
        assert parameters(config) / 1e6 == pytest.approx(millions, abs=0.1)
    # The card's figure, less the tables of rotations that it counts: cos and sin of every position,
    # in every layer.
    tables = 2 * 32 * 16384 * 128 * 2
    assert 7173.9e6 * 2 + tables == pytest.approx(gpu.CARD_MB["7b"][0] * 1e6, rel=1e-3)


def test_a_step_reads_its_weights_and_the_window() -> None:
    decoder = make_decoder(TOY, CPU, torch.float32)
    assert weight_bytes(decoder) == 4 * sum(p.numel() for p in decoder.parameters())
    untied = make_decoder(TOY | {"tie_word_embeddings": False}, CPU, torch.float32)
    assert weight_bytes(untied) == weight_bytes(decoder)  # the head in the embeddings' place
    position = 2 * 2 * 2 * 8 * 4
    assert [cache_bytes(decoder, n) for n in (1, 32, 400)] == [
        position,
        32 * position,
        32 * position,
    ]


def test_the_same_weights_at_every_precision() -> None:
    pytest.importorskip("bitsandbytes")
    exact, packed = (make_decoder(TOY, CPU, torch.float32, bits) for bits in (0, 8))
    rows = packed.layers[0].mlp.up
    assert (
        distance(rows.packed * rows._state.SCB[:, None] / 127, exact.layers[0].mlp.up.weight) < 0.01
    )
