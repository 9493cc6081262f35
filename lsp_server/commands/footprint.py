"""`fimls models NAME`: the memory that a model takes at each precision, from its configuration."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import prod

from model.footprint import FLOAT32, footprint, footprints
from model.weights.folder import find_model

AS_STORED = "as stored"
MEANINGS = {
    "float32": "",
    "float16": "",
    "bfloat16": "",
    "8-bit": "LLM.int8() by bitsandbytes, the rest bfloat16",
    "4-bit": "NF4 with double quantization by bitsandbytes, the rest bfloat16",
    "int8": "int8 rows on a CPU: a small model",
    "8 bits": "int8 on a CPU, in blocks",
    "4 bits": "int4 on a CPU, in blocks; embeddings and head have 8 bits",
    AS_STORED: "the file's own blocks: what a CPU takes by default",
}


def print_footprint(name: str, *, as_json: bool) -> None:
    """Reads no weights: config.json, or a GGUF file's header. Raises ModelError, OSError."""
    model = find_model(name, to_run=False)
    config, table = model.recipe()
    parameters = sum(prod(slot.shape) for slot in table.values())
    found = footprints(config, table)
    if kept := model.block_kinds(table, config):
        found[AS_STORED] = footprint(config, table, "q8_0", FLOAT32, kept)
    if as_json:
        rows = {
            precision: {**asdict(each), "total": each.total} for precision, each in found.items()
        }
        described = {
            "name": name,
            "path": str(model.path),
            "architecture": model.model_type,
            "parameters": parameters,
            "max_positions": config.max_positions,
            "footprint": rows,  # bytes
        }
        print(json.dumps(described))
        return
    print(
        f"{name}: {model.model_type}, {parameters / 1e6:,.1f}M parameters, "
        f"{config.max_positions:,} tokens of context. Memory in MB (1 MB = 1,000,000 bytes), "
        "without the KV cache:"
    )
    heads = ("matrices", "scales", "others", "rotary", "total")
    print(f"  {'':10}" + "".join(head.rjust(12) for head in heads))
    for precision, each in found.items():
        sizes = (each.matrices, each.scales, each.others, each.rotary, each.total)
        cells = "".join(f"{size / 1e6:,.2f}".rjust(12) for size in sizes)
        print(f"  {precision:10}{cells}  {MEANINGS[precision]}".rstrip())
