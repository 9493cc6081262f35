"""Builds the corpus from packages: jsonl files and a manifest."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from training.corpus.filters import (
    SKIPPED_FOLDERS,
    NearDuplicates,
    dropped_because,
    sketch,
    without_humaneval,
)
from training.corpus.folder import FILES, SPLITS, CorpusError, partial
from training.corpus.packages import (
    Package,
    contradiction,
    fetch,
    licence_found,
    members,
    read_packages,
    standard_library,
)

TRAINING = Path(__file__).parent.parent
TABLE, LOCK = TRAINING / "packages.toml", TRAINING / "packages.lock"


class Filters:
    """What is kept of the files that pass by, held-out packages first: it remembers what it has
    kept."""

    def __init__(self) -> None:
        self.fingerprints: set[bytes] = set()  # of texts without white space
        self.held_out_lines: set[str] = set()
        self.near = NearDuplicates()
        self.held_out_files = 0
        self.functions_cut = 0

    def __call__(self, split: str, path: str, raw: bytes) -> tuple[str, str | None]:
        """The text to keep, or why it is dropped."""
        if SKIPPED_FOLDERS & set(path.split("/")[:-1]):
            return "", "vendored"
        try:
            text = raw.decode("utf-8").replace("\r\n", "\n").removeprefix("\ufeff")
        except UnicodeDecodeError:
            return "", "not UTF-8"
        fingerprint = hashlib.sha1("".join(text.split()).encode()).digest()
        if reason := dropped_because(text):
            return "", reason
        if fingerprint in self.fingerprints:
            return "", "duplicate"
        self.fingerprints.add(fingerprint)
        lines = [line for line in map(str.strip, text.split("\n")) if len(line) > 40]
        if split != "train":
            self.held_out_lines.update(lines)
            self.held_out_files += 1
            self.near.add(sketch(text))
            return text, None
        if lines and sum(x in self.held_out_lines for x in lines) > 0.3 * len(lines):
            return "", "copies a held-out file"
        kept, functions = without_humaneval(text)
        self.functions_cut += functions if kept is not None else 0
        if kept is None:
            return "", "HumanEval"
        new = sketch(kept)
        like = self.near.find(new)
        if like is not None:
            return "", "copies a held-out file" if like < self.held_out_files else "near-duplicate"
        self.near.add(new)
        return kept, None


def build(out: Path, table: Path = TABLE, lock: Path = LOCK) -> dict[str, Any]:
    """Writes the corpus into the folder `out`; wheels are kept in out/archives. The manifest.
    Raises CorpusError."""
    packages = read_packages(table, lock)
    archives = fetch(packages, out / "archives")
    keep = Filters()
    manifest: dict[str, Any] = {"packages": {}, "bytes": Counter(), "written": {}}
    dropped: dict[str, dict[str, Counter[str]]] = {split: defaultdict(Counter) for split in SPLITS}
    with partial(out, FILES) as sinks:
        for package in packages:
            entry, rows = package_rows(package, archives, keep, dropped[package.split])
            for row in rows:
                sinks[f"{package.split}.jsonl"].write(json.dumps(row).encode() + b"\n")
            manifest["packages"][package.name] = entry
            manifest["bytes"][package.split] += entry["bytes"]
            print(
                f"{package.split:10} {package.name:24} {entry['bytes'] / 1e6:7.2f} MB", flush=True
            )
        for split in SPLITS:
            manifest["written"][f"{split}.jsonl"] = sinks[f"{split}.jsonl"].summary()
        manifest |= {"dropped": dropped, "humaneval_functions_cut": keep.functions_cut}
        sinks["manifest.json"].write(json.dumps(manifest, indent=1).encode() + b"\n")
    return manifest


def package_rows(
    package: Package, archives: dict[str, Path], keep: Filters, dropped: dict[str, Counter[str]]
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """A package's entry in the manifest and its files as rows. Raises CorpusError."""
    if package.sha256 is None:
        files, version, found = standard_library(), sys.version.split()[0], "the standard library"
        if version != package.version:
            print(
                f"note: the standard library is Python {version}'s, the shipped model's was "
                f"{package.version}'s"
            )
    else:
        archive = archives[package.sha256]
        files, version = members(archive), package.version
        found = licence_found(archive)
        if problem := contradiction(package, found):
            raise CorpusError(
                f"{package.name}: {problem}: correct packages.toml or choose another package"
            )
    rows = []
    read = hashlib.sha256()
    for path, raw in files:
        read.update(path.encode() + b"\0" + raw)
        text, reason = keep(package.split, path, raw)
        if reason is None:
            rows.append(
                {"package": package.name, "licence": package.licence, "path": path, "text": text}
            )
        else:
            dropped[reason].update(files=1, bytes=len(raw))
    entry = {
        "split": package.split,
        "version": version,
        "licence": package.licence,
        "licence_found": found,
        "files": len(rows),
        "bytes": sum(len(row["text"].encode()) for row in rows),
        "sha256": package.sha256 or read.hexdigest(),
    }
    return entry, rows
