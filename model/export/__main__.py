"""The command line of the export, which `fimls models export` runs.

python -m model.export bundled DIR --format hf --dtype float32
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from model.errors import ModelError
from model.export.export import export
from model.weights.folder import find_model

ABOUT = (
    "A model folder -> one that other programs run: the Hugging Face layout for transformers, GGUF "
    "for llama.cpp."
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="fimls models export", description=ABOUT)
    parser.add_argument("model", help="'bundled' or the path of a model folder")
    parser.add_argument("folder", type=Path, help="a new or an empty one")
    parser.add_argument("--format", required=True, dest="layout")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    try:
        target = arguments.folder.expanduser()
    except RuntimeError as error:  # ~ of an unknown user
        print(f"fimls: {arguments.folder}: {error} Name a new or an empty folder.", file=sys.stderr)
        return 2
    try:
        export(find_model(arguments.model), target, arguments.layout, arguments.dtype)
    except ModelError as error:
        print(f"fimls: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    size = sum(file.stat().st_size for file in target.iterdir())
    print(
        f"{target}: {arguments.model} as {arguments.layout}, {arguments.dtype}, {size / 1e6:.1f} MB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
