"""The tiles of every CPU: compiled for a CPU that has no more and looked at, and run where this
machine can. All compute the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.model.cpu.blocks.matrices import results

pytestmark = pytest.mark.slow  # three processes compile

# For each name of instructions: a CPU that has them, and which words of WORDS its tiles have.
CPUS = {
    "AVX512_VNNI": ("icelake-client", {"vpdpbusd", "zmm", "vcvtph2ps"}),
    "AVX_VNNI": ("alderlake", {"{vex}", "vpdpbusd", "ymm", "vcvtph2ps"}),
    "AVX2": ("haswell", {"vpmaddubsw", "vpsignb", "vpmaddwd", "ymm", "vcvtph2ps"}),
}
HASWELL = "+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe,+popcnt,+sse4.1,+sse4.2"


@pytest.mark.parametrize("name", CPUS)
def test_tiles_of_every_cpu(name: str, code: Path, tmp_path: Path) -> None:
    chip, words = CPUS[name]
    own = {"NUMBA_CACHE_DIR": str(tmp_path / "code")}
    if name == "AVX2":  # all of the code, not the tiles alone
        own |= {"NUMBA_CPU_NAME": chip, "NUMBA_CPU_FEATURES": HASWELL}
    module = "tests.model.cpu.blocks.tiles_of_cpu"
    done = subprocess.run(
        [sys.executable, "-m", module, name, chip, str(tmp_path)],
        env=os.environ | own, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert set(done.stdout.split()) == words
    if (tmp_path / "results.pt").exists():
        found = torch.load(tmp_path / "results.pt")
        expected = results(code)
        assert found.keys() == expected.keys() and len(found) > 0
        for case, numbers in expected.items():
            assert torch.equal(found[case].nan_to_num(7), numbers.nan_to_num(7)), case
