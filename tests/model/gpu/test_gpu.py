"""The decoder on a CUDA device says what it says on the CPU, along every path; `make gpu` runs
these."""

from __future__ import annotations

import gc
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from model import LoadedModel, load_model
from model.errors import ModelError
from model.generation.drafting import DraftHistory
from model.generation.generate import DecodeCounts, prefill
from model.gpu.cuda_graphs import ROW_COSTS, Graphs
from model.precision.bitsandbytes_linear import BitsLinear
from model.prefix_cache.memory import PrefixCache
from tests.conftest import STABLELM, STARCODER2, write_model
from tests.model.families.test_parity import CASES, LENGTH, WINDOW, random_ids

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
STEPS = (1, 2, 3, 1, 4, 5, 8, 1, 7, 6, 2)
LONG = STARCODER2 | {"max_position_embeddings": 4096, "hidden_size": 256, "num_attention_heads": 4}


def on_gpu(folder: Path, dtype: str = "float32", **options: Any) -> LoadedModel:
    return load_model(folder, device="cuda", dtype=dtype, **options)


@torch.inference_mode()
def in_steps(m: LoadedModel, cache: Any, ids: list[int], steps: tuple[int, ...]) -> torch.Tensor:
    found, at = [], cache.length
    for rows in steps:
        step = torch.tensor([ids[at : at + rows]], device=m.decoder.device)
        found.append(m.decoder(step, cache=cache).logits[0])
        at += rows
    return torch.cat(found)


def recorded(m: LoadedModel) -> int:
    """How many steps were recorded."""
    assert isinstance(m.decoder.step, Graphs)
    assert m.decoder.step._record is not None, "a recording failed"
    return sum(replay is not None for replay in m.decoder.step._recorded.values())


