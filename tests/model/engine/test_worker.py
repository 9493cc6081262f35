"""One worker: what a request tells, how it ends, and what is done meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import Tokenizer
from model.decoder.stopping import ASK_EVERY_S
from model.engine.queue import Job
from model.engine.request import Event, Failed, Finished, Request, Started
from model.engine.speed import KEPT, Speed
from model.engine.worker import IDLE_CHUNK, Engine, StopStrings
from model.generation.generate import Token
from tests.model.toys import MIDDLE, Answer, Parrot, ask, running

PROMPT = (40, 41, MIDDLE)


@pytest.fixture
def parrot(byte_tokenizer: Tokenizer) -> Parrot:
    return Parrot(byte_tokenizer.encode("abcdef"))


@pytest.fixture
def engine(parrot: Parrot, byte_tokenizer: Tokenizer) -> Iterator[Engine]:
    with running(parrot.as_model(byte_tokenizer)) as engine:
        yield engine


def text_of(events: list[Event]) -> str:
    """What a reader has seen in the end."""
    return "".join(
        e.text if isinstance(e, Token) else e.rest if isinstance(e, Finished) else ""
        for e in events
    )


def held(engine: Engine) -> tuple[Answer, threading.Event]:
    """An answer at whose first event the engine stays until it is told to go on."""
    go, busy = threading.Event(), threading.Event()

    def hold(job: Job, event: Event) -> None:
        busy.set()
        assert go.wait(60)

    answer = Answer(engine, Request(PROMPT, max_new_tokens=2), hold)
    assert busy.wait(60)
    return answer, go


def end_of(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


# What a request tells.


def test_events_come_as_started_tokens_finished(engine: Engine, byte_tokenizer: Tokenizer) -> None:
    first, second = (ask(engine, Request(PROMPT, max_new_tokens=4)) for _ in range(2))
    assert [type(e) for e in first] == [Started, Token, Token, Token, Token, Finished]
    assert first[0] == Started(prompt=3, reused=0)
    assert [(e.id, e.text) for e in first[1:-1]] == list(
        zip(byte_tokenizer.encode("abcd"), "abcd", strict=True)
    )
    end = end_of(first)
    assert (end.reason, end.rest, end.reused, end.prefilled, end.generated) == (
        "length",
        "",
        0,
        3,
        4,
    )
    assert min(end.queued_s, end.prefill_s, end.decode_s) >= 0
    assert second[0] == Started(prompt=3, reused=2)
    assert (end_of(second).reused, end_of(second).prefilled) == (2, 1)
    assert second[1:-1] == first[1:-1]


def test_a_prefill_only_fills_the_cache(engine: Engine) -> None:
    started, end = ask(engine, Request(PROMPT, max_new_tokens=0))
    assert started == Started(prompt=3, reused=0)
    assert isinstance(end, Finished)
    assert (end.reason, end.prefilled, end.generated, end.decode_s) == ("length", 3, 0, 0.0)
    assert ask(engine, Request((*PROMPT, 50), max_new_tokens=0))[0] == Started(prompt=4, reused=3)


@pytest.mark.parametrize(
    ("limits", "said", "reason", "generated"),
    [
        ({}, "abcdef", "stop", 6),  # the model's own <|endoftext|>
        ({"max_new_tokens": 6}, "abcdef", "length", 6),
        ({"stop": ("d",)}, "abc", "stop", 4),
        ({"stop": ("cd",)}, "ab", "stop", 4),
        (
            {"stop": ("cd",), "max_new_tokens": 3},
            "abc",
            "length",
            3,
        ),  # held back, and said in the end
        ({"stop": ("fg", "xyz")}, "abcdef", "stop", 6),  # likewise
        ({"stop": ("ef", "bcd")}, "a", "stop", 4),
        ({"stop": ("a",)}, "", "stop", 1),
        ({"stop": ("f",), "max_new_tokens": 6}, "abcde", "stop", 6),
        ({"stop": ("",)}, "abcdef", "stop", 6),
        ({"stop_ids": "d"}, "abc", "stop", 3),
    ],
)
def test_an_answer_ends_where_it_was_told_to(
    engine: Engine,
    byte_tokenizer: Tokenizer,
    limits: dict[str, Any],
    said: str,
    reason: str,
    generated: int,
) -> None:
    if "stop_ids" in limits:
        limits = {"stop_ids": frozenset(byte_tokenizer.encode(limits["stop_ids"]))}
    events = ask(engine, Request(PROMPT, **{"max_new_tokens": 100, **limits}))
    assert (text_of(events), end_of(events).reason, end_of(events).generated) == (
        said,
        reason,
        generated,
    )


def test_what_was_computed_behind_a_stop_string_is_kept_too(
    engine: Engine, byte_tokenizer: Tokenizer
) -> None:
    ask(engine, Request(PROMPT, max_new_tokens=100, stop=("d",)))
    longer = (*PROMPT, *byte_tokenizer.encode("abcx"))
    assert ask(engine, Request(longer, max_new_tokens=0))[0] == Started(prompt=7, reused=6)


# Stop strings.


def cut_at_first_stop(text: str, stop: list[str]) -> tuple[str, bool]:
    """Reads a text letter by letter until one of the stop strings is complete."""
    for end in range(1, len(text) + 1):
        complete = [s for s in stop if s and text[:end].endswith(s)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


TEXTS = st.text("ab\n", max_size=4)


@given(pieces=st.lists(TEXTS, max_size=12), stop=st.lists(TEXTS, max_size=4))
def test_stop_strings_cut_a_stream_as_they_cut_the_whole_text(
    pieces: list[str], stop: list[str]
) -> None:
    stops, pushed, shown, stopped = StopStrings(tuple(stop)), "", "", False
    for piece in pieces:
        text, stopped = stops.push(piece)
        pushed, shown = pushed + piece, shown + text
        if stopped:
            break
        held = pushed[len(shown) :]
        assert not held or any(
            s.startswith(held) for s in stop
        )  # no more is held back than need be
    assert (shown + stops.rest(), stopped) == cut_at_first_stop("".join(pieces), stop)


# Whose turn it is.


def test_a_job_that_was_cancelled_while_it_waited_never_starts(engine: Engine) -> None:
    first, go = held(engine)
    second, third = (
        Answer(engine, Request(PROMPT, max_new_tokens=2), lambda *_: None) for _ in range(2)
    )
    assert (engine.busy, engine.idle_s, len(engine.queue)) == (True, 0.0, 2)
    second.job.cancel()
    go.set()
    assert end_of(first.wait()).reason == end_of(third.wait()).reason == "length"
    assert second.events == []


# Work that nobody waits for.


def test_what_idle_work_has_read_stays_when_somebody_asks(engine: Engine, parrot: Parrot) -> None:
    asked: list[Answer] = []
    computed = 0
    ids = (40,) * 1200

    def ask_in_the_third_layer() -> None:
        nonlocal computed
        computed += 1
        if computed == 3:
            asked.append(
                Answer(
                    engine, Request((*ids, MIDDLE), max_new_tokens=2, client="b"), lambda *_: None
                )
            )

    parrot.on_layer = ask_in_the_third_layer
    started, end = ask(engine, Request(ids, max_new_tokens=0, client="a", idle=True))
    assert isinstance(started, Started) and isinstance(end, Finished)
    assert (end.reason, end.prefilled, computed >= 3) == ("cancelled", IDLE_CHUNK, True)
    events = asked[0].wait()
    assert events[0] == Started(prompt=1201, reused=IDLE_CHUNK)
    assert (text_of(events), end_of(events).reason) == ("ab", "length")


def test_idle_work_that_never_ran_ends_when_newer_takes_its_place(engine: Engine) -> None:
    first, go = held(engine)
    older, newer = (
        Answer(engine, Request(PROMPT, 0, client="a", idle=True), lambda *_: None) for _ in range(2)
    )
    (end,) = older.wait()
    assert isinstance(end, Finished) and (end.reason, end.prefilled) == ("cancelled", 0)
    go.set()
    first.wait()
    assert end_of(newer.wait()).reason == "length"


def test_chunks_are_as_short_as_the_machine_is_slow(engine: Engine, parrot: Parrot) -> None:
    """The chunks of a prompt that is cancelled in its fifth are counted and stay."""
    engine.speed.prefilled(1000, 1000 / (64 / 2 / ASK_EVERY_S))  # 64 positions of two layers
    layers = 0

    def stop_in_the_fifth_chunk() -> None:
        nonlocal layers
        layers += 1
        if layers == 9:
            answer.job.cancel()

    parrot.on_layer = stop_in_the_fifth_chunk
    answer = Answer(engine, Request((60,) * 600, max_new_tokens=1), lambda *_: None)
    assert end_of(answer.wait()).prefilled == 4 * 64
    assert engine.passes == 4


def test_an_engine_counts_how_often_the_model_was_run(engine: Engine) -> None:
    assert (engine.passes, engine.positions) == (0, 0)
    ask(engine, Request(PROMPT, max_new_tokens=4))
    assert (engine.passes, engine.positions) == (
        4,
        6,
    )  # the prompt, and a token each but for the last one
    ask(engine, Request(PROMPT, max_new_tokens=0))
    assert (engine.passes, engine.positions) == (5, 7)
    end = end_of(ask(engine, Request((60,) * 600, max_new_tokens=1)))
    assert (end.passes, engine.passes, engine.positions) == (2, 7, 607)


# How a request ends before its time.


@pytest.mark.parametrize(
    ("layer", "prefilled"),
    [(1, 0), (2, 512), (3, 512), (4, 1024), (5, 1024)],  # of three chunks of two layers each
)
def test_a_cancelled_prefill_ends_within_a_layer(
    engine: Engine, parrot: Parrot, layer: int, prefilled: int
) -> None:
    jobs: list[Job] = []
    computed = 0

    def cancel() -> None:
        nonlocal computed
        computed += 1
        if computed == layer:
            jobs[0].cancel()

    parrot.on_layer = cancel
    started, end = ask(
        engine, Request((40,) * 1200, max_new_tokens=4), lambda job, _: jobs.append(job)
    )
    assert isinstance(started, Started) and isinstance(end, Finished)
    assert (end.reason, end.prefilled, end.generated) == ("cancelled", prefilled, 0)
    assert computed == layer  # not one more


def test_a_cancelled_answer_ends_within_a_token(engine: Engine) -> None:
    def cancel_at_c(job: Job, event: Event) -> None:
        if isinstance(event, Token) and event.text == "c":
            job.cancel()

    events = ask(engine, Request(PROMPT, max_new_tokens=6), cancel_at_c)
    assert (text_of(events), end_of(events).reason, end_of(events).generated) == (
        "abc",
        "cancelled",
        3,
    )


def fails(error: Exception) -> Callable[[], None]:
    def on_layer() -> None:
        raise error

    return on_layer


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no room"), MemoryError("no room"), RuntimeError("no room")],
    ids=repr,
)
def test_a_request_that_fails_says_so_and_frees_the_cache(
    engine: Engine, parrot: Parrot, error: Exception
) -> None:
    ask(engine, Request((40,) * 600, max_new_tokens=0))
    assert engine.prefixes.nbytes > 0
    parrot.on_layer = fails(error)
    started, failed = ask(engine, Request(PROMPT, max_new_tokens=4))
    assert isinstance(started, Started)
    assert failed == Failed(f"The engine could not answer ({type(error).__name__}: no room).")
    assert engine.prefixes.nbytes == 0
    parrot.on_layer = lambda: None
    assert text_of(ask(engine, Request(PROMPT, max_new_tokens=4))) == "abcd"


def test_a_request_that_cannot_be_run_fails_alone(engine: Engine) -> None:
    assert isinstance(ask(engine, Request((), max_new_tokens=4))[-1], Failed)
    assert isinstance(ask(engine, Request((40,) * 5000, max_new_tokens=4))[-1], Failed)
    assert text_of(ask(engine, Request(PROMPT, max_new_tokens=4))) == "abcd"


@pytest.mark.parametrize("kind", [Started, Token, Finished])
def test_a_reader_that_fails_harms_no_other(engine: Engine, kind: type) -> None:
    def stumble(job: Job, event: Event) -> None:
        if isinstance(event, kind | Failed):
            raise OSError("the reader has gone")

    ask(engine, Request(PROMPT, max_new_tokens=4), stumble)
    assert text_of(ask(engine, Request(PROMPT, max_new_tokens=4))) == "abcd"


def test_an_engine_knows_what_it_has_served_and_that_it_is_busy(engine: Engine) -> None:
    seen: list[tuple[int, bool, float]] = []

    def look(*_: object) -> None:
        seen.append((engine.served, engine.busy, engine.idle_s))

    for _ in range(3):
        ask(engine, Request(PROMPT, max_new_tokens=0), look)
    assert seen == [(n, True, 0.0) for n in (0, 0, 1, 1, 2, 2)]


# What is done while nobody asks.


def test_an_upgrade_goes_on_between_requests_until_it_ends(
    parrot: Parrot, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.engine.worker.UPGRADE_AFTER_S", 0.01)
    parrot.row_costs = {1: 1.0, 2: 1.5}
    begun, ended = threading.Event(), threading.Event()

    def upgrade() -> Iterator[None]:
        for _ in range(3):
            begun.set()
            assert not engine.busy
            yield
        parrot.row_costs = {1: 1.0, 2: 9.0}
        ended.set()

    with running(parrot.as_model(byte_tokenizer), upgrade()) as engine:
        assert begun.wait(60)
        assert text_of(ask(engine, Request(PROMPT, max_new_tokens=4))) == "abcd"
        assert ended.wait(60)
        assert text_of(ask(engine, Request(PROMPT, max_new_tokens=4))) == "abcd"
        assert engine.upgraded
        assert engine.history is not None
        assert engine.history.costs_at(0) == [0.0, 1.0, 9.0]


def test_an_upgrade_that_fails_harms_nobody(
    parrot: Parrot, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.engine.worker.UPGRADE_AFTER_S", 0.01)
    failed = threading.Event()

    def upgrade() -> Iterator[None]:
        yield
        failed.set()
        raise MemoryError

    with running(parrot.as_model(byte_tokenizer), upgrade()) as engine:
        assert not engine.upgraded
        assert failed.wait(60)
        assert text_of(ask(engine, Request(PROMPT, max_new_tokens=4))) == "abcd"
        assert engine.upgraded


def test_free_memory_is_given_back_when_nobody_asks(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back = threading.Event()
    monkeypatch.setattr("model.engine.worker.TIDY_AFTER_S", 0.01)
    monkeypatch.setattr("model.engine.worker.give_back_memory", given_back.set)
    ask(engine, Request(PROMPT, max_new_tokens=4))
    assert given_back.wait(60)
    assert text_of(ask(engine, Request(PROMPT, max_new_tokens=4))) == "abcd"


# Prompts of several sizes: the machine's speed says which is run.


LONG = tuple(range(40, 100)) * 8
SHORT = (*LONG[400:], MIDDLE)
CHOICE = Request((*LONG, MIDDLE), max_new_tokens=2, shorter=(SHORT,), prefill_s=1.0)


def taken(events: list[Event]) -> tuple[int, int]:
    """The length of the prompt that was run, and how many of its ids were cached."""
    assert isinstance(events[0], Started)
    return events[0].prompt, events[0].reused


@pytest.mark.parametrize(
    ("rate", "length"), [(None, len(SHORT)), (100.0, len(SHORT)), (1000.0, len(LONG) + 1)]
)
def test_the_longest_prompt_that_is_read_in_time_is_run(
    engine: Engine, rate: float | None, length: int
) -> None:
    if rate:
        engine.speed.prefilled(1000, 1000 / rate)
    events = ask_for(engine, CHOICE)
    assert taken(events) == (length, 0)
    assert text_of(events) == "ab"


def test_a_prompt_that_is_too_long_is_run_once_idle_time_has_read_it(engine: Engine) -> None:
    engine.speed.prefilled(1000, 10)
    assert taken(ask_for(engine, CHOICE)) == (len(SHORT), 0)
    read = ask_for(engine, replace(CHOICE, max_new_tokens=0, idle=True))
    assert end_of(read).reason == "stop" or end_of(read).reason == "length"
    assert taken(ask_for(engine, CHOICE)) == (len(LONG) + 1, len(LONG))


def test_idle_time_reads_the_shortest_prompt_first(engine: Engine, parrot: Parrot) -> None:
    layers = 0

    def stop_in_the_second_prompt() -> None:
        nonlocal layers
        layers += 1
        if layers == 2 * (-(-len(SHORT) // IDLE_CHUNK)) + 1:
            reading.job.cancel()

    parrot.on_layer = stop_in_the_second_prompt
    reading = Answer(engine, replace(CHOICE, max_new_tokens=0, idle=True), lambda *_: None)
    reading.wait()
    parrot.on_layer = lambda: None
    for _ in range(KEPT):
        engine.speed.prefilled(1000, 1000)
    assert taken(ask_for(engine, CHOICE)) == (len(SHORT), len(SHORT) - 1)


def test_an_answer_that_is_ended_early_is_measured_too(engine: Engine) -> None:
    """Most are: the window has read enough."""

    def cancel_at_the_first_token(job: Job, event: Event) -> None:
        if isinstance(event, Token):
            job.cancel()

    Answer(engine, Request(LONG, max_new_tokens=5), cancel_at_the_first_token).wait()
    assert engine.speed.prefill is not None


def test_a_prefill_that_was_not_finished_says_nothing_of_the_speed(
    engine: Engine, parrot: Parrot
) -> None:
    parrot.on_layer = lambda: reading.job.cancel()
    reading = Answer(engine, Request(LONG, max_new_tokens=0, idle=True), lambda *_: None)
    reading.wait()
    assert engine.speed.prefill is None
    parrot.on_layer = lambda: None
    ask(engine, Request(LONG, max_new_tokens=0, idle=True))
    assert engine.speed.prefill is not None


def ask_for(engine: Engine, request: Request) -> list[Event]:
    return Answer(engine, request, lambda *_: None).wait()


def test_the_speed_is_the_median_of_real_requests() -> None:
    speed = Speed()
    assert speed.prefill is None and not speed.fits(100, 10) and speed.fits(1, 0)
    for seconds in (1.0, 1.25, 50.0):
        speed.prefilled(100, seconds)
    speed.prefilled(8, 1.0)  # a step, not a prefill
    assert speed.prefill == 80
    assert speed.fits(80, 1.0) and not speed.fits(81, 1.0)
    speed.decoded(0, 1.0)
    assert speed.decode is None
    speed.decoded(30, 1.5)
    assert speed.decode == 20
