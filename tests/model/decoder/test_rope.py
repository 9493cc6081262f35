"""The table of rotations: one way to make it in little memory, and one that is easy to see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.decoder import rope
from model.decoder.config import RopeConfig
from model.decoder.rope import Rotations

PLAIN = RopeConfig("default", 10000.0, 8, 64)


@pytest.mark.parametrize("kind", ["default", "dynamic", "none"])
@pytest.mark.parametrize("positions", [1, 64, 100])
def test_a_table_that_is_made_in_pieces_is_the_same(
    kind: str, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = None
    if kind != "none":
        config = replace(PLAIN, kind="dynamic" if kind == "dynamic" else "default", factor=2.0)
    arguments = (positions, config, torch.device("cpu"), torch.bfloat16)
    whole = Rotations.of_first(*arguments)
    monkeypatch.setattr(rope, "PIECE", 32)
    pieces = Rotations.of_first(*arguments)
    for name in ("cos", "sin", "pairs"):
        one, other = getattr(whole, name), getattr(pieces, name)
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0)