def test_logits_and_greedy_text_are_those_of_the_cpu(starcoder2_folder: Path) -> None:
    cpu = load_model(starcoder2_folder, device="cpu", dtype="float32")
    gpu = on_gpu(starcoder2_folder)
    ids = torch.randint(8, 260, (48,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = cpu.decoder(ids[None]).logits
        torch.testing.assert_close(
            gpu.decoder(ids[None].cuda()).logits.cpu(), expected, atol=1e-3, rtol=1e-3
        )
    prompt = ids.tolist()
    texts = [[t.id for t in m.generate(prompt, max_new_tokens=30)] for m in (cpu, gpu)]
    assert texts[0] == texts[1]


# ---- graph = eager ----


@pytest.mark.parametrize("config", CASES)
def test_recorded_steps_give_the_decoders_logits(config: dict[str, Any], tmp_path: Path) -> None:
    m = on_gpu(write_model(tmp_path, config))
    ids = random_ids(20 + sum(STEPS))
    with torch.inference_mode():
        expected = m.decoder(torch.tensor([ids]).cuda()).logits[0]
    cache = m.decoder.new_cache(256)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    found = []
    for _ in range(4):
        cache.trim(0)
        found.append(in_steps(m, cache, ids, (20, *STEPS)))
        torch.testing.assert_close(found[-1], expected, atol=1e-3, rtol=1e-3)
    assert torch.equal(found[0][20:], found[-1][20:])  # what ran as it is, and its recordings
    assert recorded(m) == 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("window", [None, 700])
def test_recorded_steps_over_many_spans(window: int | None, dtype: str, tmp_path: Path) -> None:
    """Up to the last position, the cache growing on the way."""
    m = on_gpu(write_model(tmp_path, LONG | {"sliding_window": window}, scale=0.05), dtype)
    ids = random_ids(4096)
    few, cache = m.decoder.step, m.decoder.new_cache()
    with torch.inference_mode():
        for length in (500, 1000, 2040, 4000):
            m.decoder.use_step(None)
            in_steps(m, cache, ids, (length - cache.length,))
            expected = in_steps(m, cache, ids, (1,) * 96)
            m.decoder.use_step(few)
            for steps in ((1,) * 96, (8,) * 12, (3,) * 32):
                cache.trim(length)
                found = in_steps(m, cache, ids, steps)
                assert (
                    float((found.float() - expected.float()).norm() / expected.float().norm())
                    < 0.02
                )
    assert recorded(m) > 4


def test_recordings_of_caches_that_are_gone_are_dropped(starcoder2_folder: Path) -> None:
    m = on_gpu(starcoder2_folder)
    ids = random_ids(60)
    with torch.inference_mode():
        expected = m.decoder(torch.tensor([ids]).cuda()).logits[0]
    for _ in range(20):
        cache = m.decoder.new_cache(256)
        torch.testing.assert_close(
            in_steps(m, cache, ids, (1,) * 60), expected, atol=1e-3, rtol=1e-3
        )
        assert recorded(m) == 1
        del cache
        gc.collect()


# ---- cached = fresh, speculative = greedy ----


@pytest.mark.parametrize("config", [STARCODER2 | {"sliding_window": WINDOW}, STARCODER2, STABLELM])
def test_a_cached_prefix_gives_what_a_fresh_cache_gives(
    config: dict[str, Any], tmp_path: Path
) -> None:
    m = on_gpu(write_model(tmp_path, config))
    ids, other = random_ids(LENGTH), random_ids(LENGTH, seed=2)
    prefixes = PrefixCache(m.decoder)
    for split in (1, 15, 30, LENGTH - 1):
        for prompt in (ids, ids[:split] + other):
            lease = prefixes.lease(prompt)
            warm = prefill(m.decoder, lease.cache, prompt, None, 512)
            fresh = prefill(m.decoder, m.decoder.new_cache(), prompt, None, 512)
            torch.testing.assert_close(warm, fresh, atol=1e-3, rtol=1e-3)
            prefixes.give_back(lease, prompt)


def test_drafts_change_nothing(talkative_folder: Path) -> None:
    """In float32. In bfloat16 two tokens may tie to the last bit, which the number of rows
    decides."""
    m = on_gpu(talkative_folder)
    assert m.decoder.row_costs == ROW_COSTS
    ids = random_ids(LENGTH)
    plain = [t.id for t in m.generate(ids, max_new_tokens=200)]
    history, counts = DraftHistory(m.decoder.row_costs), DecodeCounts()
    for _ in range(3):
        assert [
            t.id for t in m.generate(ids, max_new_tokens=200, history=history, counts=counts)
        ] == plain
    assert counts.accepted > 100
    assert recorded(m) > 0


# ---- memory ----


@needs_bitsandbytes
@pytest.mark.parametrize("quantization", ["int8", "nf4", "int4"])
def test_weights_of_few_bits_take_that_much_and_are_close(
    quantization: str, tmp_path: Path
) -> None:
    folder = write_model(
        tmp_path, LONG | {"intermediate_size": 4096, "num_hidden_layers": 4}, scale=0.05
    )
    ids = random_ids(LENGTH)
    exact = on_gpu(folder, "bfloat16")
    with torch.inference_mode():
        expected = exact.decoder(torch.tensor([ids]).cuda()).logits[0].float()
    gc.collect()
    before = torch.cuda.memory_allocated()
    m = on_gpu(folder, "bfloat16", quantization=quantization)
    gc.collect()
    taken = torch.cuda.memory_allocated() - before
    matrices = [module for module in m.decoder.modules() if isinstance(module, BitsLinear)]
    size = 1 if quantization == "int8" else 0.5
    packed = sum(matrix.in_features * matrix.out_features for matrix in matrices) * size
    floats = sum(p.nbytes for p in m.decoder.parameters())
    assert packed + floats < taken < 1.15 * (packed + floats)
    assert m.decoder.step is None
    with torch.inference_mode():
        found = m.decoder(torch.tensor([ids]).cuda()).logits[0].float()
    assert float((found - expected).norm() / expected.norm()) < (
        0.1 if quantization == "int8" else 0.3
    )
    assert len(list(m.generate(ids, max_new_tokens=5))) <= 5


def test_a_model_that_does_not_fit_is_refused_and_life_goes_on(
    starcoder2_folder: Path, tmp_path: Path
) -> None:
    large = write_model(
        tmp_path, STARCODER2 | {"hidden_size": 1024, "intermediate_size": 32768}
    )  # 540 MB
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    allowed = torch.cuda.memory_reserved() + 256 * 2**20
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        with pytest.raises(
            ModelError, match=r"does not fit into the memory of cuda .*GiB.*Use a smaller model"
        ):
            on_gpu(large)
        gc.collect()
        assert (
            len(list(on_gpu(starcoder2_folder).generate(random_ids(LENGTH), max_new_tokens=5))) <= 5
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(list(on_gpu(large).generate(random_ids(LENGTH), max_new_tokens=5))) <= 5
