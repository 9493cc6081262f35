"""One worker thread that owns the model: a fair queue in front of it, prefix reuse, cancellation.

Requests come in from any thread; events go out through the callback that came with the request,
called on the worker.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from model.engine.options import CACHE_BYTES
from model.generation.copying import CopyWeights
from model.generation.drafting import DraftHistory
from model.generation.generate import DecodeCounts, Token
from model.generation.sampling import Sampling
from model.loading import LoadedModel
from model.machine import give_back_memory
from model.prefix_cache.disk import PrefixStore
from model.prefix_cache.memory import PrefixCache

log = logging.getLogger(__name__)
GREEDY = Sampling()
UPGRADE_AFTER_S = 1.0  # without a request; only then does the decoder become faster
TIDY_AFTER_S = 2.0  # without a request; only then is free memory given back
SAVE_AFTER_S = 20.0  # without a request; only then is anything written to disk,
SAVE_RATE = 2**18  # and so many bytes a second over time: a gigabyte an hour


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and how to continue it. max_new_tokens 0 only fills the cache. client names who
    waits for it.

    idle: nobody waits for it yet. It runs when nothing else does, and ends as soon as somebody asks
    for something.
    """

    ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = GREEDY
    stop_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    client: str = ""
    begin_with: str = ""  # the completion spells this first; it is not part of the answer
    copying: CopyWeights | None = None
    idle: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """The first event of a request that is run: its prompt in tokens, and how many of them the
    cache had."""

    prompt: int
    reused: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a request. reason: "stop", "length" or "cancelled"; counts in tokens, times
    in seconds.

    passes: how often the model was run for it. drafted, accepted: tokens that were guessed, and
    those that came true.
    """

    reason: str
    rest: str  # text held back because a stop string might have begun with it
    reused: int
    prefilled: int
    generated: int
    queued_s: float
    prefill_s: float
    decode_s: float
    passes: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a request that could not be run; the message is for the user."""

    message: str


Event = Started | Token | Finished | Failed


