"""Which models there are, as rows for an editor's list. It reads files: call it on a thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lsp_server.protocol.models.measuring import measured
from model.catalogue.entries import Entry, entries, entry_of
from model.catalogue.installed import find_all
from model.errors import ModelError
from model.weights.folder import find_model


def rows(chosen: str | None) -> list[dict[str, Any]]:
    """The bundled model, what else is on the disk, what can be pulled. chosen: the setting."""
    times = {each["name"]: each for each in (measured() or {}).get("estimates", ())}

    def row(name: str, size: int | None, entry: Entry | None, *, here: bool) -> dict[str, Any]:
        found = times.get(entry.name, {}) if entry else {}
        return {
            "name": name,
            "here": here,
            "chosen": name == chosen,
            "bytes": size,
            "memoryBytes": found.get("memory_bytes") or (entry.parameters if entry else None),
            "licence": entry.licence.name if entry else "",
            "asksLicence": bool(entry and entry.licence.ask and not here),
            "languages": entry.languages if entry else "",
            "suggestionMs": found.get("line_ms"),
            "verdict": found.get("verdict", ""),
        }

    known = entries()
    found = [row("bundled", None, None, here=True)]
    path = path_of(chosen) if chosen is not None else None
    there = set()
    for installed in find_all():
        if path_of(installed.path) is None:
            continue  # the caches hold other programs' models, too
        there.add(installed.entry)
        found.append(row(installed.name, installed.bytes, known.get(installed.entry), here=True))
        found[-1]["chosen"] |= installed.path == path
    found += [row(e.name, e.bytes, e, here=False) for e in known.values() if e.name not in there]
    if chosen is not None and not any(each["chosen"] for each in found):
        entry = entry_of(path) if path is not None else known.get(chosen)
        found.insert(1, row(chosen, None, entry, here=path is not None))
    return found


def path_of(name: str | Path) -> Path | None:
    """The path of a model that can be run; None without one."""
    try:
        model = find_model(name)
    except (ModelError, OSError):
        return None
    return model.path if model.is_native else None
