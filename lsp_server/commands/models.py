"""`fimls models`: lists the models that are here, and exports one of them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from lsp_server.settings import Settings
from model.weights.folder import ModelFolder, find_model

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


async def print_models(settings: Settings, *, as_json: bool) -> None:
    """The command: the bundled model and the one that the settings name.

    Reads only config.json, fimls.json and the headers of the weights. Raises ModelError, OSError.
    """
    models = []
    for name in dict.fromkeys(("bundled", settings.model)):
        models.append(describe(name, find_model(name)))
    if as_json:
        print(json.dumps(models, ensure_ascii=False))
        return
    for model in models:
        print_model(model)


def describe(name: str, folder: ModelFolder) -> dict[str, Any]:
    """A model as --json prints it."""
    disk_bytes = 0
    for file in folder.path.iterdir():
        if file.is_file():
            disk_bytes += file.stat().st_size
    return {
        "name": name,
        "path": str(folder.path),
        "architecture": folder.model_type,
        "parameters": folder.parameters,
        "max_positions": folder.max_positions,
        "languages": folder.preferences.languages,
        "other_languages": folder.preferences.other_languages,
        "disk_bytes": disk_bytes,
        "weights_bytes": {dtype: folder.parameters * size for dtype, size in WEIGHT_BYTES.items()},
    }


def print_model(model: dict[str, Any]) -> None:
    weights = [f"{dtype} {size / 1e6:,.1f} MB" for dtype, size in model["weights_bytes"].items()]
    print(
        f"{model['name']}: {model['architecture']}, {model['parameters'] / 1e6:,.1f}M parameters, "
        f"{model['max_positions']:,} tokens of context, {model['disk_bytes'] / 1e6:,.1f} MB on "
        f"disk; weights in memory: {', '.join(weights)}"
    )
    if model["languages"]:
        line = f"  trained on {', '.join(model['languages'])}"
        if model["other_languages"]:
            line += f"; for others use {model['other_languages']}"
        print(line)


def export_model(model: str, folder: Path, *, layout: str, dtype: str) -> None:
    """`fimls models export`: replaces this process, which loads no torch, by model.export."""
    arguments = ["--format", layout, "--dtype", dtype, "--", model, str(folder)]
    os.execv(sys.executable, [sys.executable, "-P", "-m", "model.export", *arguments])
