"""What a CUDA graph records is run here as it is, on the CPU: the same logits as the decoder's own
way, everywhere."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model import LoadedModel
from model.decoder.kv_cache import KVCache
from model.decoder.stopping import Cancelled
from model.generation.drafting import DraftHistory, row_costs
from model.generation.generate import DecodeCounts
from model.gpu import cuda_graphs
from model.gpu.cuda_graphs import Graphs, span
from tests.conftest import STARCODER2, write_model
from tests.model.families.test_parity import (
    CASES,
    LENGTH,
    PATH_CASES,
    WINDOW,
    logits_of,
    random_ids,
)
from tests.model.toys import load

GRAIN = 8  # spans end within the lengths of these tests, many times
STEPS = (1, 2, 3, 1, 4, 5, 8, 1, 7, 6, 2)  # rows; their sum goes over several spans


class Recorder:
    """In the recorder's place: what is recorded is run again whenever it is started."""

    def __init__(self) -> None:
        self.recorded = self.started = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1

        def start() -> None:
            self.started += 1
            run()

        return start


def with_graphs(m: LoadedModel, **options: Any) -> Recorder:
    recorder = Recorder()
    m.decoder.use_step(Graphs(m.decoder, recorder, **{"grain": GRAIN} | options))
    return recorder


def poisoned(m: LoadedModel, capacity: int) -> KVCache:
    """A cache whose memory was used before, by whatever is worst."""
    cache = m.decoder.new_cache(capacity)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    return cache


@torch.inference_mode()
def in_steps(
    m: LoadedModel, cache: KVCache, ids: list[int], steps: tuple[int, ...]
) -> torch.Tensor:
    found, at = [], cache.length
    for rows in steps:
        found.append(m.decoder(torch.tensor([ids[at : at + rows]]), cache=cache).logits[0])
        at += rows
    return torch.cat(found)


@pytest.mark.parametrize(
    "prompt", [1, 9, 20]
)  # below and above the number of rows that take this way
@pytest.mark.parametrize("config", CASES)
def test_logits_are_those_of_the_decoder(
    config: dict[str, Any], prompt: int, tmp_path: Path
) -> None:
    m = load(write_model(tmp_path, config))
    total = prompt + sum(STEPS)
    ids = random_ids(total)
    expected = logits_of(m, ids)
    recorder = with_graphs(m)
    # The second time over the same positions everything is recorded.
    cache = poisoned(m, 256)
    for _ in range(3):
        cache.trim(0)
        found = in_steps(m, cache, ids, (prompt, *STEPS))
        assert cache.length == total
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert recorder.started > recorder.recorded > len(STEPS) // 2


@pytest.mark.parametrize("config", PATH_CASES)
def test_a_cache_that_grows_moves_and_is_forked(config: dict[str, Any], tmp_path: Path) -> None:
    m = load(write_model(tmp_path, config))
    ids, other = random_ids(120), random_ids(120, seed=2)
    expected = logits_of(m, ids[:40] + other)
    with_graphs(m)
    cache = m.decoder.new_cache()
    in_steps(m, cache, ids, (1,) * 60)
    fork = cache.fork(40)
    cache.trim(40)
    cache.shrink()  # to other memory
    for warm in (cache, fork):
        found = in_steps(m, warm, ids[:40] + other, (1, 4, 20, *(1,) * 55))
        torch.testing.assert_close(found, expected[40:120], atol=1e-4, rtol=1e-4)


def test_the_last_position_and_only_the_logits_asked_for(starcoder2_folder: Path) -> None:
    m = load(starcoder2_folder)
    ids = random_ids(256)
    expected = logits_of(m, ids)
    with_graphs(m, grain=512)  # more than the model has
    cache = m.decoder.new_cache()
    with torch.inference_mode():
        m.decoder(torch.tensor([ids[:249]]), cache=cache)
        logits = m.decoder(torch.tensor([ids[249:]]), cache=cache, logits_to_keep=3).logits[0]
        cache.trim(249)
        m.decoder(torch.tensor([ids[249:]]), cache=cache)
    assert logits.shape[0] == 3
    torch.testing.assert_close(logits, expected[-3:], atol=1e-4, rtol=1e-4)
    assert cache.capacity == cache.length == 256


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_float32(dtype: str, starcoder2_folder: Path) -> None:
    from model import load_model

    ids = random_ids(LENGTH)
    expected = logits_of(load(starcoder2_folder), ids)
    m = load_model(starcoder2_folder, "cpu", dtype)

    def off() -> float:
        cache = m.decoder.new_cache()
        found = in_steps(m, cache, ids, (20, *(1, 2, 4) * 4))
        assert found.dtype == m.decoder.dtype
        return float((found.float() - expected).norm() / expected.norm())

    own = off()
    with_graphs(m)
    assert off() < 1.5 * own < 0.1


