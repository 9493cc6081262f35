"""The model that ships: small, whole, and good enough that plainly predictable text comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fim import Shaper
from lsp_server.completer import Prompter
from lsp_server.documents import Snapshot
from lsp_server.settings import Settings
from model import LoadedModel, load_model
from model.hub import BUNDLED

MAX_BYTES = 30 * 10**6
PREDICTABLE = [
    ("import os\nimport sys\n\n\nclass Shape:\n    def __init__(self, name, size):\n        self.name = name\n        "
     "self.size = ", "size", "\n\n    def area(self):\n        return self.size\n"),
    ("def first(values):\n    for value in values:\n        if value is not None:\n            ret", "urn", "\n"),
    ("try:\n    import json\nexc", "ept", " ImportError:\n    json = None\n"),
    ("def main():\n    pass\n\n\nif __name__ == ", '"__main__":', "\n    main()\n"),
]  # fmt: skip


@pytest.fixture(scope="module")
def bundled() -> LoadedModel:
    return load_model("bundled", device="cpu", dtype="float32")


def test_it_fits_what_ships() -> None:
    assert sum(f.stat().st_size for f in BUNDLED.iterdir()) <= MAX_BYTES
    assert json.loads((BUNDLED / "config.json").read_text())["model_type"] == "starcoder2"


@pytest.mark.parametrize(("prefix", "expected", "suffix"), PREDICTABLE)
def test_it_writes_the_plainly_predictable(bundled: LoadedModel, prefix: str, expected: str, suffix: str) -> None:
    prompter = Prompter.for_settings(Settings())
    context = prompter.context(Snapshot("file:///a.py", 1, "python", prefix + suffix, len(prefix)), 32, None)
    asked, _ = prompter.request(context)
    assert not isinstance(asked.prompt, str)
    tokens = bundled.generate(
        asked.prompt, max_new_tokens=12, stop_ids=asked.stop_ids, begin_with=asked.begin_with
    )
    text = "".join(t.text for t in tokens)
    assert Shaper.at(context, multiline="never").shape(text).text.startswith(expected)


def test_ours_is_what_the_trainer_trained(tmp_path: Path) -> None:
    """The trainer's network, exported and loaded, gives the same loss: names, splits and rotation agree."""
    from safetensors.torch import save_file

    from tests.conftest import write_tokenizer
    from training.export import checkpoint_names, hugging_face_config
    from training.train import Model

    shape = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "context": 64}  # fmt: skip
    torch.manual_seed(0)
    trained = Model(shape)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    save_file(checkpoint_names(trained.state_dict(), 4, 2), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(hugging_face_config(shape, quantized=False)))
    write_tokenizer(tmp_path)
    ids = torch.randint(0, 263, (2, 65))
    logits = load_model(tmp_path, device="cpu", dtype="float32").decoder(ids[:, :-1]).logits
    ours = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(ours, trained(ids[:, :-1], ids[:, 1:]), atol=1e-5, rtol=1e-5)
