"""Corpora of code that nobody else has written, for what reads a corpus."""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = (
    "value count index start total parse render token buffer offset window layer cache reader "
    "writer handle"
).split()
LICENCES = {"one": "MIT", "two": "BSD-3-Clause"}


def code(seed: object, lines: int = 60) -> str:
    """Lines of Python, indented here and there; other seeds give other code."""
    rng = random.Random(str(seed))

    def name() -> str:
        return "_".join(rng.choice(WORDS) for _ in range(rng.randint(1, 3))) + str(
            rng.randrange(100)
        )

    text = ""
    for _ in range(lines):
        text += f"{' ' * 4 * rng.randrange(4)}{name()} = {name()}({name()}, {name()})" + rng.choice(
            ["\n", "\n\n"]
        )
    return text


def write_corpus(folder: Path, packages: dict[str, list[str]]) -> Path:
    """train.jsonl and manifest.json as training/corpus writes them; the licence is MIT where
    LICENCES has no other."""
    rows = [
        {"package": package, "path": f"{number}.py", "text": text}
        for package, texts in packages.items()
        for number, text in enumerate(texts)
    ]
    (folder / "train.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    described = {
        name: {"version": "1.0", "licence": LICENCES.get(name, "MIT")} for name in packages
    }
    (folder / "manifest.json").write_text(json.dumps({"packages": described}))
    return folder
