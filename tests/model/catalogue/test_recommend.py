"""Estimates follow from two figures of a machine, and the recommendation from the estimates."""

from __future__ import annotations

from typing import Any

import pytest

from model.catalogue.entries import entries
from model.catalogue.recommend import advice, estimates, recommend

MACHINE: dict[str, Any] = {
    "device": "cpu",
    "precision": "int8",
    "bytes_a_weight": 1,
    "read_bytes_per_s": 200e9,
    "operations_per_s": 3e12,
    "available_memory": 10 * 10**9,
}


def test_an_estimate_is_the_weights_read_once_a_step() -> None:
    found = {one.name: one for one in estimates(MACHINE)}
    assert found.keys() == entries().keys()
    small = found["starcoder2-3b"]
    assert small.line_ms == pytest.approx(13 * 3.03e9 / 200e9 * 1000)
    assert small.file_ms == pytest.approx(2 * 3.03e9 * 2000 / 3e12 * 1000)
    assert small.memory_bytes == round(1.25 * 3.03e9)
    verdicts = {name: found[name].verdict for name in found if name.startswith("starcoder2")}
    assert verdicts == {
        "starcoder2-3b": "while you type",
        "starcoder2-7b": "at a pause",
        "starcoder2-15b": "does not fit",
    }


@pytest.mark.parametrize(
    ("change", "model", "words"),
    [
        ({}, "qwen2.5-coder-1.5b", "should keep up with typing"),
        ({"read_bytes_per_s": 25e9}, "qwen2.5-coder-0.5b", "should keep up with typing"),
        ({"read_bytes_per_s": 8e9}, "qwen2.5-coder-0.5b", "should answer at a pause"),
        ({"read_bytes_per_s": 1e9}, None, "none is fast enough"),
        ({"available_memory": 10**8}, None, "none is fast enough"),
        ({"read_bytes_per_s": 2e12, "available_memory": None}, "qwen2.5-coder-7b", "keep up"),
    ],
)
def test_the_recommendation_follows_from_the_estimates(
    change: dict[str, Any], model: str | None, words: str
) -> None:
    machine = MACHINE | change
    best = recommend(estimates(machine), machine, 300.0)
    assert (best.model if best else None) == model
    assert words in advice(best)
    if best is not None:
        assert not entries()[best.model].licence.ask
        assert best.suggestion_ms <= best.time_budget_ms
        assert best.time_budget_ms >= 300 and best.context_tokens >= 256
