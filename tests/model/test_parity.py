"""Our decoder against transformers, and against itself along other paths, in float32 at toy sizes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from model import LoadedModel, load_model
from model.generate import prefill
from tests.conftest import STABLELM, STARCODER2, write_model

LENGTH, WINDOW = 48, 16  # contexts longer than the window


def rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, **parameters}}


STARCODER2_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"sliding_window": WINDOW},
    "no bias, untied": {"use_bias": False, "tie_word_embeddings": False},
    "one kv head": {"num_key_value_heads": 1},
    "every kv head": {"num_key_value_heads": 4},
    "exact gelu": {"hidden_act": "gelu"},
    "linear": rope(rope_type="linear", factor=4.0),
    "llama3": rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=64),
    "yarn": rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
    "old rope keys": {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
}
SWITCHES = ("use_qkv_bias", "qk_layernorm", "use_parallel_residual", "tie_word_embeddings")
STABLELM_CASES = {
    ", ".join(s for s, on in zip(SWITCHES, values, strict=True) if on) or "all off": dict(
        zip(SWITCHES, values, strict=True))
    for values in itertools.product((False, True), repeat=len(SWITCHES))
} | {"old partial rotary": {"rope_parameters": None, "partial_rotary_factor": 0.5, "rope_theta": 300.0}}

CASES = [pytest.param(STARCODER2 | c, id=f"starcoder2 {n}") for n, c in STARCODER2_CASES.items()] + [
    pytest.param(STABLELM | c, id=f"stablelm {n}") for n, c in STABLELM_CASES.items()
]


def random_ids(count: int, seed: int = 1) -> list[int]:
    return torch.randint(8, 260, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def logits_of(m: LoadedModel, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return m.decoder(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("config", CASES)
def test_logits_are_those_of_transformers(config: dict[str, Any], tmp_path: Path) -> None:
    import transformers

    write_model(tmp_path, config)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = random_ids(LENGTH)
    with torch.inference_mode():
        expected = reference(torch.tensor([ids])).logits[0]
    ours = logits_of(load_model(tmp_path, device="cpu", dtype="float32"), ids)
    assert expected.std() > 0.5
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", [STARCODER2 | {"sliding_window": WINDOW}, STABLELM], ids=["starcoder2", "stablelm"])
def test_greedy_text_is_that_of_transformers(config: dict[str, Any], tmp_path: Path) -> None:
    import transformers

    write_model(tmp_path, config)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    m = load_model(tmp_path, device="cpu", dtype="float32")
    ids = random_ids(LENGTH)
    new = 40
    out = reference.generate(torch.tensor([ids]), max_new_tokens=new, do_sample=False, pad_token_id=0,
                             attention_mask=torch.ones(1, LENGTH, dtype=torch.long))
    expected = out[0, LENGTH:].tolist()
    tokens = list(m.generate(ids, max_new_tokens=new))
    assert [t.id for t in tokens] == list(itertools.takewhile(lambda i: i != 0, expected))
    assert len(tokens) > 4
    # Scoring the text again gives the log-probabilities that came with it.
    scores = torch.log_softmax(logits_of(m, ids + [t.id for t in tokens]), dim=-1)
    for position, token in enumerate(tokens, start=LENGTH - 1):
        assert token.logprob == pytest.approx(float(scores[position, token.id]), abs=1e-4)


PATH_CASES = [
    pytest.param(STARCODER2 | {"sliding_window": WINDOW}, id="starcoder2 window"),
    pytest.param(STARCODER2, id="starcoder2"),
    pytest.param(STABLELM | {"qk_layernorm": True}, id="stablelm"),
]


@pytest.mark.parametrize("config", PATH_CASES)
@pytest.mark.parametrize("chunk", [1, 7, WINDOW, 100])
def test_chunked_is_whole(config: dict[str, Any], chunk: int, tmp_path: Path) -> None:
    m = load_model(write_model(tmp_path, config), device="cpu", dtype="float32")
    ids = random_ids(LENGTH)
    with torch.inference_mode():
        last = prefill(m.decoder, m.decoder.new_cache(), ids, None, chunk)
    torch.testing.assert_close(last, logits_of(m, ids)[-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", PATH_CASES)
def test_trimmed_and_forked_caches_are_fresh_ones(config: dict[str, Any], tmp_path: Path) -> None:
    m = load_model(write_model(tmp_path, config), device="cpu", dtype="float32")
    ids, other = random_ids(LENGTH), random_ids(LENGTH, seed=2)
    expected = logits_of(m, ids[:30] + other)[-1]
    with torch.inference_mode():
        for split in (1, 15, 29, 30):
            cache = m.decoder.new_cache()
            prefill(m.decoder, cache, ids, None, 512)
            fork = cache.fork(split)
            assert cache.trim(split) == LENGTH - split
            target = ids[:30] + other
            for warm in (cache, fork):
                assert warm.length == split
                fresh = prefill(m.decoder, warm, target, None, 512)
                torch.testing.assert_close(fresh, expected, atol=1e-4, rtol=1e-4)


def test_a_cancelled_chunk_is_dropped_whole_and_finished_ones_stay(starcoder2_folder: Path) -> None:
    m = load_model(starcoder2_folder, device="cpu", dtype="float32")
    ids = random_ids(LENGTH)
    cache, asked = m.decoder.new_cache(), 0

    def stop_in_the_third_chunk() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2 * m.decoder.config.num_layers + 1

    from model.generate import generate
    from model.sampling import Sampling

    arguments: dict[str, Any] = {
        "max_new_tokens": 5, "text": m.tokenizer.stream(), "sampling": Sampling(), "chunk": 10}
    assert list(generate(m.decoder, cache, ids, should_stop=stop_in_the_third_chunk, **arguments)) == []
    assert cache.length == 20
    warm = [t.id for t in generate(m.decoder, cache, ids, **arguments)]
    assert warm == [t.id for t in m.generate(ids, max_new_tokens=5)]
