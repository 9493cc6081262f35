"""Our decoder against transformers, and against itself along other paths, in float32 at toy
sizes."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from model import LoadedModel
from model.generation.generate import GenerationOptions, generate, prefill
from tests.conftest import (
    GEMMA,
    GPT_BIGCODE,
    GRANITE,
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    STABLELM,
    STARCODER2,
    write_model,
)
from tests.model.toys import load

LENGTH, WINDOW = 48, 16  # contexts longer than the window


def rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0} | parameters}


LLAMA3_ROPE = rope(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
STARCODER2_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"sliding_window": WINDOW},
    "no bias, untied": {"use_bias": False, "tie_word_embeddings": False},
    "one kv head": {"num_key_value_heads": 1},
    "every kv head": {"num_key_value_heads": 4},
    "exact gelu": {"hidden_act": "gelu"},
    "linear": rope(rope_type="linear", factor=4.0),
    "llama3": LLAMA3_ROPE,
    "yarn": rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
    "yarn, all keys": rope(
        rope_type="yarn",
        rope_theta=100.0,
        factor=3.0,
        original_max_position_embeddings=64,
        beta_fast=2.0,
        beta_slow=0.2,
        attention_factor=1.3,
    ),
    "old rope keys": {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
}
SWITCHES = ("use_qkv_bias", "qk_layernorm", "use_parallel_residual", "tie_word_embeddings")
STABLELM_CASES = {
    ", ".join(s for s, on in zip(SWITCHES, values, strict=True) if on) or "all off": dict(
        zip(SWITCHES, values, strict=True)
    )
    for values in itertools.product((False, True), repeat=len(SWITCHES))
} | {
    "old partial rotary": {
        "rope_parameters": None,
        "partial_rotary_factor": 0.5,
        "rope_theta": 300.0,
    }
}

WINDOW_IN_ALL_LAYERS = {
    "use_sliding_window": True,
    "sliding_window": WINDOW,
    "max_window_layers": 0,
}
QWEN2_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "window": WINDOW_IN_ALL_LAYERS,
    "window by layer types": {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention"] * 2,
    },
    "window that is not used": {"sliding_window": WINDOW, "max_window_layers": 1},
    "window beyond the last layer": WINDOW_IN_ALL_LAYERS | {"max_window_layers": 2},
    "head_dim": {"head_dim": 16},
    "one kv head": {"num_key_value_heads": 1},
    "yarn": rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
    "old rope keys": {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "harmless keys": {"use_mrope": False},
}
LLAMA_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "attention bias": {"attention_bias": True},
    "mlp bias": {"mlp_bias": True},
    "all biases, exact gelu": {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    "wide heads": {"head_dim": 16},
    "narrow heads, one kv head": {"head_dim": 4, "num_key_value_heads": 1},
    "every kv head by default": {"num_key_value_heads": None},
    "linear": rope(rope_type="linear", factor=4.0),
    "llama3": LLAMA3_ROPE,
    "old rope keys": {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "large norm_eps": {"rms_norm_eps": 0.1},
    "harmless keys": {"pretraining_tp": 1, "is_llama_config": True, "rope_interleaved": False},
}

QWEN3_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "window": WINDOW_IN_ALL_LAYERS,
    "full attention by layer types": {
        "layer_types": ["full_attention"] * 2,
        "max_window_layers": 2,
        "use_sliding_window": False,
        "sliding_window": None,
    },
    "attention bias": {"attention_bias": True},
    "hidden size that its heads do not divide": {"hidden_size": 40, "num_attention_heads": 6},
    "large norm_eps": {"rms_norm_eps": 0.1},
    "yarn": rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
}
MISTRAL_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"sliding_window": WINDOW},
    "head_dim": {"head_dim": 16, "rope_theta": 1e6},
    "one kv head, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
}
GRANITE_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "all biases": {"attention_bias": True, "mlp_bias": True},
    "whole factors": {"embedding_multiplier": 12, "logits_scaling": 2},
}
GEMMA_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one kv head": {"num_key_value_heads": 1},
    "gelu means its approximation": {"hidden_act": "gelu", "hidden_activation": None},
    "untied, biases": {"tie_word_embeddings": False, "attention_bias": True},
}
GPT_BIGCODE_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "inner size by default": {"n_inner": None},
    "exact gelu": {"activation_function": "gelu"},
    "unscaled scores": {"scale_attn_weights": False},
}

ALL_CASES = {
    "starcoder2": (STARCODER2, STARCODER2_CASES),
    "stablelm": (STABLELM, STABLELM_CASES),
    "qwen2": (QWEN2, QWEN2_CASES),
    "llama": (LLAMA, LLAMA_CASES),
    "qwen3": (QWEN3, QWEN3_CASES),
    "mistral": (MISTRAL, MISTRAL_CASES),
    "granite": (GRANITE, GRANITE_CASES),
    "gemma": (GEMMA, GEMMA_CASES),
    "gpt_bigcode": (GPT_BIGCODE, GPT_BIGCODE_CASES),
}
CASES = [
    pytest.param(plain | changes, id=f"{family} {name}")
    for family, (plain, cases) in ALL_CASES.items()
    for name, changes in cases.items()
]
# One of each family, and a window where there may be one.
FAMILY_CASES = [
    pytest.param(STARCODER2 | {"sliding_window": WINDOW}, id="starcoder2"),
    pytest.param(STABLELM, id="stablelm"),
    pytest.param(QWEN2 | WINDOW_IN_ALL_LAYERS, id="qwen2"),
    pytest.param(LLAMA | {"head_dim": 16}, id="llama"),
    pytest.param(QWEN3, id="qwen3"),
    pytest.param(MISTRAL | {"sliding_window": WINDOW}, id="mistral"),
    pytest.param(GRANITE, id="granite"),
    pytest.param(GEMMA, id="gemma"),
    pytest.param(GPT_BIGCODE, id="gpt_bigcode"),
]


def random_ids(count: int, seed: int = 1) -> list[int]:
    return torch.randint(8, 260, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def logits_of(m: LoadedModel, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return m.decoder(torch.tensor([ids])).logits[0]


def both(config: dict[str, Any], folder: Path) -> tuple[LoadedModel, Any]:
    """The same weights in our decoder and in transformers' model."""
    import transformers

    write_model(folder, config)
    return load(folder), transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    )


