"""One worker thread that owns the model: prefix reuse, stop strings, cancellation, idle work.

Requests come in from any thread; events go out through the callback that came with the request,
called on the worker.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from model.decoder.kv_cache import KVCache
from model.decoder.stopping import chunk_at
from model.engine.options import CACHE_BYTES
from model.engine.queue import FairQueue, Job
from model.engine.request import Event, Failed, Finished, Request, Started
from model.engine.speed import Speed
from model.generation.drafting import DraftHistory
from model.generation.generate import DecodeCounts, Token
from model.loading import LoadedModel
from model.machine import give_back_memory
from model.prefix_cache.disk import PrefixStore
from model.prefix_cache.memory import CacheLease, PrefixCache

log = logging.getLogger(__name__)
IDLE_CHUNK = 64  # positions, or what takes IDLE_CHUNK_S: a key ends idle work, whole chunks stay
IDLE_CHUNK_S = 0.05
UPGRADE_AFTER_S = 1.0  # without a request; only then does the decoder become faster
TIDY_AFTER_S = 2.0  # without a request; only then is free memory given back
SAVE_AFTER_S = 20.0  # without a request; only then is anything written to disk,
SAVE_RATE = 2**18  # and so many bytes a second over time: a gigabyte an hour


class StopStrings:
    """Cuts a stream of text before the first stop string, also when it spans tokens."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = [each for each in stop if each]
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that is safe to show, whether a stop string was found: the one that is complete
        first)."""
        text = self._held + text
        self._held = ""
        first: tuple[int, int] | None = None
        for each in self._stop:
            start = text.find(each)
            if start >= 0 and (first is None or (start + len(each), start) < first):
                first = (start + len(each), start)
        if first is not None:
            return text[: first[1]], True
        keep = max((_begun(text, each) for each in self._stop), default=0)
        safe = len(text) - keep
        self._held = text[safe:]
        return text[:safe], False

    def rest(self) -> str:
        """The text that is still held back, once there is no more to come."""
        return self._held


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of the text are the beginning of a stop string."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class Engine:
    """Runs requests one at a time on a loaded model.

    upgrade: goes on while there are no requests, until it ends; it may give the decoder a faster
    step.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        cache_bytes: int = CACHE_BYTES,
        store: PrefixStore | None = None,
        upgrade: Iterator[None] | None = None,
    ) -> None:
        self.model = model
        self.prefixes = PrefixCache(model.decoder, cache_bytes, store)
        # Drafts are checked in rows beside each other. Without measured row costs we cannot be sure
        # that a row has the same result beside others, so we do not draft.
        self.history: DraftHistory | None = None
        if model.decoder.row_costs:
            self.history = DraftHistory(model.decoder.row_costs, model.decoder.cache_costs)
        self.queue = FairQueue()
        self.busy = False
        self.last_used = time.monotonic()
        self.served = 0
        self.speed = Speed()
        self.passes = 0  # how often the model was run,
        self.positions = 0  # and over how many positions in all
        self._upgrade = upgrade
        self._save_last = False
        self._next_save = 0.0
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, *, save: bool = True) -> None:
        """Takes no more requests. save: computed prefixes that are not on disk yet are written."""
        self._save_last = save
        self.queue.close()

    def join(self, patience_s: float) -> None:
        """After `close`: waits until the last request has ended and its prefix is written."""
        self._thread.join(patience_s)

    def submit(self, request: Request, emit: Callable[[Event], None]) -> Job:
        job = Job(request, emit)
        self.last_used = time.monotonic()
        replaced = self.queue.put(job)
        if replaced is not None and not replaced.cancelled:
            waited = time.monotonic() - replaced.submitted
            replaced.emit(Finished("cancelled", "", 0, 0, 0, waited, 0.0, 0.0))
        return job

    @property
    def idle_s(self) -> float:
        """Seconds since the last request came or ended; 0 while one runs."""
        if self.busy or len(self.queue):
            return 0.0
        return time.monotonic() - self.last_used

    @property
    def upgraded(self) -> bool:
        """Whether the decoder is as fast as it gets."""
        return self._upgrade is None

    def improve(self, upgrade: Iterator[None]) -> None:
        """Has the worker go on with the iterator, until it ends, while no request comes."""
        self._upgrade = upgrade
        self.queue.wake()

    def _work(self) -> None:
        while (job := self._next_job()) is not None:
            self.busy = True
            try:
                self._run(job)
            except Exception as error:
                log.exception("a request failed")
                self.prefixes.clear()  # the likeliest cause is memory: give back what is kept
                message = f"The engine could not answer ({type(error).__name__}: {error})."
                with contextlib.suppress(Exception):  # it may be emit that failed
                    job.emit(Failed(message))
            finally:
                self.last_used = time.monotonic()
                self.served += 1
                self.busy = False
        if self._save_last:
            self._save(lambda: False)

    def _next_job(self) -> Job | None:
        """The next job; None at the end. While none comes, the work for idle time is done."""
        while True:
            with contextlib.suppress(TimeoutError):
                return self._await_job()

    def _await_job(self) -> Job | None:
        """As _next_job. Raises TimeoutError where there is more work of this kind."""
        if self._upgrade is not None:
            with contextlib.suppress(TimeoutError):
                return self.queue.take(UPGRADE_AFTER_S)
            self._go_on_upgrading(self._upgrade)
            raise TimeoutError
        with contextlib.suppress(TimeoutError):
            return self.queue.take(TIDY_AFTER_S)
        give_back_memory()
        if self.prefixes.unsaved:
            with contextlib.suppress(TimeoutError):
                return self.queue.take(max(SAVE_AFTER_S, self._next_save - time.monotonic()))
            self._save(lambda: self.queue.closed or len(self.queue) > 0)
        if self._upgrade is not None:  # it has come meanwhile
            raise TimeoutError
        return self.queue.take()

    def _go_on_upgrading(self, upgrade: Iterator[None]) -> None:
        try:
            next(upgrade)
            return
        except StopIteration:
            decoder = self.model.decoder
            if self.history is not None and decoder.row_costs:
                self.history.use(decoder.row_costs, decoder.cache_costs)
        except Exception:  # such as no memory for it: everything works as it did
            log.exception("an upgrade failed")
        self._upgrade = None

    def _save(self, should_stop: Callable[[], bool]) -> None:
        try:
            written = self.prefixes.save(should_stop)
            self._next_save = time.monotonic() + written / SAVE_RATE
        except Exception:  # such as no memory for it: the next job may still be done
            log.exception("nothing was written to disk")

    def _choose(self, request: Request) -> tuple[int, ...]:
        """The prompt to run, of those that the request leaves the choice of."""
        if not request.shorter:
            return request.ids
        least = None
        for ids in (request.ids, *request.shorter):
            new = len(ids) - self.prefixes.cached(ids)
            if self.speed.fits(new, request.prefill_s):
                return ids
            if least is None or new < least[0]:
                least = (new, ids)
        assert least is not None
        return least[1]

    def _read_shorter(self, job: Job) -> None:
        """Fills the cache for the shorter prompts of an idle job."""
        for ids in reversed(job.request.shorter):
            if job.cancelled:
                return
            if len(ids) - self.prefixes.cached(ids) > 1:
                lease = self.prefixes.lease(ids, lambda: job.cancelled)
                started = time.monotonic()
                before = lease.reused + lease.cache.head_start(ids)
                chunk = self._chunk(job.request)
                for _ in self._tokens(job, ids, lease.cache, chunk, DecodeCounts()):
                    pass
                if not job.cancelled:
                    seconds = time.monotonic() - started
                    self.speed.prefilled(lease.cache.length - before, seconds)
                self._count_prefill(len(ids), lease, chunk)
                self.prefixes.give_back(lease, ids)

    def _count_prefill(self, length: int, lease: CacheLease, chunk: int) -> tuple[int, int]:
        """Counts a prefill in chunks; how many positions it computed, and in how many passes."""
        positions = min(lease.cache.length, length) - lease.reused
        passes = math.ceil(positions / chunk)
        self.positions += positions
        self.passes += passes
        return positions, passes

    def _chunk(self, request: Request) -> int:
        """How many positions a prefill runs at once. A machine that is busy, or slower than the
        decoder supposes, runs fewer."""
        decoder = self.model.decoder
        speed = self.speed.prefill
        most = decoder.prefill_chunk
        if speed is not None and decoder.device.type == "cpu":
            most = min(most, chunk_at(speed, decoder.config.num_layers))
        if not request.idle:
            return most
        return min(most, max(IDLE_CHUNK, int(IDLE_CHUNK_S * (speed or 0))))

    def _tokens(
        self, job: Job, ids: Sequence[int], cache: KVCache, chunk: int, counts: DecodeCounts
    ) -> Iterator[Token]:
        request = job.request
        return self.model.generate(
            ids,
            max_new_tokens=request.max_new_tokens,
            cache=cache,
            sampling=request.sampling,
            stop_ids=request.stop_ids,
            begin_with=request.begin_with,
            copying=request.copying,
            history=self.history,
            counts=counts,
            prefill_chunk=chunk,
            should_stop=lambda: job.cancelled,
        )

    def _run(self, job: Job) -> None:
        started = time.monotonic()
        request = job.request
        if request.idle:
            self._read_shorter(job)
            prompt = request.ids
        else:
            prompt = self._choose(request)
        lease = self.prefixes.lease(prompt, lambda: job.cancelled)
        reused = lease.reused
        chunk = self._chunk(request)
        new = len(prompt) - reused - lease.cache.head_start(prompt)
        begun = time.monotonic()
        job.emit(Started(len(prompt), reused))
        stops = StopStrings(request.stop)
        counts = DecodeCounts()
        ids = list(prompt)
        stopped = False
        first_token = 0.0
        for token in self._tokens(job, prompt, lease.cache, chunk, counts):
            if not first_token:
                first_token = time.monotonic()
                self.speed.prefilled(new, first_token - begun)
            ids.append(token.id)
            text, stopped = stops.push(token.text)
            job.emit(Token(token.id, text, token.logprob))
            if stopped:
                break
        ended = time.monotonic()
        if not first_token and not job.cancelled:
            self.speed.prefilled(new, ended - begun)
        first_token = first_token or ended
        generated = len(ids) - len(prompt)
        prefilled, passes = self._count_prefill(len(prompt), lease, chunk)
        self.speed.decoded(generated - 1, ended - first_token)
        self.passes += counts.passes
        self.positions += counts.passes + counts.drafted
        self.prefixes.give_back(lease, ids)
        reason = "length"
        if job.cancelled:
            reason = "cancelled"
        elif stopped or generated < request.max_new_tokens:
            reason = "stop"
        job.emit(
            Finished(
                reason=reason,
                rest=stops.rest(),
                reused=reused,
                prefilled=prefilled,
                generated=generated,
                queued_s=started - job.submitted,
                prefill_s=first_token - started,
                decode_s=ended - first_token,
                passes=passes + counts.passes,
                drafted=counts.drafted,
                accepted=counts.accepted,
                prefill_per_s=self.speed.prefill,
            )
        )
