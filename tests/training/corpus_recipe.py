"""Made-up wheels and the recipe that makes a corpus of them."""

from __future__ import annotations

import hashlib
import json
import random
import zipfile
from pathlib import Path

from training.corpus.build import build
from training.corpus.folder import read_manifest

METADATA = "Metadata-Version: 2.4\nName: x\nVersion: 1.0\n"


def source(seed: int, functions: int = 12) -> str:
    """A module like no other seed's."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(60)]

    def function() -> str:
        a, b, c, d, e = rng.sample(words, 5)
        return f"def {a}({b}, {c}):\n    {d} = {b}.{e}({c})\n    return {d} + {a}_{e}\n"

    return "\n\n".join(function() for _ in range(functions))


def wheel(
    folder: Path,
    name: str,
    files: dict[str, str | bytes],
    metadata: str = "License-Expression: MIT",
) -> str:
    """Writes NAME-1.0-py3-none-any.whl; its SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as z:
        for file, content in {
            f"{name}-1.0.dist-info/METADATA": f"{METADATA}{metadata}\n",
            **files,
        }.items():
            z.writestr(zipfile.ZipInfo(file), content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Recipe:
    """packages.toml, packages.lock and the wheels of a small corpus: tested, validated, trained
    (and what is added)."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        self.table, self.lock = folder / "packages.toml", folder / "packages.lock"
        self.packages: dict[str, tuple[str, str, str]] = {}  # name -> split, licence, hash
        self.add("tested", "test", {"tested/a.py": source(1)})
        self.add("validated", "validation", {"validated/a.py": source(2)})
        self.add("trained", "train", {"trained/a.py": source(3)})

    def add(
        self,
        name: str,
        split: str,
        files: dict[str, str | bytes],
        licence: str = "MIT",
        **more: str,
    ) -> None:
        self.packages[name] = split, licence, wheel(self.data / "archives", name, files, **more)

    def write(self) -> None:
        def lines(split: str) -> str:
            return "".join(
                f'{n} = "{licence}"\n' for n, (s, licence, _) in self.packages.items() if s == split
            )

        self.table.write_text(
            f"[held_out.validation]\n{lines('validation')}[held_out.test]\n{lines('test')}"
            f"[train]\n{lines('train')}"
        )
        self.lock.write_text(
            "".join(f"{n}==1.0 --hash=sha256:{h}\n" for n, (_, _, h) in self.packages.items())
        )

    def build(self) -> dict[str, dict[str, int]]:
        """The manifest's counts of dropped files in training: reason -> files."""
        self.write()
        build(self.data, self.table, self.lock)
        return {why: n["files"] for why, n in read_manifest(self.data)["dropped"]["train"].items()}

    def rows(self, split: str = "train") -> list[dict[str, str]]:
        return [
            json.loads(line) for line in (self.data / f"{split}.jsonl").read_text().splitlines()
        ]

    def paths(self, split: str = "train") -> set[str]:
        return {row["path"] for row in self.rows(split)}
