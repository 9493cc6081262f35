"""Two processes that share a decoder give what one gives."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

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
        assert one["apart"].keys() == {"logits", "cached", "gradients"}
        assert max(one["apart"].values()) < 1e-5, one["apart"]
        whole, shared = one["answers"]
        assert len(whole) > 5
        assert shared == whole


@pytest.mark.parametrize("name", CONFIGS)
def test_each_process_has_its_share_alone(name: str, measured: list[dict[str, Any]]) -> None:
    for found in measured:
        assert found[name]["kv_heads"] == 1
        assert found[name]["layer"] < 0.7 * found[name]["whole layer"]
