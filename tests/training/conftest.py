"""A corpus of a few lines, with its tokenizer, and the config of a run on it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.tokenizer import train as train_tokenizer

TEXT = (
    "def double(value):\n    return value + value\n\n\ndef triple(value):\n    return value + "
    "value + value\n" * 8
)
CONFIG = """
[model]
vocab_size = 320
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
context = 64

[train]
seed = 1
rows = 4
rows_at_once = 2
total_tokens = 40_000
warmup_steps = 2
decay_share = 0.5
learning_rate = 1e-2
weight_decay = 0.05
save_every_s = 3600

[samples]
fim_rate = 0.8
spm_rate = 0.5
syntax_rate = 0.5
repository_rate = 0.5
heal_rate = 0.5
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split in ("train", "validation", "test"):
        records = [
            {"package": f"p{i // 20}", "path": f"{i}.py", "text": TEXT[i:]} for i in range(80)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    train_tokenizer([TEXT], 320).save(str(tmp_path / "tokenizer.json"))
    return tmp_path
