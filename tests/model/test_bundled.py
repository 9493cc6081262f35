"""The model that ships: small, whole, and good enough that plainly predictable text comes out."""

from __future__ import annotations

import json

import pytest

from fim import Shaper
from lsp_server.documents import Snapshot
from lsp_server.session.prompter import Prompter
from lsp_server.settings import Settings
from model import LoadedModel, load_model
from model.generation.copying import CopyWeights
from model.weights.files import ATTRIBUTION, BUNDLED

MAX_BYTES, MAX_ATTRIBUTION_BYTES = 30 * 10**6, 5 * 10**6
PREDICTABLE = [
    (
        "import os\nimport sys\n\n\nclass Shape:\n    def __init__(self, name, size):\n        "
        "self.name = name\n        "
        "self.size = ",
        "size",
        "\n\n    def area(self):\n        return self.size\n",
    ),
    (
        "def first(values):\n    for value in values:\n        if value is not None:\n            "
        "ret",
        "urn",
        "\n",
    ),
    ("try:\n    import json\nexc", "ept", " ImportError:\n    json = None\n"),
    ("def main():\n    pass\n\n\nif __name__ == ", '"__main__":', "\n    main()\n"),
]


@pytest.fixture(scope="module")
def bundled() -> LoadedModel:
    return load_model("bundled", device="cpu", dtype="float32")


def test_it_fits_what_ships() -> None:
    sizes = {f.name: f.stat().st_size for f in BUNDLED.iterdir()}
    assert sizes.pop(ATTRIBUTION) <= MAX_ATTRIBUTION_BYTES
    assert sum(sizes.values()) <= MAX_BYTES
    assert json.loads((BUNDLED / "config.json").read_text())["model_type"] == "starcoder2"


@pytest.mark.parametrize(("prefix", "expected", "suffix"), PREDICTABLE)
def test_it_writes_the_plainly_predictable(
    bundled: LoadedModel, prefix: str, expected: str, suffix: str
) -> None:
    settings = Settings(max_tokens=32)
    prompter = Prompter.for_settings(settings)
    context = prompter.context(
        Snapshot("file:///a.py", 1, "python", prefix + suffix, len(prefix)), settings, None
    )
    asked, _ = prompter.request(context, settings, "test")
    assert not isinstance(asked.prompt, str)
    tokens = bundled.generate(
        asked.prompt,
        max_new_tokens=12,
        stop_ids=asked.stop_ids,
        begin_with=asked.begin_with,
        copying=CopyWeights(**asked.copying) if asked.copying else None,
    )
    text = "".join(t.text for t in tokens)
    assert Shaper.at(context, multiline="never").shape(text).text.startswith(expected)
