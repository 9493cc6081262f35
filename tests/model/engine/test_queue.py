"""Whose turn it is in the queue of an engine."""

from __future__ import annotations

import pytest

from model.engine.queue import FairQueue, Job
from model.engine.request import Request


def test_clients_take_turns_and_cancelled_jobs_are_passed_over() -> None:
    queue = FairQueue()
    jobs = {
        name: Job(Request((1,), 1, client=name[0]), print)
        for name in "a1 a2 a3 b1 b2 c1 d1".split()
    }
    for job in jobs.values():
        queue.put(job)
    jobs["a2"].cancel()
    jobs["d1"].cancel()
    assert len(queue) == 7
    names = {id(job): name for name, job in jobs.items()}
    assert [names[id(queue.take())] for _ in range(5)] == ["a1", "b1", "c1", "b2", "a3"]
    assert len(queue) == 0
    queue.put(jobs["a1"])
    queue.close()
    assert queue.take() is None


def test_other_work_ends_the_waiting_once() -> None:
    queue = FairQueue()
    queue.wake()
    job = Job(Request((1,), 1, client="a"), print)
    queue.put(job)
    assert queue.take() is job  # jobs come first
    with pytest.raises(TimeoutError):
        queue.take()
    with pytest.raises(TimeoutError):
        queue.take(0.0)


def test_idle_work_comes_last_and_of_a_clients_only_the_newest() -> None:
    queue = FairQueue()
    names: dict[int, str] = {}

    def put(name: str, *, idle: bool = False) -> Job | None:
        job = Job(Request((1,), 1, client=name[0], idle=idle), print)
        names[id(job)] = name
        return queue.put(job)

    assert put("a idle", idle=True) is None
    assert put("b idle", idle=True) is None
    replaced = put("a newer", idle=True)
    assert replaced is not None and names[id(replaced)] == "a idle"
    put("a1")
    put("a2")
    put("b1")
    assert len(queue) == 5
    taken = [names[id(queue.take())] for _ in range(5)]
    assert taken == ["a1", "b1", "a2", "b idle", "a newer"]
    assert len(queue) == 0
    put("a idle", idle=True)
    queue.close()
    assert queue.take() is None


@pytest.mark.parametrize(
    ("client", "idle", "ends"),
    [
        ("a", False, True),
        ("b", False, True),
        ("a", True, True),
        ("b", True, False),
    ],
)
def test_idle_work_that_runs_ends_for_whoever_asks(client: str, idle: bool, ends: bool) -> None:
    queue = FairQueue()
    running = Job(Request((1,), 1, client="a", idle=True), print)
    queue.put(running)
    assert queue.take() is running
    queue.put(Job(Request((1,), 1, client=client, idle=idle), print))
    assert running.cancelled == ends
    queue.take()
    later = Job(Request((1,), 1, client="a"), print)
    queue.put(later)
    assert queue.take() is later
    queue.put(Job(Request((1,), 1, client="b"), print))
    assert not later.cancelled  # somebody waits for it
