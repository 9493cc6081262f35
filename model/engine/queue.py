"""The queue of an engine: clients take turns, and idle work comes last."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from model.engine.request import Event, Request


@dataclass(slots=True)
class Job:
    """A request in the queue or in work. emit is told its events, on the worker's thread."""

    request: Request
    emit: Callable[[Event], None]
    submitted: float = field(default_factory=time.monotonic)
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Stops the job within a layer of its prefill or a token; if it has not begun, it never
        will."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()


def _makes_way(running: Request, new: Request) -> bool:
    """Whether the request that runs is cancelled when the new one comes."""
    if not running.idle:
        return False
    return not new.idle or new.client == running.client


class FairQueue:
    """Clients take turns: a window that asks often does not starve another. Idle jobs run only
    when no other job waits.

    A job that somebody waits for cancels the idle one that runs, of any client. A newer idle job
    of a client cancels or replaces the older.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self._idle: OrderedDict[str, Job] = OrderedDict()
        self._running: Job | None = None  # the last that was taken
        self._changed = threading.Condition()
        self._closed = False
        self._woken = False

    def put(self, job: Job) -> Job | None:
        """Returns the idle job that it replaces, which will never start."""
        client = job.request.client
        replaced = None
        with self._changed:
            running = self._running
            if running is not None and _makes_way(running.request, job.request):
                running.cancel()
            if job.request.idle:
                replaced = self._idle.pop(client, None)
                self._idle[client] = job
            else:
                self._waiting.setdefault(client, deque()).append(job)
            self._changed.notify()
        return replaced

    def take(self, patience_s: float | None = None) -> Job | None:
        """The next job that nobody has cancelled; waits for one. None once the queue is closed.

        Raises TimeoutError where there is none for patience_s, or when woken.
        """
        with self._changed:
            self._running = None
            while True:
                while self._waiting or self._idle:
                    job = self._next()
                    if not job.cancelled:
                        self._running = job
                        return job
                if self._closed:
                    return None
                if self._woken or not self._changed.wait(patience_s):
                    self._woken = False
                    raise TimeoutError

    def _next(self) -> Job:
        if not self._waiting:
            _, job = self._idle.popitem(last=False)
            return job
        client, jobs = self._waiting.popitem(last=False)
        job = jobs.popleft()
        if jobs:
            self._waiting[client] = jobs
        return job

    def wake(self) -> None:
        """Ends the waiting of `take`: there is other work."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._idle.clear()
            self._changed.notify()

    @property
    def closed(self) -> bool:
        return self._closed

    def __len__(self) -> int:
        with self._changed:
            return sum(map(len, self._waiting.values())) + len(self._idle)
