"""The times of this machine: measured once, and never believed where they cannot be."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from model.cpu import measurements
from model.cpu.measurements import Busy, Measurements, is_quiet

WANTED = {"way": [1, 4]}


@pytest.fixture(autouse=True)
def at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else the machine does: what is measured is not looked at here."""
    monkeypatch.setattr(measurements, "is_quiet", lambda: True)


def measure(way: str, counts: Sequence[int]) -> dict[int, float]:
    return {rows: 2.5 * rows for rows in counts}


def never(way: str, counts: Sequence[int]) -> dict[int, float]:
    raise AssertionError("measured again")


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    first = Measurements(tmp_path).times("step", WANTED, measure)
    assert first == {"way": {1: 2.5, 4: 10.0}}
    assert Measurements(tmp_path).times("step", WANTED, never) == first
    assert (tmp_path / "kernels.json").stat().st_mode & 0o777 == 0o600


GARBAGE = {
    "empty": b"",
    "no JSON": b"\xff\x00garbage",
    "a list": b"[]",
    "nesting": b"[" * 100_000,
    "a machine that is none": json.dumps({"PDP-11": 11}).encode(),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_a_file_in_doubt_is_measured_over(garbage: bytes, tmp_path: Path) -> None:
    (tmp_path / "kernels.json").write_bytes(garbage)
    Measurements(tmp_path).times("step", WANTED, measure)
    assert len(json.loads((tmp_path / "kernels.json").read_bytes())) == 1


def test_other_machines_of_a_shared_home_keep_their_figures(tmp_path: Path) -> None:
    (tmp_path / "kernels.json").write_text(json.dumps({"PDP-11": {"step": {}}}))
    Measurements(tmp_path).times("step", WANTED, measure)
    assert len(json.loads((tmp_path / "kernels.json").read_bytes())) == 2


@pytest.mark.parametrize("wrong", [0, -1, "fast", None, float("inf"), float("nan")])
def test_an_impossible_time_is_measured_over(wrong: object, tmp_path: Path) -> None:
    expected = Measurements(tmp_path).times("step", WANTED, measure)
    file = tmp_path / "kernels.json"
    content = json.loads(file.read_text())
    for by_subject in content.values():
        by_subject["step"]["way"]["1"] = wrong
    file.write_text(json.dumps(content))
    assert Measurements(tmp_path).times("step", WANTED, measure) == expected
    assert Measurements(tmp_path).times("step", WANTED, never) == expected


def test_a_folder_that_cannot_be_written_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "below"
    assert Measurements(folder).times("step", WANTED, measure)["way"][1] == 2.5


def test_on_a_busy_machine_nothing_is_measured_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurements, "is_quiet", lambda: False)
    with pytest.raises(Busy):
        Measurements(tmp_path).times("step", WANTED, never)
    assert not list(tmp_path.iterdir())


def test_what_was_measured_while_others_came_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([True, False])
    monkeypatch.setattr(measurements, "is_quiet", lambda: next(looks))
    with pytest.raises(Busy):
        Measurements(tmp_path).times("step", WANTED, measure)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("products_ms", "expected"),
    [([0.2], True), ([0.2] * 50 + [1.0], True), ([0.2] * 9 + [4.0], False), ([0.2, 0.5], False)],
    ids=["at rest", "a short break", "time slices", "a thread waits every second time"],
)
def test_a_machine_is_quiet_where_equal_products_take_equally_long(
    products_ms: list[float], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    steps = itertools.chain.from_iterable((0.0, ms / 1000) for ms in itertools.cycle(products_ms))

    def clock() -> float:
        nonlocal now
        now += next(steps)
        return now

    monkeypatch.setattr(measurements.time, "perf_counter", clock)
    assert is_quiet() == expected