@dataclass(slots=True)
class Job:
    """idle: as the request says, until FairQueue.prioritize says otherwise."""

    request: Request
    emit: Callable[[Event], None]
    idle: bool = field(init=False)
    submitted: float = field(default_factory=time.monotonic)
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.idle = self.request.idle

    def cancel(self) -> None:
        """Stops the job within a layer of its prefill or a token; if it has not begun, it never
        will."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()


class FairQueue:
    """Clients take turns: a window that asks often does not starve another. Idle work comes behind
    all of it.

    A job that somebody waits for ends the idle one that runs, whose ever it is; of a client's idle
    jobs only the newest is left.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self._idle: OrderedDict[str, Job] = OrderedDict()
        self._running: Job | None = None  # the last that was taken
        self._changed = threading.Condition()
        self._closed = False

    def put(self, job: Job) -> Job | None:
        """Returns the job that it took the place of, which will never start."""
        with self._changed:
            client, replaced = job.request.client, None
            running = self._running
            if (
                running is not None
                and running.idle
                and (not job.idle or running.request.client == client)
            ):
                running.cancel()
            if job.idle:
                replaced = self._idle.pop(client, None)
                self._idle[client] = job
            else:
                self._waiting.setdefault(client, deque()).append(job)
            self._changed.notify()
            return replaced

    def take(self, patience_s: float | None = None) -> Job | None:
        """The next job that nobody has cancelled; waits for one. None once the queue is closed.

        Raises TimeoutError where there is none for patience_s.
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
                if not self._changed.wait(patience_s):
                    raise TimeoutError

    def prioritize(self, job: Job, *, idle: bool) -> None:
        """Says of a job that runs whether somebody waits for it; of another it is too late, or too
        early, to say so."""
        with self._changed:
            if self._running is job:
                job.idle = idle
                if idle and self._waiting:
                    job.cancel()

    def _next(self) -> Job:
        if not self._waiting:
            return self._idle.popitem(last=False)[1]
        client, jobs = self._waiting.popitem(last=False)
        job = jobs.popleft()
        if jobs:
            self._waiting[client] = jobs
        return job

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


class StopStrings:
    """Cuts a stream of text before the first stop string, also when it spans tokens."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = [s for s in stop if s]
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that is safe to show, whether a stop string was found: the one that is complete
        first)."""
        text = self._held + text
        found = [(i + len(s), i) for s in self._stop if (i := text.find(s)) >= 0]
        if found:
            self._held = ""
            _, start = min(found)
            return text[:start], True
        keep = max(
            (
                n
                for s in self._stop
                for n in range(1, min(len(s), len(text) + 1))
                if text.endswith(s[:n])
            ),
            default=0,
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def rest(self) -> str:
        held, self._held = self._held, ""
        return held


class Engine:
    """Runs requests one at a time on a loaded model."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        cache_bytes: int = CACHE_BYTES,
        store: PrefixStore | None = None,
        upgrade: Iterator[None] | None = None,
    ) -> None:
        """upgrade: goes on while nobody asks for anything, until it ends; it may change the
        decoder."""
        self.model = model
        self.prefixes = PrefixCache(model.decoder, cache_bytes, store)
        # Without drafts where nobody vouches for rows that come out as they do alone: greedy stays
        # greedy.
        costs = model.decoder.row_costs
        self.recent: DraftHistory | None = DraftHistory(costs) if costs else None
        self.queue = FairQueue()
        self.busy = False
        self.last_used = time.monotonic()
        self.served = 0
        self.passes = self.positions = (
            0  # of the model: how often it was run, and over how many positions in all
        )
        self._upgrade = upgrade
        self._save_last, self._next_save = False, 0.0
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, *, save: bool = True) -> None:
        """Takes no more requests; save: what was computed since it was last idle is still written
        to disk."""
        self._save_last = save
        self.queue.close()

    def join(self, patience_s: float) -> None:
        """Behind `close`: waits until what runs has ended, and been written."""
        self._thread.join(patience_s)

    def submit(self, request: Request, emit: Callable[[Event], None]) -> Job:
        job = Job(request, emit)
        self.last_used = time.monotonic()
        if (replaced := self.queue.put(job)) is not None and not replaced.cancelled:
            replaced.emit(
                Finished("cancelled", "", 0, 0, 0, time.monotonic() - replaced.submitted, 0.0, 0.0)
            )
        return job

    @property
    def idle_s(self) -> float:
        """Seconds since the last request came or ended; 0 while one runs."""
        return 0.0 if self.busy or len(self.queue) else time.monotonic() - self.last_used

    def _work(self) -> None:
        while (job := self._next_job()) is not None:
            self.busy = True
            try:
                self._run(job)
            except Exception as error:
                log.exception("a request failed")
                self.prefixes.clear()  # the likeliest cause is memory: give back what is kept
                with contextlib.suppress(Exception):  # it may be emit that failed
                    job.emit(
                        Failed(f"The engine could not answer ({type(error).__name__}: {error}).")
                    )
            finally:
                self.last_used = time.monotonic()
                self.served += 1
                self.busy = False
        if self._save_last:
            self._save(lambda: False)

    @property
    def upgraded(self) -> bool:
        """Whether the decoder is as fast as it gets."""
        return self._upgrade is None

    def _next_job(self) -> Job | None:
        while self._upgrade is not None:
            with contextlib.suppress(TimeoutError):
                return self.queue.take(UPGRADE_AFTER_S)
            self._go_on_upgrading(self._upgrade)
        with contextlib.suppress(TimeoutError):
            return self.queue.take(TIDY_AFTER_S)
        give_back_memory()
        if self.prefixes.unsaved:
            with contextlib.suppress(TimeoutError):
                return self.queue.take(max(SAVE_AFTER_S, self._next_save - time.monotonic()))
            self._save(lambda: self.queue.closed or len(self.queue) > 0)
        return self.queue.take()

    def _go_on_upgrading(self, upgrade: Iterator[None]) -> None:
        try:
            return next(upgrade)
        except StopIteration:
            costs = self.model.decoder.row_costs
            if self.recent is not None and costs:
                self.recent.use(costs)
        except Exception:  # such as no memory for it: everything works as it did
            log.exception("an upgrade failed")
        self._upgrade = None
        return None

    def _save(self, should_stop: Callable[[], bool]) -> None:
        try:
            written = self.prefixes.save(should_stop)
            self._next_save = time.monotonic() + written / SAVE_RATE
        except Exception:  # such as no memory for it: the next job may still be done
            log.exception("nothing was written to disk")

    def _run(self, job: Job) -> None:
        request, started = job.request, time.monotonic()
        lease = self.prefixes.lease(request.ids, lambda: job.cancelled)
        reused = lease.reused
        job.emit(Started(len(request.ids), reused))
        stops = StopStrings(request.stop)
        ids, tally = list(request.ids), DecodeCounts()
        stopped, first_token = False, 0.0
        for token in self.model.generate(
            request.ids,
            max_new_tokens=request.max_new_tokens,
            cache=lease.cache,
            sampling=request.sampling,
            stop_ids=request.stop_ids,
            begin_with=request.begin_with,
            copying=request.copying,
            recent=self.recent,
            tally=tally,
            should_stop=lambda: job.cancelled,
        ):
            first_token = first_token or time.monotonic()
            ids.append(token.id)
            text, stopped = stops.push(token.text)
            job.emit(Token(token.id, text, token.logprob))
            if stopped:
                break
        ended = time.monotonic()
        generated = len(ids) - len(request.ids)
        by_itself = stopped or generated < request.max_new_tokens
        prefilled = min(lease.cache.length, len(request.ids)) - reused
        passes = -(-prefilled // self.model.decoder.prefill_chunk) + tally.passes
        self.passes += passes
        self.positions += prefilled + tally.passes + tally.drafted
        self.prefixes.give_back(lease, ids)
        job.emit(
            Finished(
                reason="cancelled" if job.cancelled else "stop" if by_itself else "length",
                rest=stops.rest(),
                reused=reused,
                prefilled=prefilled,
                generated=generated,
                queued_s=started - job.submitted,
                prefill_s=(first_token or ended) - started,
                decode_s=ended - first_token if first_token else 0.0,
                passes=passes,
                drafted=tally.drafted,
                accepted=tally.accepted,
            )
        )
