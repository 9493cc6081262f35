"""The tiles of every CPU: compiled for a CPU that has no more and looked at, and run where this
machine can. All compute the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from llvmlite import binding

from model.cpu.blocks import panels
from model.cpu.blocks.kernel import BlockProduct
from model.cpu.blocks.tiles import cpus
from tests.model.cpu.blocks.matrices import results

pytestmark = [
    pytest.mark.slow,  # the tiles of each CPU take seconds to compile
    pytest.mark.xdist_group("compiled"),
]

X86 = "x86_64-unknown-linux-gnu"
ARM = "aarch64-unknown-linux-gnu"


class Chip(NamedTuple):
    """A CPU that has the instructions and no better ones, and words of its assembly text."""

    name: str
    triple: str
    words: set[str]
    others: set[str]  # that are of other CPUs


CHIPS = {
    cpus.AVX512_VNNI: Chip("icelake-client", X86, {"vpdpbusd", "zmm", "vcvtph2ps"}, {"vpmaddubsw"}),
    cpus.AVX_VNNI: Chip(
        "alderlake", X86, {"{vex}", "vpdpbusd", "ymm", "vcvtph2ps"}, {"vpmaddubsw", "zmm"}
    ),
    cpus.AVX2: Chip(
        "haswell",
        X86,
        {"vpmaddubsw", "vpsignb", "vpmaddwd", "ymm", "vcvtph2ps"},
        {"vpdpbusd", "zmm"},
    ),
    cpus.NEON_I8MM: Chip("neoverse-v1", ARM, {"usdot", "fcvtl", "fmla"}, {"\tsdot"}),
    cpus.NEON_DOT: Chip("neoverse-n1", ARM, {"\tsdot", "fcvtl", "fmla"}, {"usdot"}),
    cpus.PORTABLE: Chip("ivybridge", X86, {"vpmullw", "vcvtph2ps", "fmaf"}, {"ymm", "vpmaddubsw"}),
}
# What this CPU's tiles are compared with, compiled for a CPU that has no more.
PLAYED = (cpus.AVX2, cpus.PORTABLE)


def target_of(chip: Chip, features: str = "") -> binding.TargetMachine:
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    target = binding.Target.from_triple(chip.triple)
    return target.create_target_machine(cpu=chip.name, features=features, opt=2, jit=True)


@pytest.mark.parametrize("cpu", CHIPS, ids=lambda cpu: cpu.name)
def test_tiles_are_made_of_the_instructions_of_a_cpu(cpu: cpus.Instructions) -> None:
    chip = CHIPS[cpu]
    target = target_of(chip)
    text = target.emit_assembly(panels.module_of(cpu, target))
    assert {word for word in chip.words | chip.others if word in text} == chip.words


@pytest.mark.parametrize("cpu", CHIPS, ids=lambda cpu: cpu.name)
def test_tiles_of_all_cpus_compute_the_same(cpu: cpus.Instructions, code: Path) -> None:
    """Compiled for what this CPU has: AVX-VNNI's are instructions of AVX512-VNNI, too."""
    expected = BlockProduct()
    expected.load(code)
    name, features = cpus.chip()
    chip = CHIPS[cpu]
    if chip.triple != X86 or not binding.get_process_triple().startswith("x86_64"):
        pytest.skip("not on this CPU")
    if cpu not in PLAYED:
        if cpus.instructions_of(features) not in (cpu, cpus.AVX512_VNNI):
            pytest.skip("not on this CPU")
        chip = chip._replace(name=name)
    target = target_of(chip, features if chip.name == name else "")
    played = BlockProduct()
    played.load(code)
    played.use(panels.link(cpu, panels.compile_panels(cpu, target), target))
    ours = results(played)
    for case, numbers in results(expected).items():
        assert torch.equal(ours[case].nan_to_num(7), numbers.nan_to_num(7)), case
