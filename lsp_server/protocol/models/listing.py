"""Which models there are, as rows for an editor's list. It reads files: call it on a thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lsp_server.protocol.models.measuring import measured
from model.catalogue.entries import Entry, entries, entry_of, usual_bytes
from model.catalogue.installed import Installed, find_all
from model.catalogue.recommend import estimate
from model.errors import ModelError
from model.weights.files import ModelFiles
from model.weights.folder import find_model

BUNDLED_LICENCE = "Apache-2.0"  # the project's: see its model card
# A model's name and parameters -> "memory_bytes", "line_ms" and "verdict".
Expected = Callable[[str, int | None], Mapping[str, Any]]


def rows(chosen: str | None) -> list[dict[str, Any]]:
    """The bundled model, what else is on the disk, what can be pulled. chosen: the setting."""
    expected = expectations(measured())
    known = entries()
    found = []
    there = set()
    installed_models = find_all()
    names: dict[str, Installed | None] = {"bundled": None}
    chosen_model = model_of(chosen) if chosen is not None else None
    chosen_path = chosen_model.path if chosen_model is not None else None
    if chosen and chosen_path and all(each.path != chosen_path for each in installed_models):
        names[chosen] = None
    for name, installed in (names | {each.name: each for each in installed_models}).items():
        model = model_of(installed.path if installed is not None else name)
        if model is None:
            continue  # the caches hold other programs' models, too
        entry = known.get(installed.entry) if installed is not None else entry_of(model.path)
        there.add(entry.name if entry else "")
        size = installed.bytes if installed is not None else weight_bytes(model)
        found.append(row(name, size, entry, expected, model))
        found[-1]["chosen"] = model.path == chosen_path
    for entry in known.values():
        if entry.name not in there:
            found.append(row(entry.name, entry.download_bytes, entry, expected))
    if chosen is not None and chosen_path is None:  # it is not here, or damaged
        if chosen not in known:
            found.insert(1, row(chosen, None, None, expected))
        for each in found:
            each["chosen"] = each["name"] == chosen
    return found


def row(
    name: str,
    size: int | None,
    entry: Entry | None,
    expected: Expected,
    model: ModelFiles | None = None,
) -> dict[str, Any]:
    """model: what is here."""
    parameters = entry.parameters if entry else None
    languages = entry.languages if entry else ""
    if model is not None:
        parameters = model.parameters
        languages = languages or ", ".join(model.preferences.languages)
    memory = entry.memory_bytes if entry else None
    if model is not None:
        memory = usual_bytes(model.parameters, size)
    licence = entry.licence.name if entry else ""
    if model is not None and model.is_bundled:
        licence = BUNDLED_LICENCE
    found = expected(entry.name if entry else name, parameters)
    return {
        "name": name,
        "here": model is not None,
        "chosen": False,
        "bytes": size,
        "memoryBytes": found.get("memory_bytes") or memory,
        "licence": licence,
        "asksLicence": bool(entry and entry.licence.ask and model is None),
        "languages": languages,
        "suggestionMs": found.get("line_ms"),
        "verdict": found.get("verdict", ""),
    }


def expectations(report: Mapping[str, Any]) -> Expected:
    """The doctor's estimates by a model's name, for others by their parameters; {} where nothing
    was measured."""
    times: dict[str, Mapping[str, Any]] = {}
    for each in report.get("estimates", ()):
        times[each["name"]] = each

    def expected(name: str, parameters: int | None) -> Mapping[str, Any]:
        if name in times or parameters is None:
            return times.get(name, {})
        with contextlib.suppress(KeyError, TypeError, ZeroDivisionError):
            return asdict(estimate(name, parameters, report["machine"]))
        return {}

    return expected


def model_of(name: str | Path) -> ModelFiles | None:
    """A model that can be run; None without one."""
    try:
        model = find_model(name)
        return model if model.is_native and model.parameters else None
    except (ModelError, OSError):
        return None


def weight_bytes(model: ModelFiles) -> int:
    return sum(file.stat().st_size for file in model.weight_files)
