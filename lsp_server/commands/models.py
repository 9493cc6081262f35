"""`fimls models`: lists the models that are here and those to be had, chooses or exports one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fim.characters import escaped
from lsp_server.folders import cache_folder
from lsp_server.settings import Settings
from lsp_server.user_settings import store_model
from model.catalogue.download import size
from model.catalogue.entries import Entry, entries, find_entry, usual_bytes
from model.catalogue.installed import Installed, find_all
from model.errors import ModelError
from model.prepared.files import prepared_files, prepared_folder, prepared_of
from model.weights.files import ModelFiles
from model.weights.folder import find_model

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


async def print_models(settings: Settings, *, as_json: bool) -> None:
    """The command: the bundled model and the chosen one, then what else is on the disk, then what
    can be pulled.

    Reads no weights, only the headers of the first two. Raises ModelError, OSError.
    """
    described = []
    for name in dict.fromkeys(("bundled", settings.model)):
        model = describe(name, find_model(name))
        model["chosen"] = name == settings.model
        described.append(model)
    listed = {Path(model["path"]).resolve() for model in described}
    others = []
    known = set()
    for here in find_all():
        if here.path.resolve() not in listed:
            found = row_here(here)
            if found is None:
                continue
            others.append(found)
        known.add(here.entry)
    to_be_had = [row(entry) for entry in entries().values() if entry.name not in known]
    if as_json:
        print(json.dumps([*described, *others, *to_be_had]))
        return
    for model in described:
        print_model(model)
    if others:
        print("\nAlso on this disk (the setting model takes these names):")
        print_table(("", "disk", "memory", "licence", "from"), map(cells_here, others))
    prepared = list(prepared_files(cache_folder()))
    if prepared:
        print(
            f"\nPrepared for a fast start: {', '.join(file.model.name for file in prepared)} "
            f"({size(sum(file.bytes for file in prepared))} in {prepared_folder(cache_folder())})"
        )
    if to_be_had:
        print("\nTo be had with `fimls pull NAME`, or any ORG/REPO[:FILE] of the hub:")
        print_table(("", "download", "memory", "licence", "measured"), map(cells, to_be_had))


def use_model(name: str) -> None:
    """Stores the choice of a model that is here. Raises ModelError, OSError."""
    print(f"{store_model(name)} is chosen. A window that is open takes it when it is restarted.")
    if variable := os.environ.get("FIMLS_MODEL"):
        print(f"Here FIMLS_MODEL={variable} comes before the choice; unset it.", file=sys.stderr)


def describe(name: str, model: ModelFiles) -> dict[str, Any]:
    """A model as --json prints it. memory_bytes: of the weights as they run by default on a CPU."""
    return {
        "name": name,
        "path": str(model.path),
        "architecture": model.model_type,
        "native": model.is_native,
        "parameters": model.parameters,
        "max_positions": model.max_positions,
        "languages": model.preferences.languages,
        "other_languages": model.preferences.other_languages,
        "disk_bytes": disk_bytes(model),
        "prepared_bytes": sum(file.bytes for file in prepared_of(cache_folder(), model.path)),
        "memory_bytes": usual_bytes(model.parameters, weight_file_bytes(model)),
        "weights_bytes": {dtype: model.parameters * each for dtype, each in WEIGHT_BYTES.items()},
    }


def weight_file_bytes(model: ModelFiles) -> int:
    """Of a split GGUF file, all parts."""
    return sum(file.stat().st_size for file in model.weight_files)


def disk_bytes(model: ModelFiles) -> int:
    if not model.path.is_dir():
        return weight_file_bytes(model)
    return sum(file.stat().st_size for file in model.path.iterdir() if file.is_file())


def row_here(here: Installed) -> dict[str, Any] | None:
    """A model on the disk as --json prints it; None for one that fimls does not run: the caches
    hold other programs' models, too."""
    try:
        model = find_model(here.path)
        if not model.is_native:
            return None  # nobody knows yet whether it is a language model at all
        found = describe(here.name, model)
    except (ModelError, OSError):
        return None
    entry = find_entry(here.entry)
    licence = entry.licence.name if entry else "?"
    return {**found, "origin": here.origin, "chosen": False, "licence": licence}


def row(entry: Entry) -> dict[str, Any]:
    """A model of the catalogue as --json prints it; null is what nobody could verify."""
    return {
        "name": entry.name,
        "path": None,
        "origin": None,
        "chosen": False,
        "repository": entry.repository,
        "parameters": entry.parameters,
        "max_positions": entry.context,
        "precision": entry.precision,
        "download_bytes": entry.bytes,
        "about_gb": entry.about_gb,
        "memory_bytes": entry.memory_bytes,
        "licence": entry.licence.name,
        "ask_licence": entry.licence.ask,
        "languages": entry.languages,
        "measured": entry.measured,
    }


def cells_here(model: dict[str, Any]) -> tuple[str, ...]:
    return (
        model["name"],
        size(model["disk_bytes"]),
        size(model["memory_bytes"]),
        model["licence"],
        {"fimls": "fimls pull", "hub": "the hub's cache"}.get(model["origin"], model["origin"]),
    )


def cells(model: dict[str, Any]) -> tuple[str, ...]:
    download = "?"
    if model["download_bytes"]:
        download = size(model["download_bytes"])
    elif model["about_gb"]:
        download = f"~ {model['about_gb']} GB"
    memory = model["memory_bytes"]
    return (
        model["name"],
        download,
        size(memory) if memory else "?",
        model["licence"] + (" (asks)" if model["ask_licence"] else ""),
        model["measured"],
    )


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns of text; sizes to the right."""
    lines = [heads, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = []
        for number, (text, width) in enumerate(zip(line, widths, strict=True)):
            padded.append(text.rjust(width) if number in (1, 2) else text.ljust(width))
        print(escaped("  " + "  ".join(padded).rstrip()))


def print_model(model: dict[str, Any]) -> None:
    weights = [f"{dtype} {count / 1e6:,.1f} MB" for dtype, count in model["weights_bytes"].items()]
    chosen = " (chosen)" if model["chosen"] else ""
    print(
        f"{escaped(model['name'])}{chosen}: {model['architecture']}, "
        f"{model['parameters'] / 1e6:,.1f}M parameters, "
        f"{model['max_positions']:,} tokens of context, {model['disk_bytes'] / 1e6:,.1f} MB on "
        f"disk; weights in memory: {model['memory_bytes'] / 1e6:,.1f} MB; as {', '.join(weights)}"
    )
    if not model["native"]:
        print("  the architecture is not native: transformers runs it, slower, and not as int8")
    if model["languages"]:
        line = f"  trained on {', '.join(model['languages'])}"
        if model["other_languages"]:
            line += f"; for others use {model['other_languages']}"
        print(line)


def export_model(model: str, folder: Path, *, layout: str, dtype: str) -> None:
    """`fimls models export`: replaces this process, which loads no torch, by model.export."""
    arguments = ["--format", layout, "--dtype", dtype, "--", model, str(folder)]
    os.execv(sys.executable, [sys.executable, "-P", "-m", "model.export", *arguments])
