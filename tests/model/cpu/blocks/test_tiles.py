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
# Signed numbers alone, as Arm's dot product takes them.
SIGNED = cpus.PORTABLE._replace(signed=True)
# What is compared with this CPU's own tiles, compiled for a CPU that has no more.
PLAYED = {cpus.AVX2: "haswell", cpus.PORTABLE: "ivybridge", SIGNED: "ivybridge"}


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


@pytest.mark.parametrize(
    "cpu",
    [cpus.AVX512_VNNI, cpus.AVX_VNNI, *PLAYED],
    ids=lambda cpu: f"{cpu.name}{' signed' * cpu.signed}",
)
def test_tiles_of_all_cpus_compute_the_same(cpu: cpus.Instructions, code: Path) -> None:
    """Compiled for what this CPU has: AVX-VNNI's are instructions of AVX512-VNNI, too."""
    if not binding.get_process_triple().startswith("x86_64"):
        pytest.skip("not on this CPU")
    expected = BlockProduct()
    expected.load(code)
    name, features = cpus.chip()
    if cpu in PLAYED:
        name, features = PLAYED[cpu], ""
    elif cpus.instructions_of(features) not in (cpu, cpus.AVX512_VNNI):
        pytest.skip("not on this CPU")
    target = target_of(Chip(name, X86, set(), set()), features)
    played = BlockProduct()
    played.load(code)
    played.use(panels.link(cpu, panels.compile_panels(cpu, target), target))
    ours = results(played)
    for case, numbers in results(expected).items():
        assert torch.equal(ours[case].nan_to_num(7), numbers.nan_to_num(7)), case
