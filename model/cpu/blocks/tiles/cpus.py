"""How CPUs multiply 8-bit numbers."""

from __future__ import annotations

import os
from typing import NamedTuple

from llvmlite import binding


class Instructions(NamedTuple):
    name: str
    lanes: int  # 32-bit sums in a vector
    few_rows: int  # of a tile that reads a panel as it is
    wide_rows: int  # of a tile that reads widened blocks


AVX512_VNNI = Instructions("avx512vnni", lanes=16, few_rows=6, wide_rows=6)
AVX_VNNI = Instructions("avxvnni", lanes=8, few_rows=4, wide_rows=4)
AVX2 = Instructions("avx2", lanes=8, few_rows=4, wide_rows=4)


def instructions_of(features: str) -> Instructions | None:
    """The fastest instructions among a CPU's features, "+avx2,-amx-int8,..."; None without any."""
    found = set(features.split(","))
    if {"+avx512vnni", "+avx512bw", "+avx512vl"} <= found:
        return AVX512_VNNI
    if "+avxvnni" in found:
        return AVX_VNNI
    if "+avx2" in found:
        return AVX2
    return None


def chip() -> tuple[str, str]:
    """Name and features of the CPU that is compiled for: this one, unless numba is told another."""
    name = os.environ.get("NUMBA_CPU_NAME", "host")
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if name != "host":
        return name, features or ""
    own = binding.get_host_cpu_features().flatten()
    return binding.get_host_cpu_name(), own if features is None else features