@pytest.mark.parametrize("sizes", [(8,), (1, 2, 4, 8), (1,)])
def test_drafts_change_nothing(sizes: tuple[int, ...], talkative_folder: Path) -> None:
    m = load(talkative_folder)
    ids = random_ids(LENGTH)
    plain = [t.id for t in m.generate(ids, max_new_tokens=40)]
    with_graphs(m, sizes=sizes)
    costs = {rows: cost for rows, cost in cuda_graphs.ROW_COSTS.items() if rows <= sizes[-1]}
    history, counts = DraftHistory(costs), DecodeCounts()
    for _ in range(3):
        assert [
            t.id for t in m.generate(ids, max_new_tokens=40, history=history, counts=counts)
        ] == plain
    assert (counts.accepted > 0) == (sizes[-1] > 1)


def test_rows_beyond_the_graphs_are_not_drafted() -> None:
    assert len(row_costs(cuda_graphs.ROW_COSTS)) == 1 + cuda_graphs.SIZES[-1]


def test_a_stop_before_a_step_changes_nothing(starcoder2_folder: Path) -> None:
    m = load(starcoder2_folder)
    recorder = with_graphs(m)
    cache = m.decoder.new_cache()
    with pytest.raises(Cancelled):
        m.decoder(torch.ones(1, 4, dtype=torch.long), cache=cache, should_stop=lambda: True)
    assert (cache.length, recorder.started) == (0, 0)


def test_what_was_recorded_for_a_cache_goes_with_it(starcoder2_folder: Path) -> None:
    m = load(starcoder2_folder)
    started: list[int] = []

    def forgetful(
        run: Callable[[], None],
    ) -> Callable[[], None]:  # as a graph, it keeps no tensor alive
        return lambda: started.append(1)

    few = Graphs(m.decoder, forgetful, grain=GRAIN)
    m.decoder.use_step(few)
    for count in range(3):
        cache = m.decoder.new_cache()
        in_steps(m, cache, random_ids(40), (1,) * 40)
        assert len(few._storages) == 1
        assert {name for name, *_ in few._recorded} == {id(cache.keys)}
        assert len(started) >= 10 * (count + 1)
        del cache
        gc.collect()


def test_memory_of_a_gone_cache_comes_back_in_another(starcoder2_folder: Path) -> None:
    """The new tensors may get the old ones' name; the old recordings are not theirs."""
    m = load(starcoder2_folder)
    ids = random_ids(30)
    expected = logits_of(m, ids)
    few = Graphs(m.decoder, lambda run: run)
    m.decoder.use_step(few)
    cache, gone = poisoned(m, 256), torch.zeros(1)
    few._storages[id(cache.keys)] = weakref.ref(gone)
    few._recorded[id(cache.keys), 1, 0, 256] = lambda: pytest.fail(
        "a recording of another cache was started"
    )
    del gone
    found = in_steps(m, cache, ids, (1,) * 30)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_few_recordings_are_kept(starcoder2_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "KEPT", 3)
    m = load(starcoder2_folder)
    ids = random_ids(100)
    expected = logits_of(m, ids)
    with_graphs(m)
    caches = [m.decoder.new_cache() for _ in range(3)]
    for at in range(100):
        for cache in caches:
            torch.testing.assert_close(
                in_steps(m, cache, ids, (1,))[0], expected[at], atol=1e-4, rtol=1e-4
            )
    assert isinstance(m.decoder.step, Graphs)
    assert len(m.decoder.step._recorded) == 3


def test_a_device_that_cannot_record_runs_every_step_as_it_is(
    starcoder2_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    m = load(starcoder2_folder)

    def refuse(run: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    ids = random_ids(30)
    expected = logits_of(m, ids)
    m.decoder.use_step(Graphs(m.decoder, refuse))
    found = in_steps(m, m.decoder.new_cache(), ids, (1,) * 30)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert [r.getMessage() for r in caplog.records] == [
        "steps are not recorded as CUDA graphs and take longer (operation not permitted when "
        "stream is capturing)"
    ]


def test_a_span_holds_what_is_seen_and_little_more() -> None:
    for window in (None, WINDOW, 4096):
        spans = set()
        for start in range(0, 16000, 7):
            for rows in (1, 8):
                first, end = span(start, start + rows, window, 512)
                least = 0 if window is None else max(0, start + 1 - window)
                assert first <= least
                assert end >= start + rows
                assert end - first <= max(1024, 1.5 * (start + rows - least))
                spans.add((first, end))
        assert len(spans) < 80 if window == WINDOW else len(spans) < 40


def test_nothing_recorded_depends_on_what_the_buffers_hold(tmp_path: Path) -> None:
    """The same call, started again with other ids and positions in the buffers, is right for
    those."""
    m = load(write_model(tmp_path, STARCODER2 | {"sliding_window": WINDOW}))
    ids = random_ids(64)
    expected = logits_of(m, ids)
    runs: list[Callable[[], None]] = []
    m.decoder.use_step(Graphs(m.decoder, lambda run: runs.append(run) or run, sizes=(1,), grain=64))
    cache = m.decoder.new_cache(64)
    found = in_steps(m, cache, ids, (1,) * 64)
    assert len(runs) == 1  # one recording served 63 positions
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
