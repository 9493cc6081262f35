"""The README's example of the heads, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers

from model.heads import SequenceClassifier
from tests.conftest import ROOT, STARCODER2, write_model


def test_the_readmes_classifier_learns_its_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "FOLDER", STARCODER2 | {"hidden_size": 64}, scale=0.1)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(import torch\nfrom model\.heads .*?)```", text, re.DOTALL)
    torch.manual_seed(0)
    for name in ("FOLDER", "TRAINED"):
        code = code.replace(f'"{name}"', repr(str(tmp_path / name)))
    exec(compile(code, "README.md", "exec"), {})
    assert "score.weight" in capsys.readouterr().out
    m = SequenceClassifier.load(tmp_path / "TRAINED", device="cpu")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "TRAINED")
    tokenizer = m.files.load_tokenizer()
    for text, label in [("def add(a, b):", 0), ("SELECT name FROM", 1)]:
        ids = torch.tensor([tokenizer.encode(text)])
        logits = m(ids).logits
        assert logits.argmax() == label
        torch.testing.assert_close(theirs(ids).logits, logits, atol=1e-4, rtol=1e-4)
