"""The tiles (tiles/) as machine code: compiled by LLVM alone, without numba, which would take four
times as long, and kept as an object file beside numba's code. Others call them by their addresses.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from llvmlite import binding, ir

from model.cpu.blocks.layout import FORMATS, Format
from model.cpu.blocks.tiles import attention, few, rounding, wide
from model.cpu.blocks.tiles.cpus import Instructions, chip, instructions_of

FILE = "tiles.o"


class Panels(NamedTuple):
    """Addresses of the functions, which tiles/ describes."""

    cpu: Instructions
    multiply_panel: int
    widen: int
    multiply_wide: int
    round_blocks: int
    widen_rows: int
    attend: int

    def numbers_of(self, format_: Format) -> tuple[int, int]:
        """Of a format, and of its kind of wide blocks, as the functions take them."""
        kind = wide.kinds_of(self.cpu).index(wide.kind_of(self.cpu, format_))
        return FORMATS.index(format_), kind


def module_of(cpu: Instructions, target: binding.TargetMachine) -> binding.ModuleRef:
    """All tiles, optimized for a target that has the instructions."""
    module = ir.Module("tiles")
    module.triple = target.triple
    module.data_layout = str(target.target_data)
    for tiles in (few, wide, rounding, attention):
        tiles.define(module, cpu)
    parsed = binding.parse_assembly(str(module))
    options = binding.create_pipeline_tuning_options(speed_level=2)
    builder = binding.create_pass_builder(target, options)
    builder.getModulePassManager().run(parsed, builder)
    return parsed


def compile_panels(cpu: Instructions, target: binding.TargetMachine) -> bytes:
    """An object file of all tiles."""
    return bytes(target.emit_object(module_of(cpu, target)))


def link(cpu: Instructions, code: bytes, target: binding.TargetMachine) -> Panels:
    """Puts an object file's functions into memory, where they stay."""
    empty = binding.parse_assembly("")
    empty.triple = target.triple
    engine = binding.create_mcjit_compiler(empty, target)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _ENGINES.append(engine)
    return Panels(cpu, *map(engine.get_function_address, Panels._fields[1:]))


_ENGINES: list[binding.ExecutionEngine] = []


def load(folder: Path) -> Panels | None:
    """Loads the tiles for this CPU from a folder, or compiles them into it; None where the CPU has
    no instructions for them. Raises OSError."""
    name, features = chip()
    cpu = instructions_of(features)
    if cpu is None:
        return None
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_triple(binding.get_process_triple())
    machine = target.create_target_machine(cpu=name, features=features, opt=2, jit=True)
    file = folder / FILE
    if not file.exists():
        file.write_bytes(compile_panels(cpu, machine))
    return link(cpu, file.read_bytes(), machine)
