"""Toy models to be changed and broken, and the check of what is said of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import LoadedModel
from model.errors import ModelError
from tests.model.toys import load

IDS = torch.tensor([[80, 90, 100, 110, 120]])
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Weights = dict[str, torch.Tensor]


def logits(m: LoadedModel) -> torch.Tensor:
    with torch.inference_mode():
        return m.decoder(IDS).logits.float()


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def rewrite(folder: Path, change: Callable[[Weights], Any]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def check_refused(folder: Path, *words: str) -> None:
    """Loading fails, and the message names the folder and has these words: the fault and the
    remedy."""
    with pytest.raises(ModelError) as caught:
        load(folder)
    message = str(caught.value)
    assert all(w in message for w in [str(folder), *words]), message
