"""An architecture that is not native: what transformers writes, along every path of our cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model import LoadedModel, load_model
from model.cpu.upgrade import upgrade
from model.decoder.stopping import Cancelled
from model.errors import ModelError
from model.generation.generate import GenerationOptions, generate
from model.weights.folder import find_model
from tests.conftest import write_model
from tests.model.families.test_parity import LENGTH, logits_of, random_ids
from tests.model.toys import load

SIZES = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 0}
GPT_NEOX = SIZES | {
    "model_type": "gpt_neox",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
GPT2 = SIZES | {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
QWEN3_MOE = SIZES | {
    "model_type": "qwen3_moe",
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
UNLIKE: dict[str, dict[str, Any]] = {
    "windows": SIZES
    | {
        "model_type": "gemma2",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 16,
    },
    "recurrent states": SIZES
    | {
        "model_type": "mamba",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "state_size": 4,
    },
}
BERT = SIZES | {
    "model_type": "bert",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
ALL = {"gpt_neox": GPT_NEOX, "gpt2": GPT2, "qwen3_moe": QWEN3_MOE}


@pytest.fixture(scope="module", params=ALL)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(write_model(tmp_path_factory.mktemp("other"), ALL[request.param]))


def test_greedy_text_is_transformers_own(loaded: LoadedModel) -> None:
    ids = random_ids(LENGTH)
    out = loaded.decoder.model.generate(
        torch.tensor([ids]),
        max_new_tokens=30,
        do_sample=False,
        pad_token_id=0,
        attention_mask=torch.ones(1, LENGTH, dtype=torch.long),
    )
    expected = out[0, LENGTH:].tolist()
    if 0 in expected:
        expected = expected[: expected.index(0)]
    assert [token.id for token in loaded.generate(ids, max_new_tokens=30)] == expected
    assert len(expected) > 4


@torch.inference_mode()
def test_cached_is_fresh(loaded: LoadedModel) -> None:
    decoder = loaded.decoder
    ids, other = random_ids(LENGTH), random_ids(LENGTH, seed=2)
    expected = logits_of(loaded, ids[:30] + other)
    for chunk in (1, 7, LENGTH):
        cache = decoder.new_cache()
        for piece in torch.tensor([ids]).split(chunk, dim=1):
            decoder(piece, cache=cache)
        assert cache.length == LENGTH
        fork = cache.fork(30)
        assert cache.trim(30) == LENGTH - 30
        block = torch.empty(2, *cache.keys.shape[:2], 30, cache.keys.shape[3])
        cache.copy_out(0, block)
        restored = decoder.new_cache()
        restored.extend(block)
        for warm in (cache, fork, restored):
            logits = decoder(torch.tensor([other]), cache=warm, logits_to_keep=5).logits[0]
            torch.testing.assert_close(logits, expected[-5:], atol=1e-4, rtol=1e-4)


def test_a_cancelled_chunk_is_dropped_whole_and_finished_ones_stay(loaded: LoadedModel) -> None:
    ids = random_ids(LENGTH)
    cache, asked = loaded.decoder.new_cache(), 0

    def stop_in_the_third_chunk() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2 * (loaded.decoder.config.num_layers + 1) + 2

    text = loaded.tokenizer.stream()
    stopped = GenerationOptions(5, should_stop=stop_in_the_third_chunk, prefill_chunk=10)
    assert list(generate(loaded.decoder, cache, ids, text, stopped)) == []
    assert cache.length == 20
    warm = [t.id for t in loaded.generate(ids, max_new_tokens=5, cache=cache)]
    assert warm == [t.id for t in loaded.generate(ids, max_new_tokens=5)]
    with pytest.raises(Cancelled):
        loaded.decoder(torch.tensor([[9]]), cache=cache, should_stop=lambda: True)


def test_it_says_so_and_is_left_as_it_is(loaded: LoadedModel, tmp_path: Path) -> None:
    assert loaded.decoder.scheme == "float32 by transformers"
    assert not loaded.folder.is_native
    assert list(upgrade(loaded.decoder, tmp_path)) == []
    with pytest.raises(ValueError, match="257 positions do not fit"):
        loaded.decoder(torch.ones(1, 257, dtype=torch.long))
    with pytest.raises(ModelError, match=r"floats only\. Set the quantization to 'none'"):
        load_model(loaded.folder.path, "cpu", quantization="int8")


@pytest.mark.parametrize("config", UNLIKE.values(), ids=UNLIKE)
def test_other_caches_are_refused_by_name(config: dict[str, Any], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "toy", config)
    with pytest.raises(ModelError, match=f"layers of a {config['model_type']} keep other things"):
        load(folder)


def test_a_model_that_is_not_causal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a bert sees the text that follows.*causal"):
        load(write_model(tmp_path / "toy", BERT))


def test_a_folder_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_model(tmp_path / "toy", GPT_NEOX)
    weights = load_file(folder / "model.safetensors")
    del weights["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks the tensors .*dense_h_to_4h.weight"):
        load(folder)


def test_without_transformers_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "toy", GPT_NEOX)
    monkeypatch.setattr("model.weights.folder.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"'gpt_neox'.*pip install 'fimls\[hf\]'"):
        find_model(folder)


def test_a_native_model_does_not_import_transformers(starcoder2_folder: Path) -> None:
    code = (
        "import sys; from model import load_model; "
        f"load_model({str(starcoder2_folder)!r}, 'cpu', 'float32'); "
        "print('transformers' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