@pytest.mark.parametrize("config", CASES)
def test_logits_are_those_of_transformers(config: dict[str, Any], tmp_path: Path) -> None:
    m, reference = both(config, tmp_path)
    ids = random_ids(LENGTH)
    with torch.inference_mode():
        expected = reference(torch.tensor([ids])).logits[0]
    ours = logits_of(m, ids)
    assert expected.std() > 0.5
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", FAMILY_CASES)
def test_rows_of_a_batch_do_not_see_each_other(config: dict[str, Any], tmp_path: Path) -> None:
    m, reference = both(config, tmp_path)
    batch = torch.tensor([random_ids(LENGTH, seed) for seed in (1, 2, 3)])
    with torch.inference_mode():
        ours, expected = m.decoder(batch).logits, reference(batch).logits
        for keep in (1, 5, LENGTH, LENGTH + 1):
            torch.testing.assert_close(
                m.decoder(batch, logits_to_keep=keep).logits, ours[:, -keep:]
            )
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", FAMILY_CASES)
def test_greedy_text_is_that_of_transformers(config: dict[str, Any], tmp_path: Path) -> None:
    m, reference = both(config, tmp_path)
    ids = random_ids(LENGTH)
    new = 40
    out = reference.generate(
        torch.tensor([ids]),
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
        attention_mask=torch.ones(1, LENGTH, dtype=torch.long),
    )
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
    pytest.param(QWEN2 | {"tie_word_embeddings": True}, id="qwen2"),
    pytest.param(QWEN2 | WINDOW_IN_ALL_LAYERS, id="qwen2 window"),
    pytest.param(LLAMA | LLAMA3_ROPE | {"head_dim": 16, "attention_bias": True}, id="llama"),
    pytest.param(QWEN3 | WINDOW_IN_ALL_LAYERS, id="qwen3 window"),
    pytest.param(MISTRAL | {"sliding_window": WINDOW}, id="mistral window"),
    pytest.param(GRANITE, id="granite"),
    pytest.param(GEMMA, id="gemma"),
    pytest.param(GPT_BIGCODE, id="gpt_bigcode"),
]


@pytest.mark.parametrize("config", PATH_CASES)
def test_chunked_is_whole_and_is_that_of_transformers(
    config: dict[str, Any], tmp_path: Path
) -> None:
    """Chunks around the window's size begin and end at every place before, in and behind it."""
    m, reference = both(config, tmp_path)
    ids = torch.tensor([random_ids(2 * LENGTH)])
    with torch.inference_mode():
        expected = reference(ids).logits
        for chunk in (1, 7, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 1, 2 * LENGTH):
            cache = m.decoder.new_cache()
            ours = torch.cat(
                [m.decoder(piece, cache=cache).logits for piece in ids.split(chunk, dim=1)], dim=1
            )
            assert cache.length == 2 * LENGTH
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_the_decoder_is_refused(starcoder2_folder: Path) -> None:
    decoder = load(starcoder2_folder).decoder
    cache = decoder.new_cache()
    with torch.inference_mode():
        decoder(torch.ones(1, 250, dtype=torch.long), cache=cache)
        with pytest.raises(ValueError, match="257 positions do not fit the model's 256"):
            decoder(torch.ones(1, 7, dtype=torch.long), cache=cache)
        with pytest.raises(ValueError, match="batch must be 1"):
            decoder(torch.ones(2, 1, dtype=torch.long), cache=cache)
    assert cache.length == 250


@pytest.mark.parametrize("config", PATH_CASES)
def test_trimmed_and_forked_caches_are_fresh_ones(config: dict[str, Any], tmp_path: Path) -> None:
    m = load(write_model(tmp_path, config))
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
                fresh = prefill(m.decoder, warm, target, None, 512)[0]
                torch.testing.assert_close(fresh, expected, atol=1e-4, rtol=1e-4)


def test_a_cancelled_chunk_is_dropped_whole_and_finished_ones_stay(starcoder2_folder: Path) -> None:
    m = load(starcoder2_folder)
    ids = random_ids(LENGTH)
    cache, asked = m.decoder.new_cache(), 0

    def stop_in_the_third_chunk() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2 * (3 * m.decoder.config.num_layers + 1) + 1

    text = m.tokenizer.stream()
    options = GenerationOptions(max_new_tokens=5, prefill_chunk=10)
    stopped = dataclasses.replace(options, should_stop=stop_in_the_third_chunk)
    assert list(generate(m.decoder, cache, ids, text, stopped)) == []
    assert cache.length == 20
    warm = [t.id for t in generate(m.decoder, cache, ids, text, options)]
    assert warm == [t.id for t in m.generate(ids, max_new_tokens=5)]
