"""Runs the tiles made of one CPU's instructions, in a process of its own, for test_tiles.py.

    python -m tests.model.cpu.blocks.tiles_of_cpu CPU CHIP FOLDER

Writes what they compute to FOLDER/results.pt, if this machine has the instructions, and prints
which of WORDS the assembly text for CHIP has. NUMBA_CACHE_DIR has to be FOLDER/code.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from llvmlite import binding

from model.cpu.interleaved import intrinsics
from tests.model.cpu.blocks.matrices import results

WORDS = ("{vex}", "vpdpbusd", "vpmaddubsw", "vpsignb", "vpmaddwd", "vcvtph2ps", "zmm", "ymm")


def main(cpu: str, chip: str, folder: str) -> None:
    here = intrinsics.instructions_of(binding.get_host_cpu_features().flatten())
    intrinsics.CHOSEN = getattr(intrinsics, cpu)  # before the tiles are made
    from model.cpu.blocks import panels

    text = ""
    for function in (panels.multiply_panel, panels.widen, panels.multiply_wide):
        text += assembly(function, chip)
    print(*(word for word in WORDS if word in text))
    if here in (intrinsics.AVX512_VNNI, intrinsics.CHOSEN) or cpu == "AVX2":
        torch.save(results(Path(folder) / "code"), Path(folder) / "results.pt")


def assembly(function: Any, chip: str) -> str:
    module = binding.parse_assembly(function.inspect_llvm())
    target = binding.Target.from_triple("x86_64-unknown-linux-gnu")
    return str(target.create_target_machine(cpu=chip).emit_assembly(module))


if __name__ == "__main__":
    main(*sys.argv[1:])
