"""The compiled pass with weights in blocks: close to the layers, each row as it is alone, the same
with any number of threads."""

from __future__ import annotations

import gc
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.cpu.blocks import tables
from model.cpu.blocks.decoder_step import BlockStep, Pace, add_block_step
from model.cpu.blocks.kernel import PRODUCT
from model.cpu.blocks.layout import BY_NAME
from model.cpu.blocks.linear import BlockFactory
from model.cpu.measurements import Busy
from model.decoder.decoder import Decoder
from model.decoder.kv_cache import KVCache, Unfinished
from model.decoder.stopping import ASK_EVERY_S, Cancelled, ShouldStop
from model.weights.checkpoint import Checkpoint
from model.weights.folder import find_model
from tests.conftest import (
    GEMMA,
    GPT_BIGCODE,
    GRANITE,
    LLAMA,
    QWEN2,
    QWEN3,
    STABLELM,
    STARCODER2,
    write_model,
)
from tests.model.cpu.test_quantized_linear import distance
from tests.model.families.test_parity import LENGTH, WINDOW, WINDOW_IN_ALL_LAYERS, random_ids

pytestmark = pytest.mark.xdist_group("compiled")  # one process compiles, for all of them


@pytest.fixture(autouse=True, scope="module")
def machine_code(code: Path) -> None:
    PRODUCT.load(code)


@pytest.fixture(autouse=True)
def small_models_share_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ALONE", 0)


FAMILIES: dict[str, dict[str, Any]] = {
    "starcoder2": STARCODER2,
    "window": STARCODER2 | {"sliding_window": WINDOW},
    "untied, no biases": STARCODER2
    | {"tie_word_embeddings": False, "use_bias": False, "hidden_act": "gelu"},
    "stablelm": STABLELM | {"intermediate_size": 64},
    "stablelm, parallel": STABLELM
    | {
        "hidden_size": 64,
        "intermediate_size": 96,
        "use_qkv_bias": True,
        "qk_layernorm": True,
        "use_parallel_residual": True,
    },
    "qwen2": QWEN2 | WINDOW_IN_ALL_LAYERS | {"intermediate_size": 64},
    "llama": LLAMA | {"head_dim": 16, "intermediate_size": 64},
    "qwen3": QWEN3 | {"intermediate_size": 64},
    "granite": GRANITE | {"intermediate_size": 64, "attention_bias": True, "mlp_bias": True},
    "gemma": GEMMA | {"intermediate_size": 64},
    "gpt_bigcode": GPT_BIGCODE,
    "no whole blocks": STARCODER2 | {"hidden_size": 40, "intermediate_size": 72},
}
families = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)


def load(folder: Path, scheme: str = "q8_0") -> Decoder:
    checkpoint = Checkpoint.open(find_model(folder))
    factory = BlockFactory.for_cpu(checkpoint.config, scheme, keeps=False)
    decoder = Decoder(checkpoint.config, factory).eval().requires_grad_(False)
    checkpoint.fill(decoder, factory, lambda share: None)
    return decoder


@torch.inference_mode()
def in_steps(
    decoder: Decoder, ids: list[int], rows: int, should_stop: ShouldStop | None = None
) -> tuple[Tensor, Tensor]:
    """Logits of all ids, and the cache."""
    cache = decoder.new_cache()
    logits = [
        decoder(torch.tensor([ids[i : i + rows]]), cache=cache, should_stop=should_stop).logits[0]
        for i in range(0, len(ids), rows)
    ]
    held = (cache.keys[:, :, : len(ids)], cache.values[:, :, : len(ids)])
    return torch.cat(logits), torch.stack(held)


@families
def test_it_is_close_to_the_layers(config: dict[str, Any], tmp_path: Path) -> None:
    decoder = load(write_model(tmp_path, config))
    ids = random_ids(LENGTH)
    with torch.inference_mode():
        expected = decoder(torch.tensor([ids])).logits[0]
    decoder.use_step(BlockStep(decoder, 1))
    # A last bit may round an activation to its next number.
    assert distance(in_steps(decoder, ids, 5)[0], expected) < 0.03


