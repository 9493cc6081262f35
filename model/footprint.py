"""The memory that a model takes in each precision, from its configuration alone: no torch, no
weights.

What is counted is what a loaded decoder holds: its weights, as the family's table of tensors gives
their shapes, with the scales of those that are quantized, and the one rotary table that all layers
share. KV caches and what a pass computes come on top.

The figures on StarCoder2-7B's model card (29232.57 MB in float32, 14616.29 in bfloat16, 7670.52 in
8 bits, 4197.64 in 4 bits; MB = 10**6 bytes) are transformers' get_memory_footprint: parameters and
buffers. They follow this arithmetic, to the last digit:

- 7,173,923,840 parameters, of which 6,945,767,424 are in the matrices of linear layers, 226,492,416
  in the embeddings, to which the head is tied, and 1,664,000 in biases and norms;
- a rotary table of 16,384 positions in each of the 32 layers, cos and sin of 128 dimensions: 134.2
  million numbers in the precision of the rest, so 536.87 MB in float32 and 268.44 MB else; and the
  64 frequencies that it is made of, in each layer too;
- in 8 and 4 bits only the linear layers' matrices are quantized, to 1 and 1/2 byte a weight. What
  else there is has 2 bytes a number. The scales of the rows (4.26 MB in 8 bits) and of the blocks
  (110.3 MB in 4) are neither parameters nor buffers there, and are left out.

Ours have one rotary table less 31, and count the scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from model.cpu.blocks.layout import BY_NAME, OUTPUTS
from model.decoder.config import DecoderConfig
from model.families.weight_table import WeightSlot

Scheme = Literal["floats", "llm.int8", "nf4", "nf4-double", "int8", "q8_0", "q4_0"]
"""How the matrices of the layers are kept: as floats; by bitsandbytes (model.precision); as int8
rows on a CPU, where the embeddings and the head are so, too; or there in blocks of 8 or 4 bits,
with embeddings and head in 8."""

NF4_BLOCK = 64  # weights to a scale of 8 bits
NF4_SCALES = 256  # of these to a float32 scale
# Float32 numbers beside them: what 4 bits stand for; the mean of the scales, and what 8 bits do.
NF4_EXTRA = 16
DOUBLE_EXTRA = 1 + 256
FLOAT32 = 4  # bytes
# (name, scheme, bytes of a float) of the precisions that are listed.
PRECISIONS: tuple[tuple[str, Scheme, int], ...] = (
    ("float32", "floats", 4),
    ("float16", "floats", 2),
    ("bfloat16", "floats", 2),
    ("8-bit", "llm.int8", 2),
    ("4-bit", "nf4-double", 2),
    ("int8", "int8", 4),
    ("8 bits", "q8_0", 4),
    ("4 bits", "q4_0", 4),
)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of a loaded decoder."""

    matrices: int  # of what the scheme quantizes; with floats, of the same matrices
    scales: int  # of the matrices; in blocks they are among these
    others: int  # embeddings, norms, biases
    rotary: int

    @property
    def total(self) -> int:
        return self.matrices + self.scales + self.others + self.rotary


def footprint(
    config: DecoderConfig,
    table: Mapping[str, WeightSlot],
    scheme: Scheme,
    float_bytes: int,
    kept: Mapping[str, str] | None = None,
) -> Footprint:
    """The footprint of a decoder whose tensors have the table's shapes.

    float_bytes: 2 or 4, of what stays float; of CPUs' schemes always 4. kept: the formats of the
    tensors that stay in the blocks that their file has, by name; of schemes of blocks. A small
    model may be kept in two forms on a CPU, of which this counts one.
    """
    if scheme in BY_NAME:
        return _in_blocks(config, table, scheme, kept or {})
    rows: dict[str, int] = {}
    widths: dict[str, int] = {}
    others = 0
    for slot in table.values():
        # The decoder fuses some: a block of NF4 may begin in one tensor and end in another.
        if _is_quantized(slot, scheme):
            rows[slot.parameter] = rows.get(slot.parameter, 0) + slot.shape[0]
            widths[slot.parameter] = slot.shape[1]
        else:
            others += prod(slot.shape) * float_bytes
    matrices = 0
    scales = 0
    for parameter, out in rows.items():
        matrix, its_scales = _matrix_bytes(out, widths[parameter], scheme, float_bytes)
        matrices += matrix
        scales += its_scales
    return Footprint(matrices, scales, others, rotary_bytes(config, float_bytes))


def _in_blocks(
    config: DecoderConfig, table: Mapping[str, WeightSlot], scheme: str, kept: Mapping[str, str]
) -> Footprint:
    matrices = 0
    others = 0
    for name, slot in table.items():
        if not _is_quantized(slot, "int8"):
            others += prod(slot.shape) * FLOAT32
            continue
        out, width = slot.shape
        is_usual = slot.parameter.startswith("layers.") and ".qkv." not in slot.parameter
        usual = scheme if is_usual else "q8_0"
        format_ = BY_NAME[kept.get(name, usual)]
        whole = _ceil(width, format_.columns) * format_.columns
        matrices += _ceil(out, OUTPUTS) * format_.panel_bytes(whole)
    return Footprint(matrices, 0, others, rotary_bytes(config, FLOAT32))


def footprints(config: DecoderConfig, table: Mapping[str, WeightSlot]) -> dict[str, Footprint]:
    """By the names of PRECISIONS."""
    return {
        name: footprint(config, table, scheme, float_bytes)
        for name, scheme, float_bytes in PRECISIONS
    }


def _is_quantized(slot: WeightSlot, scheme: Scheme) -> bool:
    """Whether the slot is of a layer's matrix; embeddings and head count with the scheme int8."""
    if not slot.parameter.endswith(".weight") or len(slot.shape) != 2:
        return False
    return scheme == "int8" or slot.parameter.startswith("layers.")


def _matrix_bytes(out: int, width: int, scheme: Scheme, float_bytes: int) -> tuple[int, int]:
    """(bytes of a matrix (out, width), bytes of its scales)."""
    if scheme == "floats":
        return out * width * float_bytes, 0
    if scheme in ("nf4", "nf4-double"):
        scales = _ceil(out * width, NF4_BLOCK)
        size = scales * FLOAT32
        if scheme == "nf4-double":
            size = scales + (_ceil(scales, NF4_SCALES) + DOUBLE_EXTRA) * FLOAT32
        return _ceil(out * width, 2), size + NF4_EXTRA * FLOAT32
    return out * width, out * FLOAT32


def rotary_bytes(config: DecoderConfig, float_bytes: int) -> int:
    """Of the table that all layers share: cos, sin, and both as complex64 (model/decoder/rope.py),
    for every position."""
    return config.max_positions * config.rotated_dim * (2 * float_bytes + FLOAT32)


def _ceil(number: int, unit: int) -> int:
    return -(-number // unit)
