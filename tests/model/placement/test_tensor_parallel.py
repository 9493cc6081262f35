"""Two processes that share a decoder give what one gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model import load_model
from model.errors import ModelError
from model.families.native.stablelm import decoder_config, weight_table
from model.heads import CausalLM
from model.heads.lora import add_lora
from model.placement.shares import Share
from tests.conftest import GPT_BIGCODE, QWEN3, ROOT, STABLELM, STARCODER2, write_model

pytestmark = pytest.mark.xdist_group("two processes")
ALL_SWITCHES = {"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True}
ONE_HEAD = {"num_key_value_heads": 1}  # both processes have it
CONFIGS: dict[str, dict[str, Any]] = {
    "starcoder2": STARCODER2 | {"sliding_window": 8},
    "starcoder2, untied, one key head": STARCODER2 | ONE_HEAD | {"tie_word_embeddings": False},
    "stablelm": STABLELM,
    "stablelm, all switches": STABLELM | ALL_SWITCHES,
    "stablelm, all switches, one key head": STABLELM | ALL_SWITCHES | ONE_HEAD,
    "uneven inner dimensions": STABLELM | {"intermediate_size": 47},
    "one norm for all heads": QWEN3,
    "one matrix for queries, keys and values": GPT_BIGCODE,
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the processes found, by the name of the model."""
    folder = tmp_path_factory.mktemp("shared")
    for name, config in CONFIGS.items():
        write_model(folder / name, config)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.model.placement.two_processes", folder, str(rank)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_are_one(name: str, measured: list[dict[str, Any]]) -> None:
    for found in measured:
        one = found[name]
        assert len(one["apart"]) == 7
        assert max(one["apart"].values()) < 1e-5, one["apart"]
        assert one["apart"]["saved"] == one["apart"]["new weights"] == 0
        whole, shared = one["answers"]
        assert len(whole) > 5
        assert shared == whole


@pytest.mark.parametrize("name", CONFIGS)
def test_each_process_has_its_share_alone(name: str, measured: list[dict[str, Any]]) -> None:
    for found in measured:
        assert found[name]["kv_heads"] == 1
        assert found[name]["layer"] < 0.7 * found[name]["whole layer"]


# What cannot be shared.


class Group:
    """Stands for a group of processes as far as their number and rank are read."""


@pytest.mark.parametrize(
    ("size", "rank", "words"),
    [
        (3, 0, "4 heads and 2 key/value heads do not divide among 3 processes"),
        (8, 0, "do not divide among 8 processes. Use a number of processes that divides"),
        (2, -1, "does not belong to the group"),
    ],
)
def test_groups_that_do_not_fit(
    size: int,
    rank: int,
    words: str,
    starcoder2_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group: size)
    monkeypatch.setattr("torch.distributed.get_rank", lambda group: rank)
    for load in (load_model, CausalLM.load):
        with pytest.raises(ModelError, match=words):
            load(starcoder2_folder, tensor_parallel=Group())


def test_shared_weights_are_not_replaced(
    starcoder2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group: 2)
    monkeypatch.setattr("torch.distributed.get_rank", lambda group: 1)
    shared = CausalLM.load(starcoder2_folder, tensor_parallel=Group())
    with pytest.raises(ModelError, match="Leave out tensor_parallel"):
        shared.resize_embeddings(400)
    with pytest.raises(ModelError, match="Leave out tensor_parallel"):
        add_lora(shared)
    with pytest.raises(ModelError, match=r"llm.int8 weights are whole on one device"):
        CausalLM.load(starcoder2_folder, tensor_parallel=Group(), quantization="llm.int8")


def test_shares_are_of_all_and_of_nothing_twice() -> None:
    """Over group sizes: what the processes have together is each weight, copies of key/value heads
    aside."""
    config = decoder_config(STABLELM | ALL_SWITCHES | {"num_attention_heads": 8, "hidden_size": 64})
    table = weight_table(config)
    for size in (1, 2, 4, 8):
        counts = {name: torch.zeros(slot.shape) for name, slot in table.items()}
        for rank in range(size):
            share = Share(config, rank, size)
            for name, slot in table.items():
                places = torch.arange(counts[name].numel()).view(slot.shape)
                if (found := share.cut(slot, places)) is not None:
                    counts[name].view(-1)[found[1].flatten()] += 1
        copies = max(1, size // config.num_kv_heads)
        for name, count in counts.items():
            is_key = any(part in name for part in ("k_proj", "v_proj", "k_layernorm"))
            is_cut = any(part in name for part in ("_proj", "q_layernorm", "k_layernorm"))
            assert (count == (copies if is_key else 1 if is_cut else size)).all(), (name, size)
