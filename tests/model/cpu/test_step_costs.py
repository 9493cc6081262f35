"""What a step over a few rows costs, as it is measured and as drafts need it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.cpu import step_costs
from model.cpu.step_costs import BY_THUMB, ROWS, StepCosts
from model.decoder.decoder import DecoderOutput
from model.decoder.kv_cache import KVCache
from tests.model.toys import Parrot, toy_config


class Slow(Parrot):
    """Takes 10 ms, 1 for each row, and for 100 positions 2 and 1 for each row; now and then 100
    more, and nine rows in an empty cache always."""

    now = 0.0
    calls = 0

    def __call__(
        self, input_ids: torch.Tensor, *, cache: KVCache, logits_to_keep: int, **_: object
    ) -> DecoderOutput:
        rows = input_ids.shape[1]
        assert logits_to_keep == min(rows, 16)
        self.calls += 1
        self.now += 0.010 + 0.001 * rows + (0.002 + 0.001 * rows) * cache.length / 100
        if self.calls % 7 == 0 or (rows == 9 and not cache.length):
            self.now += 0.1
        return DecoderOutput(torch.zeros(1, rows, 1))


def measured(monkeypatch: pytest.MonkeyPatch, folder: Path, positions: int) -> StepCosts:
    decoder = Slow(config=toy_config(max_positions=positions))
    monkeypatch.setattr("model.cpu.measurements.is_quiet", lambda: True)
    monkeypatch.setattr(step_costs.time, "perf_counter", lambda: decoder.now)
    return step_costs.step_costs(decoder, "slow", folder)


@pytest.mark.parametrize("positions", [4096, 512])
def test_costs_are_of_rows_and_of_positions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, positions: int
) -> None:
    costs = measured(monkeypatch, tmp_path, positions)
    expected = {rows: (10 + rows) / 11 for rows in ROWS}
    expected |= dict.fromkeys((9, 12, 13, 16), 119 / 11)  # more rows never cost less
    assert costs.rows == pytest.approx(expected)
    assert costs.cache == pytest.approx({rows: 10 * (2 + rows) / 11 for rows in ROWS})
    long = min(1024, positions // 2)
    assert costs.position_us == pytest.approx((10 + 64 + 66 * long / 100) * 1000 / 64)
    monkeypatch.setattr(step_costs, "step_us", lambda *_: pytest.fail("measured again"))
    assert measured(monkeypatch, tmp_path, positions) == costs


def test_a_busy_machine_follows_rules_of_thumb(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("model.cpu.measurements.is_quiet", lambda: False)
    decoder = Slow(config=toy_config(max_positions=4096))
    assert step_costs.step_costs(decoder, "slow", tmp_path) is BY_THUMB
