"""Weights that are missing, renamed, misshapen, of a wrong type or no numbers are named, whatever
precision they are read for, and by whichever part reads them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from model import load_model
from model.errors import ModelError
from model.families.weight_table import WeightSlot
from model.heads import BareModel, CausalLM, SequenceClassifier
from model.weights.checkpoint import check as check_tensor
from tests.conftest import STARCODER2, write_model
from tests.model.export.exports import exported, toy
from tests.model.folders import WEIGHTS, Weights, rewrite
from tests.model.weights.gguf_files import write_copy

PROJECTION = "model.layers.1.self_attn.k_proj.weight"  # one of three in a fused matrix
NORM = "model.layers.0.input_layernorm.weight"
EMBEDDINGS = "model.embed_tokens.weight"


def put(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Weights], Any]:
    return lambda weights: weights.update({name: change(weights[name]).contiguous()})


def with_number(number: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed.view(-1)[3] = number
        return changed

    return change


FAULTS: dict[str, tuple[Callable[[Weights], Any], list[str]]] = {
    "missing": (lambda w: w.pop(PROJECTION), ["lacks the tensors", PROJECTION, "Download"]),
    "renamed": (
        lambda w: w.update({PROJECTION.replace("k_proj", "key"): w.pop(PROJECTION)}),
        [WEIGHTS, "self_attn.key.weight has no place", "Check that"],
    ),
    "transposed": (put(PROJECTION, lambda t: t.T), [WEIGHTS, PROJECTION, "(32, 16)", "Check that"]),
    "a row short": (put(EMBEDDINGS, lambda t: t[:-1]), [WEIGHTS, EMBEDDINGS, "(319, 32)", "Check"]),
    "whole numbers": (
        put(PROJECTION, lambda t: t.long()),
        [WEIGHTS, PROJECTION, "torch.int64", "Download"],
    ),
    "truth values": (put(NORM, lambda t: t > 0), [WEIGHTS, NORM, "torch.bool", "Download"]),
    "NaN in a matrix": (
        put(PROJECTION, with_number(math.nan)),
        [WEIGHTS, PROJECTION, "not finite", "Download"],
    ),
    "infinity in a matrix": (
        put(PROJECTION, with_number(-math.inf)),
        [WEIGHTS, PROJECTION, "not finite", "Download"],
    ),
    "NaN in a norm": (put(NORM, with_number(math.nan)), [WEIGHTS, NORM, "not finite", "Download"]),
    "NaN in a bfloat16": (
        put(EMBEDDINGS, lambda t: with_number(math.nan)(t.bfloat16())),
        [WEIGHTS, EMBEDDINGS, "not finite", "Download"],
    ),
}
PRECISIONS = [
    ("float32", None),
    ("float16", None),
    ("bfloat16", None),
    ("auto", "int8"),
    ("bfloat16", "llm.int8"),
    ("float32", "nf4"),
    ("bfloat16", "nf4-double"),
]
HEADS = [(BareModel, None), (CausalLM, None), (SequenceClassifier, "nf4"), (CausalLM, "llm.int8")]
faults = pytest.mark.parametrize("fault", FAULTS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", STARCODER2)


def check(load: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        load()
    message = str(caught.value)
    assert all(word in message for word in words), message


@faults
def test_a_model_is_refused_in_every_precision(folder: Path, fault: str) -> None:
    change, words = FAULTS[fault]
    rewrite(folder, change)
    for dtype, quantization in PRECISIONS:
        check(
            lambda: load_model(folder, "cpu", dtype, quantization),  # noqa: B023
            [str(folder), *words],
        )


@faults
def test_a_head_is_refused_in_every_precision(folder: Path, fault: str) -> None:
    change, words = FAULTS[fault]
    rewrite(folder, change)
    for head, quantization in HEADS:
        check(
            lambda: head.load(folder, device="cpu", quantization=quantization),  # noqa: B023
            [str(folder), *words],
        )


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2]
)
def test_one_number_that_is_not_finite_is_found_wherever_it_is(dtype: torch.dtype) -> None:
    shape = (37, 113)
    slot = WeightSlot("", 0, shape)
    for number in (math.nan, math.inf, -math.inf):
        for at in (0, 1, 1000, 37 * 113 - 1):
            tensor = torch.randn(shape, generator=torch.Generator().manual_seed(at))
            check_tensor(slot, tensor.to(dtype), "w", Path("f"))
            tensor.view(-1)[at] = number
            with pytest.raises(ModelError, match="f: w holds numbers that are not finite"):
                check_tensor(slot, tensor.to(dtype), "w", Path("f"))


def test_a_weight_beyond_float16_is_refused_there_alone(folder: Path) -> None:
    rewrite(folder, put(PROJECTION, with_number(-1e5)))
    words = [str(folder), PROJECTION, "holds 1e+05", "Set the dtype to 'bfloat16' or 'float32'"]
    check(lambda: load_model(folder, "cpu", "float16"), words)
    check(lambda: load_model(folder, "cpu", "float16", "nf4"), words)
    check(lambda: CausalLM.load(folder, device="cpu", dtype="float16"), words)
    load_model(folder, "cpu", "bfloat16")
    load_model(folder, "cpu", "float32", "nf4")


QUERIES = "blk.0.attn_q.weight"
GGUF_FAULTS: dict[str, tuple[Any, list[str]]] = {
    "missing": (None, ["lacks the tensors model.layers.0.self_attn.q_proj.weight", "Download"]),
    "misshapen": (np.ones((32, 64), np.float32), ["q_proj.weight is (32, 64)", "Check that"]),
    "whole numbers": (np.ones((32, 32), np.int64), [QUERIES, "the type 27", "it reads F32, F16"]),
    "NaN": (np.full((32, 32), math.nan, np.float32), ["q_proj.weight holds", "not finite"]),
}


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    (file,) = exported(toy(folder, "qwen2"), folder, "gguf").glob("*.gguf")
    return file


@pytest.mark.parametrize("fault", GGUF_FAULTS)
def test_a_gguf_file_is_refused_in_every_precision(
    gguf_file: Path, fault: str, tmp_path: Path
) -> None:
    values, words = GGUF_FAULTS[fault]
    bad = write_copy(gguf_file, tmp_path / "bad.gguf", tensors={QUERIES: values})
    assert gguf.GGUFReader(bad).tensors
    for dtype, quantization in PRECISIONS:
        check(
            lambda: load_model(bad, "cpu", dtype, quantization),  # noqa: B023
            [str(bad), *words],
        )
    check(lambda: CausalLM.load(bad, device="cpu", quantization="nf4"), [str(bad), *words])
