"""How CPUs multiply 8-bit numbers."""

from __future__ import annotations

import os
from typing import NamedTuple

from llvmlite import binding


class Instructions(NamedTuple):
    """What the tiles are made of.

    AVX512_VNNI ran on the machine that they were written on, which can play AVX2 and PORTABLE, too,
    and AVX_VNNI in its AVX512 form alone. The two for Arm never ran: their code was compiled and
    looked at (tests/model/cpu/blocks/test_tiles.py).
    """

    name: str
    lanes: int  # 32-bit sums in a vector
    few_rows: int  # of a tile that reads a panel as it is
    wide_rows: int  # of a tile that reads widened blocks
    registers: int  # for vectors
    signed: bool = False  # only two signed numbers can be multiplied


AVX512_VNNI = Instructions("avx512vnni", lanes=16, few_rows=6, wide_rows=6, registers=32)
AVX_VNNI = Instructions("avxvnni", lanes=8, few_rows=4, wide_rows=4, registers=16)
AVX2 = Instructions("avx2", lanes=8, few_rows=4, wide_rows=4, registers=16)
NEON_I8MM = Instructions(
    "i8mm", lanes=4, few_rows=4, wide_rows=4, registers=32
)  # (no tile uses smmla)
NEON_DOT = Instructions("dotprod", lanes=4, few_rows=4, wide_rows=4, registers=32, signed=True)
PORTABLE = Instructions("portable", lanes=4, few_rows=2, wide_rows=2, registers=16)


def instructions_of(features: str) -> Instructions | None:
    """The fastest instructions among a CPU's features, "+avx2,-amx-int8,..."; None where there are
    none that convert half-precision numbers."""
    found = set(features.split(","))
    if {"+avx512vnni", "+avx512bw", "+avx512vl"} <= found:
        return AVX512_VNNI
    for feature, instructions in (
        ("+avxvnni", AVX_VNNI),
        ("+avx2", AVX2),
        ("+i8mm", NEON_I8MM),
        ("+dotprod", NEON_DOT),
        ("+f16c", PORTABLE),
        ("+neon", PORTABLE),
    ):
        if feature in found:
            return instructions
    return None


def chip() -> tuple[str, str]:
    """Name and features of the CPU that is compiled for: this one, unless numba is told another."""
    name = os.environ.get("NUMBA_CPU_NAME", "host")
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if name != "host":
        return name, features or ""
    own = binding.get_host_cpu_features().flatten()
    return binding.get_host_cpu_name(), own if features is None else features