@families
def test_a_row_comes_out_as_it_does_alone(config: dict[str, Any], tmp_path: Path) -> None:
    """Bit for bit, in logits and cache, in steps and in a prefill, and whatever the threads:
    speculative decoding then says what plain decoding says, and a warm cache gives what a cold one
    does."""
    decoder = load(write_model(tmp_path, config))
    decoder.use_step(BlockStep(decoder, 1))
    alone = in_steps(decoder, random_ids(LENGTH), 1)
    for threads, rows in ((1, 2), (1, 16), (2, 1), (2, 7), (3, 16), (1, 17), (3, LENGTH)):
        decoder.use_step(BlockStep(decoder, threads))
        for ours, expected in zip(in_steps(decoder, random_ids(LENGTH), rows), alone, strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("scheme", ["q4_0", "q5_0", "q8_0"])
def test_every_format_that_floats_are_rounded_to(scheme: str, tmp_path: Path) -> None:
    decoder = load(write_model(tmp_path, LLAMA | {"intermediate_size": 64}), scheme)
    assert decoder.layers[0].mlp.up.parts[0].format is BY_NAME[scheme]
    ids = random_ids(LENGTH)
    with torch.inference_mode():
        expected = decoder(torch.tensor([ids])).logits[0]
    decoder.use_step(BlockStep(decoder, 2))
    assert distance(in_steps(decoder, ids, 16)[0], expected) < 0.03


class Clock:
    """Goes on by `step` at each look, and when it is told to."""

    def __init__(self, step: float = 0.0) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Never:
    """Never stops."""

    asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return False


def test_a_pass_is_divided_by_what_a_layer_took(starcoder2_folder: Path) -> None:
    config = replace(Checkpoint.open(find_model(starcoder2_folder)).config, num_layers=12)
    clock = Clock()
    pace = Pace(replace(config, vocab_size=2 * config.layer_weights // config.hidden_size), clock)

    def run(rows: int, layer_s: float) -> list[tuple[int, int]]:
        parts = []
        head = 2 if rows <= 16 else 2 / rows  # of one row
        for first, end in pace.parts(rows, 1, lambda: False):
            clock.now += layer_s * (min(end, 12) - first + head * (end == 13))
            parts.append((first, end))
        return parts

    assert list(pace.parts(1, 1, None)) == [(0, 13)]  # nobody asks
    assert list(pace.parts(1, 1, None, 4)) == [(4, 13)]
    slow, fast = ASK_EVERY_S / 3.5, ASK_EVERY_S / 20
    assert run(4, slow) == [(0, 1), (1, 4), (4, 7), (7, 10), (10, 12), (12, 13)]
    assert run(4, slow) == [(0, 3), (3, 6), (6, 9), (9, 12), (12, 13)]
    assert run(4, fast) == [(0, 3), (3, 13)]
    assert run(4, fast) == [(0, 13)]
    assert run(1, 2 * ASK_EVERY_S) == [(n, n + 1) for n in range(13)]
    assert run(4, fast) == [(0, 13)]
    assert run(64, ASK_EVERY_S / 6.1) == [(0, 1), (1, 7), (7, 13)]


@pytest.mark.parametrize("rows", [7, 20])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_pass_in_parts_is_the_whole_one(threads: int, rows: int, starcoder2_folder: Path) -> None:
    decoder = load(starcoder2_folder)
    decoder.use_step(BlockStep(decoder, threads, Clock(1.0)))  # each layer takes long
    ids = torch.tensor([random_ids(rows)])
    cache = decoder.new_cache()
    with torch.inference_mode():
        decoder(torch.tensor([random_ids(9)]), cache=cache)
        whole = decoder(ids, cache=cache).logits
        for stop_at in range(decoder.config.num_layers + 2):
            cache.trim(9)
            asked = []

            def stop(asked: list[int] = asked, stop_at: int = stop_at) -> bool:
                asked.append(1)
                return len(asked) > stop_at

            if stop_at <= decoder.config.num_layers:
                with pytest.raises(Cancelled):
                    decoder(ids, cache=cache, should_stop=stop)
                assert cache.length == 9
                again = Never()
                goes_on = decoder(ids, cache=cache, should_stop=again)
                assert torch.equal(goes_on.logits, whole)
                assert again.asked == decoder.config.num_layers + 1 - stop_at
            else:
                assert torch.equal(decoder(ids, cache=cache, should_stop=stop).logits, whole)
                assert len(asked) == stop_at


def test_threads_that_come_late_or_never_change_nothing(starcoder2_folder: Path) -> None:
    """Far more threads than cores, so that most of them sleep while a pass runs, wake in another
    one, and find its pieces taken."""
    decoder = load(starcoder2_folder)
    decoder.use_step(BlockStep(decoder, 1))
    ids = random_ids(LENGTH)
    alone = in_steps(decoder, ids, 1)
    clock = Clock()
    decoder.use_step(BlockStep(decoder, 4 * (os.cpu_count() or 1), clock))
    for turn in range(30):
        clock.step = turn % 2  # in parts, or in one
        found = in_steps(decoder, ids, 1 + turn % 3, lambda: False)
        for ours, expected in zip(found, alone, strict=True):
            assert torch.equal(ours, expected)
        time.sleep(0.002 * (turn % 3))  # some of them go to sleep


def test_a_small_model_shares_a_prefill_alone(
    starcoder2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    before = set(threading.enumerate())
    decoder = load(starcoder2_folder)
    decoder.use_step(BlockStep(decoder, 2))
    in_steps(decoder, random_ids(8), 1)
    assert set(threading.enumerate()) == before
    in_steps(decoder, random_ids(32), 32)
    assert len(set(threading.enumerate()) - before) == 1


def test_helpers_sleep_until_they_are_wanted(starcoder2_folder: Path) -> None:
    decoder = load(starcoder2_folder)
    decoder.use_step(BlockStep(decoder, 2))

    def others_time() -> float:
        """Seconds that the threads of this process but this one have run."""
        return time.process_time() - time.thread_time()

    before = others_time()
    until = time.monotonic() + 20
    while others_time() - before < 0.05 and time.monotonic() < until:
        in_steps(decoder, random_ids(LENGTH), LENGTH)
    assert others_time() - before >= 0.05
    time.sleep(0.1)
    before = others_time()
    time.sleep(0.5)
    assert others_time() - before < 0.05


def test_helpers_end_with_the_step(starcoder2_folder: Path) -> None:
    before = set(threading.enumerate())
    decoder = load(starcoder2_folder)
    decoder.use_step(BlockStep(decoder, 3))
    in_steps(decoder, random_ids(8), 1)
    helpers = set(threading.enumerate()) - before
    assert len(helpers) == 2
    decoder.use_step(None)
    gc.collect()
    for helper in helpers:
        helper.join(20)
        assert not helper.is_alive()


def test_what_is_not_finite_stays_in_its_row(starcoder2_folder: Path) -> None:
    decoder = load(starcoder2_folder)
    decoder.use_step(BlockStep(decoder, 2))
    cache = decoder.new_cache()
    with torch.inference_mode():
        decoder(torch.tensor([random_ids(8)]), cache=cache)
        cache.keys[:, :, 7] = float("nan")  # which the next rows see
        logits = decoder(torch.tensor([random_ids(2)]), cache=cache).logits
        assert logits.isnan().all()
        cache.trim(7)
        assert decoder(torch.tensor([random_ids(2)]), cache=cache).logits.isfinite().all()


@pytest.mark.parametrize("rows", [6, 40])
def test_only_the_logits_that_are_asked_for(rows: int, starcoder2_folder: Path) -> None:
    decoder = load(starcoder2_folder)
    decoder.use_step(BlockStep(decoder, 2))
    ids = torch.tensor([random_ids(rows)])
    with torch.inference_mode():
        whole = decoder(ids, cache=decoder.new_cache()).logits
        last = decoder(ids, cache=decoder.new_cache(), logits_to_keep=2).logits
        many = decoder(ids, cache=decoder.new_cache(), logits_to_keep=rows - 3).logits
    assert whole.shape[1] == rows
    assert torch.equal(last, whole[:, -2:])
    assert torch.equal(many, whole[:, 3:])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("rows", [12, 40])
def test_what_is_not_finite_reaches_later_rows_alone(
    rows: int, number: float, starcoder2_folder: Path
) -> None:
    decoder = load(starcoder2_folder)
    decoder.use_step(BlockStep(decoder, 2))
    ids = torch.tensor([random_ids(rows)])
    cache = decoder.new_cache()
    with torch.inference_mode():
        expected = decoder(ids, cache=cache).logits[0]
        cache.trim(0)
        x = decoder.embed(ids, slice(0, rows))
        x[0, 9, 3] = number
        cache.unfinished = Unfinished(ids, 0, 0, x)
        found = decoder(ids, cache=cache).logits[0]
    assert torch.equal(found[:9], expected[:9])
    assert found[9:].isnan().all()


def test_what_does_not_fit_is_refused(starcoder2_folder: Path) -> None:
    decoder = load(starcoder2_folder)
    step = BlockStep(decoder, 1)
    config = decoder.config
    small = KVCache(config, dtype=torch.float32, device=torch.device("cpu"), capacity=2)
    with pytest.raises(IndexError, match="vocabulary"):
        step(torch.tensor([config.vocab_size]), decoder.new_cache(8), 1, None)
    with pytest.raises(IndexError, match="room"):
        step(torch.tensor([1, 2, 3]), small, 1, None)
    with pytest.raises(Cancelled):
        step(torch.tensor([1]), small, 1, lambda: True)
    assert small.length == 0


@pytest.mark.parametrize("busy", [False, True])
def test_the_costs_of_rows_are_known(
    busy: bool, starcoder2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = load(starcoder2_folder)
    if busy:

        def refuse(*_: Any) -> None:
            raise Busy

        monkeypatch.setattr("model.cpu.measurements.Measurements.times", refuse)
    else:
        monkeypatch.setattr("model.cpu.measurements.is_quiet", lambda: True)
    add_block_step(decoder, tmp_path)
    assert isinstance(decoder.step, BlockStep)
    assert decoder.row_costs is not None
    assert decoder.row_costs[1] == 1
    for costs in (decoder.row_costs, decoder.cache_costs):
        assert max(costs) == 16
        assert list(costs.values()) == sorted(costs.values())
        assert min(costs.values()) >= 0


@pytest.mark.parametrize("rms", [False, True], ids=["layer norm", "RMS norm"])
def test_a_norm_is_of_the_kind_that_is_asked_for(rms: bool) -> None:
    """On whole rows, and on queries and keys."""
    from model.cpu.blocks.compiled.floats import gain, norm

    generator = torch.Generator().manual_seed(6)
    x = torch.randn(3, 40, generator=generator) + 0.5
    weight = torch.randn(40, generator=generator)
    expected = torch.layer_norm(x, (40,), weight, None, 1e-3)
    if rms:
        expected = torch.rms_norm(x, (40,), weight, 1e-3)
    out = np.empty((3, 40), np.float32)
    eps = np.float32(1e-3)
    norm(x.numpy(), torch.stack((weight, torch.zeros(40))).numpy(), rms, eps, out)
    torch.testing.assert_close(torch.from_numpy(out), expected)
    for row in x:
        gain(row.numpy(), weight.numpy(), rms, eps)
    torch.testing.assert_close(x, expected)


@families
def test_every_family_runs_what_was_compiled(config: dict[str, Any], tmp_path: Path) -> None:
    """Else the engine would compile, for seconds and into a folder that is then in doubt."""
    from model.cpu.blocks.compiled.step import load as load_code
    from model.cpu.blocks.compiled.step import share

    load_code()
    decoder = load(write_model(tmp_path, config))
    decoder.use_step(BlockStep(decoder, 1))
    in_steps(decoder, random_ids(LENGTH), 4)
    assert len(share.signatures) == 1
