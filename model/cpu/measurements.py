"""How long something takes on this machine, and the file that keeps it.

Drafts are sized (step_costs.py) by these times. They are measured once for each machine, number of
threads and version of torch.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from model.machine import processor
from model.private_files import write_private_file
from model.regular_files import read_text

FILE_NAME = "kernels.json"
MAX_BYTES = 2**24  # of that file
REPEATS = 7
PATIENCE_S = 0.05  # fewer repeats of what takes long
LOOK_S = 0.1  # that a machine is looked at, some time slices of a scheduler
UNEVEN = 1.5  # the mean of equal products over the least, from which on others use the machine

Times = Mapping[str, Mapping[int, float]]
"""way -> rows -> microseconds"""
Measure = Callable[[str, Sequence[int]], Mapping[int, float]]
"""(way, numbers of rows) -> rows -> microseconds"""


class Busy(Exception):
    """The machine is too busy to measure: the times would be wrong tomorrow."""


class Measurements:
    """The times measured on this machine: a JSON file, machine -> subject -> way -> rows ->
    microseconds.

    A home folder may be shared by several machines, so the file keeps the times of each. A file
    that is missing or damaged only means that everything is measured again.
    """

    def __init__(self, folder: Path | None) -> None:
        """folder: of the file; None keeps nothing."""
        self._path = None
        self._machines: dict[str, dict[str, Any]] = {}
        if folder is not None:
            self._path = folder / FILE_NAME
            self._machines = _read(self._path)
        machine = f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        self._known = self._machines.setdefault(machine, {})

    def times(self, subject: str, wanted: Mapping[str, Sequence[int]], measure: Measure) -> Times:
        """The time of each way for each of its numbers of rows, kept or else measured now.

        Raises Busy if they have to be measured and the machine is busy.
        """
        known = self._kept(subject, wanted)
        if known is not None:
            return known
        if not is_quiet():
            raise Busy
        measured: dict[str, Mapping[int, float]] = {}
        entry: dict[str, dict[str, float]] = {}
        for way, counts in wanted.items():
            measured[way] = measure(way, counts)
            entry[way] = {str(rows): us for rows, us in measured[way].items()}
        if not is_quiet():
            raise Busy
        self._known[subject] = entry
        if self._path is not None:
            with suppress(OSError):  # then it is measured again the next time
                write_private_file(self._path, json.dumps(self._machines).encode())
        return measured

    def _kept(self, subject: str, wanted: Mapping[str, Sequence[int]]) -> Times | None:
        """The times in the file; None if one is missing or impossible."""
        times = {}
        try:
            entry = self._known[subject]
            for way, counts in wanted.items():
                times[way] = {rows: _to_time(entry[way][str(rows)]) for rows in counts}
        except (KeyError, TypeError, ValueError):
            return None
        return times


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        machines = dict(json.loads(read_text(path, MAX_BYTES)))
        return {name: dict(times) for name, times in machines.items()}
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _to_time(value: Any) -> float:
    """Raises TypeError or ValueError for anything else than a positive, finite number."""
    microseconds = float(value)
    if not 0 < microseconds < math.inf:
        raise ValueError(f"{value} is no time")
    return microseconds


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Lets torch compute with so many threads. To switch costs no time."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fastest_us(call: Callable[[], object]) -> float:
    """Microseconds of a call: the least of a few repeats, since other processes only slow it."""
    call()
    times: list[float] = []
    while len(times) < REPEATS and sum(times) < PATIENCE_S:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times) * 1e6


def is_quiet() -> bool:
    """Whether all threads run when they are asked to: products that are shared by them and take
    some hundred microseconds each then take equally long."""
    x = torch.randn(256, 256)
    x @ x  # the first one starts threads
    times: list[float] = []
    while sum(times) < LOOK_S:
        started = time.perf_counter()
        x @ x
        times.append(time.perf_counter() - started)
    return sum(times) < UNEVEN * len(times) * min(times)
