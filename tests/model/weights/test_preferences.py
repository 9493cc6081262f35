"""fimls.json: what it may hold, and what is said of the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model.errors import ModelError
from model.weights.folder import ModelFolder
from model.weights.preferences import Preferences

COPYING = {"bias": 1, "length": 0.5, "agreement": -2, "confidence": 0}


def preferences(folder: Path, values: dict[str, Any]) -> Preferences:
    (folder / "fimls.json").write_text(json.dumps(values))
    return ModelFolder(folder, {}).preferences


def test_every_key_is_read(tmp_path: Path) -> None:
    assert ModelFolder(tmp_path, {}).preferences == Preferences()
    values = {
        "layout": "psm",
        "min_confidence": 1,
        "time_budget": 100,
        "heal_tokens": True,
        "copying": COPYING,
        "languages": ["python", 3],
        "other_languages": "/models/other",
        "comment": "other keys are left alone",
    }
    expected = Preferences("psm", 1.0, 100, True, COPYING, ("python", "3"), "/models/other")
    assert preferences(tmp_path, values) == expected
    nothing = dict.fromkeys(("layout", "time_budget", "copying"))
    assert preferences(tmp_path, nothing) == Preferences()


REFUSED: list[tuple[str, Any, str]] = [
    ("min_confidence", 2, "It must be from 0 to 1; correct the file."),
    ("min_confidence", None, "It must be from 0 to 1; correct the file."),
    ("min_confidence", "high", "It must be from 0 to 1; correct the file."),
    ("time_budget", -1, "It must be at least 0 (milliseconds); correct it."),
    ("time_budget", True, "It must be at least 0 (milliseconds); correct it."),
    ("heal_tokens", 1, "It must be true or false; correct the file."),
    ("heal_tokens", None, "It must be true or false; correct the file."),
    (
        "copying",
        {"bias": 1},
        "It needs the numbers agreement, bias, confidence, length, each within ±1,000,000; "
        "correct or delete it.",
    ),
    (
        "copying",
        COPYING | {"bias": 1e7},
        "It needs the numbers agreement, bias, confidence, length, each within ±1,000,000; "
        "correct or delete it.",
    ),
    ("languages", "python", "It must be a list; correct or delete the file."),
]


@pytest.mark.parametrize(("key", "value", "remedy"), REFUSED)
def test_a_value_that_is_none_is_refused(
    key: str, value: object, remedy: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as refused:
        preferences(tmp_path, {key: value})
    assert str(refused.value) == f"{tmp_path}/fimls.json: {key} is {value!r}. {remedy}"
