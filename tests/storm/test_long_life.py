"""What a person asks in 48 hours, at speed: memory stays, folders keep their budgets, logs are
rotated. FIMLS_LONG_HOURS says how many hours; fewer than four are too few to see a growth."""

from __future__ import annotations

import os

import pytest

from benchmarks.long_life import CACHE_BYTES, HEAD, Hour, both, growth, live, row
from model.engine.log import MAX_BYTES

pytestmark = [pytest.mark.storm, pytest.mark.asyncio]

HOURS = int(os.environ.get("FIMLS_LONG_HOURS", "48"))
PER_HOUR = 200
MOST_GROWTH = 0.01
LOGS = {"lsp.log", "lsp.old.log", "engine.log", "engine.old.log", "errors.log"}
ONE_MORE = 2**16  # bytes of a log's last records and of the caches' measurements


async def test_of_48_hours_nothing_is_left_but_what_has_a_budget() -> None:
    print("", *HEAD, flush=True)
    told: list[Hour] = []

    def tell(hour: Hour) -> None:
        told.append(hour)
        print(*row(len(told), hour), flush=True)

    hours = await live(HOURS, PER_HOUR, None, tell)
    for hour in hours:
        assert hour.answered == hour.requests >= PER_HOUR
        assert hour.prefixes <= CACHE_BYTES
        assert set(hour.logs) <= LOGS
        assert all(size <= MAX_BYTES + ONE_MORE for size in hour.logs.values())
    assert sum(hour.shown for hour in hours) > 0
    if HOURS >= 4:
        assert growth(hours, both) < MOST_GROWTH
    if HOURS >= 24:
        assert "lsp.old.log" in hours[-1].logs
        assert hours[-1].prefixes > 0
