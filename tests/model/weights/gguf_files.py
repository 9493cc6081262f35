"""GGUF files to be changed and broken: a file copied with other keys and tensors."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np


def write_copy(
    source: Path,
    target: Path,
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
    kind: str | None = None,
    **how: Any,
) -> Path:
    """Writes the file anew with some keys and tensors replaced, added, or left out (None).

    kind: the type of all matrices whose rows fill its blocks. Tensors of uint8 are blocks of that
    type already; a pair is blocks and their type. how: of the library's writer.
    """
    reader = gguf.GGUFReader(source)
    changes = dict(keys or {})
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, changes.pop("general.architecture", architecture), **how)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in changes:
            continue
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    for name, value in changes.items():
        if value is not None:
            kind_of_value = gguf.GGUFValueType.get_type(value)
            sub_type = gguf.GGUFValueType.get_type(value[0]) if isinstance(value, list) else None
            writer.add_key_value(name, value, kind_of_value, sub_type)
    floats = {t.name: np.array(t.data) for t in reader.tensors} | dict(tensors or {})
    for name, values in floats.items():
        if values is not None:
            _add(writer, name, values, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _add(writer: gguf.GGUFWriter, name: str, values: Any, kind: str | None) -> None:
    if isinstance(values, tuple):
        data, raw_type = values
        writer.add_tensor(name, data, raw_dtype=raw_type)
        return
    if kind is not None and values.dtype == np.uint8:
        writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType[kind])
        return
    if kind is None or values.ndim == 1:
        writer.add_tensor(name, values)
        return
    wanted = gguf.GGMLQuantizationType[kind]
    if values.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]:
        writer.add_tensor(name, values)
        return
    writer.add_tensor(name, gguf.quantize(values, wanted), raw_dtype=wanted)


def patch_tensor(file: Path, name: str, **numbers: int) -> None:
    """Overwrites what the table of tensors says of one: dimensions, rows, columns, kind, offset."""
    raw = bytearray(file.read_bytes())
    text = name.encode()
    start = raw.index(struct.pack("<Q", len(text)) + text) + 8 + len(text)
    (dimensions,) = struct.unpack_from("<I", raw, start)
    end = start + 4 + 8 * dimensions
    places = {
        "dimensions": (start, "<I"),
        "columns": (start + 4, "<Q"),
        "rows": (start + 12, "<Q"),
        "kind": (end, "<I"),
        "offset": (end + 4, "<Q"),
    }
    for field, number in numbers.items():
        at, form = places[field]
        struct.pack_into(form, raw, at, number)
    file.write_bytes(raw)


def patch(file: Path, at: int, form: str, number: int) -> None:
    raw = bytearray(file.read_bytes())
    struct.pack_into(form, raw, at, number)
    file.write_bytes(raw)


# Where the half-precision scales and minimums of a block are, of types whose blocks are random.
HALVES = {
    "Q4_0": ({0: 0.03}, 18),
    "Q4_1": ({0: 0.03, 2: -0.2}, 20),
    "Q5_0": ({0: 0.015}, 22),
    "Q5_1": ({0: 0.015, 2: -0.2}, 24),
    "Q8_0": ({0: 0.002}, 34),
    "Q2_K": ({80: 0.015, 82: 0.02}, 84),
    "Q4_K": ({0: 0.0005, 2: 0.004}, 144),
    "Q5_K": ({0: 0.00025, 2: 0.004}, 176),
    "Q6_K": ({208: 0.00015}, 210),
}


def random_blocks(kind: str, shape: tuple[int, int], seed: int) -> Any:
    """A matrix of any numbers as blocks, whose weights are not far from 0: uint8 (rows, bytes)."""
    places, block_bytes = HALVES[kind]
    block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]
    generator = np.random.default_rng(seed)
    raw = generator.integers(0, 256, (shape[0] * shape[1] // block, block_bytes), np.uint8)
    for at, value in places.items():
        factors = (value * generator.uniform(0.5, 1.5, len(raw))).astype(np.float16)
        raw[:, at : at + 2] = factors[:, None].view(np.uint8)
    return raw.reshape(shape[0], -1)
