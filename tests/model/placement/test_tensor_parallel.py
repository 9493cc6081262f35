"""Two processes that share a decoder give what one gives."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist

from model import load_model
from model.errors import ModelError
from model.families.native.stablelm import decoder_config, weight_table
from model.heads import CausalLM, SequenceClassifier
from model.heads.lora import add_lora
from model.placement.shares import Share
from tests.conftest import GPT_BIGCODE, QWEN3, ROOT, STABLELM, STARCODER2, write_model
from tests.model.placement.two_processes import distance, gradients_apart

ALL_SWITCHES = {"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True}
ONE_HEAD = {"num_key_value_heads": 1}  # both processes have it
CONFIGS: dict[str, dict[str, Any]] = {
    "starcoder2": STARCODER2 | {"sliding_window": 8},
    "starcoder2, untied, one key head": STARCODER2 | ONE_HEAD | {"tie_word_embeddings": False},
    "stablelm": STABLELM,
    "stablelm, all switches": STABLELM | ALL_SWITCHES,
}
MORE_CONFIGS: dict[str, dict[str, Any]] = {
    "stablelm, all switches, one key head": STABLELM | ALL_SWITCHES | ONE_HEAD,
    "uneven inner dimensions": STABLELM | {"intermediate_size": 47},
    "one norm for all heads": QWEN3,
    "one matrix for queries, keys and values": GPT_BIGCODE,
}
ALL_CONFIGS = CONFIGS | MORE_CONFIGS


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


@pytest.mark.xdist_group("two processes")
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


@pytest.mark.xdist_group("two processes")
@pytest.mark.parametrize("name", CONFIGS)
def test_each_process_has_its_share_alone(name: str, measured: list[dict[str, Any]]) -> None:
    for found in measured:
        assert found[name]["kv_heads"] == 1
        assert found[name]["layer"] < 0.7 * found[name]["whole layer"]


# More of them, as threads.


class Threads:
    """A group whose processes are threads of this one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._rank = threading.local()
        self._barrier = threading.Barrier(size, timeout=60)
        self._given: list[torch.Tensor] = [torch.empty(0)] * size

    def run(self, task: Callable[[int], None]) -> None:
        """Runs the task in each of them. Raises what one of them raises first."""

        def begin(rank: int) -> None:
            self._rank.value = rank
            try:
                task(rank)
            except BaseException:
                self._barrier.abort()
                raise

        with ThreadPoolExecutor(self.size) as pool:
            tasks = [pool.submit(begin, rank) for rank in range(self.size)]
        errors = [e for t in tasks if (e := t.exception()) is not None]
        for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
            raise error

    def all(self, x: torch.Tensor) -> torch.Tensor:
        """What each of them gives, in the order of their ranks."""
        self._given[self._rank.value] = x.detach().clone()
        self._barrier.wait()
        every = torch.stack(self._given)
        self._barrier.wait()
        return every

    def all_reduce(self, x: torch.Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None) -> None:
        every = self.all(x)
        x.copy_(every.amax(0) if op == dist.ReduceOp.MAX else every.sum(0))

    def broadcast(self, x: torch.Tensor, source: int, group: Any) -> None:
        x.copy_(self.all(x)[source])

    def put_in_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.distributed.get_world_size", lambda group: self.size)
        monkeypatch.setattr("torch.distributed.get_rank", lambda group: self._rank.value)
        monkeypatch.setattr("torch.distributed.get_global_rank", lambda group, rank: rank)
        monkeypatch.setattr("torch.distributed.all_reduce", self.all_reduce)
        monkeypatch.setattr("torch.distributed.broadcast", self.broadcast)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("config", ALL_CONFIGS.values(), ids=ALL_CONFIGS)
def test_so_are_threads(
    config: dict[str, Any], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With four of them, two have the same key/value head, or all do."""
    group: Any = Threads(size)
    group.put_in_place(monkeypatch)
    folder = write_model(tmp_path / "toy", config)
    ids = torch.arange(10, 60).view(2, 25)
    whole = CausalLM.load(folder, device="cpu")
    expected = whole(ids, labels=ids)
    expected.loss.backward()

    def check(rank: int) -> None:
        shared = CausalLM.load(folder, device="cpu", tensor_parallel=group)
        given = shared(ids, labels=ids)
        assert distance(given.logits, expected.logits) < 1e-5
        given.loss.backward()
        assert gradients_apart(whole, shared) < 1e-5
        with torch.inference_mode():
            assert distance(shared(ids).logits, expected.logits) < 1e-5
        shared.save(tmp_path / "saved")
        classifier = SequenceClassifier.load(folder, device="cpu", tensor_parallel=group)
        every = group.all(classifier.score.weight)
        assert all(torch.equal(weights, every[0]) for weights in every)
        classifier.save(tmp_path / "classifier")
        group.all(torch.zeros(1))  # the first one has written it
        again = SequenceClassifier.load(tmp_path / "classifier", tensor_parallel=group)
        assert not again.report.missing
        assert torch.equal(again.score.weight, every[0])

    group.run(check)
    again = CausalLM.load(tmp_path / "saved", device="cpu")
    stored = zip(again.parameters(), whole.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in stored)


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


def test_a_small_mlp_is_not_shared_by_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group: 4)
    monkeypatch.setattr("torch.distributed.get_rank", lambda group: 0)
    config = decoder_config(STABLELM | {"intermediate_size": 3})
    with pytest.raises(ModelError, match="3 inner dimensions do not divide among 4 processes"):
        Share.of(config, cast(Any, Group()))


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
    with pytest.raises(ModelError, match=r"llm.int8 weights are not shared by processes"):
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
