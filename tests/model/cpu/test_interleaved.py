"""The product with interleaved weights: exact with every CPU's instructions, as machine code and in
torch, each row as it is alone."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import LoadedModel, load_model
from model.cpu import code_cache, compiled_step, kernel_choice, kernels
from model.cpu.compiled_step import prefill_interleaved, upgrade
from model.cpu.interleaved.kernel import INTERLEAVED, Interleaved
from model.cpu.interleaved.layout import OUTPUTS
from model.cpu.kernel_choice import Plan, make_plan
from model.cpu.measurements import threads
from model.cpu.quantized_linear import Int8Embedding, Int8Linear
from tests.conftest import STARCODER2, write_model
from tests.model.cpu.test_quantized_linear import distance
from tests.model.families.test_parity import LENGTH, logits_of, random_ids
from tests.model.toys import load

pytestmark = pytest.mark.xdist_group("compiled")  # one process compiles, for all of them

SHAPES = [(1, 1), (31, 7), (32, 8), (70, 37), (33, 2051), (64, 5000)]
ROWS = [1, 2, 3, 11, 12, 13, 30]


@pytest.fixture(scope="module")
def fast(code: Path) -> Interleaved:
    kernel = Interleaved()
    kernel.load(code)
    if not kernel.ready:
        pytest.skip("not on this CPU")
    return kernel


@pytest.fixture(params=["machine code", "torch"])
def kernel(request: pytest.FixtureRequest, fast: Interleaved) -> Interleaved:
    return fast if request.param == "machine code" else Interleaved()


def extreme(out: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of all sizes, whole rows of the largest among them; and scales."""
    generator = torch.Generator().manual_seed(out * width)
    weights = torch.randint(-127, 128, (out, width), generator=generator, dtype=torch.int8)
    weights[::5] = 127
    weights[3::5] = -127
    return weights, torch.rand(out, generator=generator) + 0.01


def activations(rows: int, width: int) -> torch.Tensor:
    """Rows of all sizes, and such as round to nothing but 127, -127 or 0."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, width, generator=generator) * torch.logspace(-6, 6, rows)[:, None]
    x[1::4] = 3.5
    x[2::4] = -3.5
    x[3::8] = 0
    return x


def reference(x: torch.Tensor, weights: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """With whole numbers in float64, which has room for all sums."""
    most = x.abs().amax(-1, True).clamp_min(kernels.SMALLEST).numpy()
    rounded = np.rint(x.numpy() * (np.float32(127) / most)).astype(np.float64)
    totals = (rounded @ weights.double().numpy().T).astype(np.float32)
    return torch.from_numpy(totals * (scale.numpy() * (most * np.float32(1 / 127))))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_product_is_exact(shape: tuple[int, int], kernel: Interleaved) -> None:
    weights, scale = extreme(*shape)
    packed = kernel.pack(weights, scale)
    for rows in ROWS:
        x = activations(rows, shape[1])
        assert torch.equal(kernel.product(x, packed)[0], reference(x, weights, scale))


def test_the_widest_sums_fit(kernel: Interleaved) -> None:
    weights = torch.full((2, 65536), 127, dtype=torch.int8)
    weights[1] = -127
    scale = torch.ones(2)
    x = torch.ones(1, 65536)
    packed = kernel.pack(weights, scale)
    assert torch.equal(kernel.product(x, packed)[0], reference(x, weights, scale))
    with pytest.raises(RuntimeError, match="overflow"):
        kernel.pack(torch.ones(1, 70000, dtype=torch.int8), torch.ones(1))


def test_other_rows_and_threads_change_no_bit(kernel: Interleaved) -> None:
    """Of many blocks of activations, and of more pieces than threads."""
    weights, scale = extreme(200, 4999)
    packed = kernel.pack(weights, scale)
    x = activations(100, 4999)
    expected = reference(x, weights, scale)
    for count in (1, 2, 3):
        with threads(count):
            assert torch.equal(kernel.product(x, packed)[0], expected)
            for first, last in ((0, 1), (1, 3), (3, 40), (40, 99), (99, 100)):
                alone = kernel.product(x[first:last], packed)[0]
                assert torch.equal(alone, expected[first:last])


def test_callers_share_the_helpers(fast: Interleaved) -> None:
    """One at a time has them, and a job may begin while a helper is late for the one before."""
    weights, scale = extreme(640, 900)
    packed = fast.pack(weights, scale)
    inputs = [activations(rows, 900) for rows in (1, 2, 14)]
    expected = [reference(x, weights, scale) for x in inputs]
    wrong = []

    def multiply() -> None:
        for n in range(150):
            if not torch.equal(fast.product(inputs[n % 3], packed)[0], expected[n % 3]):
                wrong.append(n)

    with threads(3):
        callers = [threading.Thread(target=multiply) for _ in range(3)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert wrong == []


@pytest.mark.skipif(sys.platform != "linux", reason="no helpers there")
def test_helpers_sleep_until_they_are_wanted(fast: Interleaved) -> None:
    weights, scale = extreme(4096, 2048)
    packed = fast.pack(weights, scale)
    x = activations(64, 2048)

    def others_time() -> float:
        """Seconds that the threads of this process but this one have run."""
        return time.process_time() - time.thread_time()

    with threads(2):
        fast.product(x, packed)
        before = others_time()
        until = time.monotonic() + 20
        while others_time() - before < 0.05 and time.monotonic() < until:
            fast.product(x, packed)
        assert others_time() - before >= 0.05
    time.sleep(0.1)
    before = others_time()
    time.sleep(0.5)
    assert others_time() - before < 0.05


def test_numbers_that_are_none_are_passed_on(kernel: Interleaved) -> None:
    weights, scale = extreme(70, 37)
    x = activations(3, 37)
    x[0, 5] = float("nan")
    x[2, 36] = float("-inf")
    y = kernel.product(x, kernel.pack(weights, scale))[0]
    assert y[0].isnan().all()
    assert y[2].isnan().all()
    assert torch.equal(y[1:2], reference(x[1:2], weights, scale))


def test_views_and_wrong_sizes(fast: Interleaved) -> None:
    weights, scale = extreme(70, 37)
    packed = fast.pack(weights, scale)
    wide = activations(6, 74)
    x = wide[::2, 1::2]
    assert torch.equal(fast.product(x, packed)[0], reference(x.contiguous(), weights, scale))
    for wrong in (torch.ones(1, 41), torch.ones(1, 32), torch.ones(1, 37, dtype=torch.float64)):
        with pytest.raises(ValueError, match="do not go with"):
            fast.product(wrong, packed)


def test_the_packed_form_is_plain_and_its_rows_can_be_read() -> None:
    weights, scale = extreme(70, 37)
    packed = INTERLEAVED.pack(weights, scale)
    assert INTERLEAVED.mappable
    assert all(type(part) is torch.Tensor and part.is_contiguous() for part in packed)
    ids = torch.tensor([[69, 0], [33, 33]])
    assert torch.equal(INTERLEAVED.rows(packed, ids)[..., :37], weights[ids])


# What a CPU has that is known for its instructions, and which of them a tile has to use there.
CPUS = {
    "AVX512_VNNI": ("icelake-client", {"vpdpbusd", "zmm"}, set()),
    "AVX_VNNI": ("alderlake", {"{vex}", "vpdpbusd", "ymm"}, {"zmm"}),
    "AVX2": ("haswell", {"vpmaddubsw", "vpsignb", "vpmaddwd", "ymm"}, {"vpdpbusd", "zmm"}),
}


@pytest.mark.parametrize("name", CPUS)
def test_tiles_of_every_cpu(name: str, code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run where this machine can, compiled for the CPU that has no more, and looked at."""
    import numba
    from llvmlite import binding

    from model.cpu.interleaved import intrinsics

    cpu = getattr(intrinsics, name)
    monkeypatch.setattr(intrinsics, "CHOSEN", cpu)
    tile = intrinsics.tile

    @numba.njit
    def run(
        rows: Any, weights: Any, x: Any, quads: Any, sums: Any, scale: Any, steps: Any, out: Any,
        stride: Any,
    ) -> None:  # fmt: skip
        tile(rows, weights, x, quads, sums, scale, steps, out, stride)

    kinds = (numba.types.int64,) * 9
    run.compile(kinds)
    module = binding.parse_assembly(run.inspect_llvm(kinds))
    chip, wanted, absent = CPUS[name]
    target = binding.Target.from_triple("x86_64-unknown-linux-gnu")
    text = target.create_target_machine(cpu=chip).emit_assembly(module)
    assert {word for word in wanted | absent if word in text} == wanted
    here = intrinsics.instructions_of(binding.get_host_cpu_features().flatten())
    if here == intrinsics.AVX512_VNNI or cpu == here or cpu == intrinsics.AVX2:
        run_tiles(run, cpu)


def run_tiles(run: Any, cpu: Any) -> None:
    weights, scale = extreme(OUTPUTS, 44)
    panels, scale, sums = INTERLEAVED.pack(weights, scale)
    for rows in range(1, cpu.max_rows + 1):
        x = torch.randint(-127, 128, (rows, 44), dtype=torch.int8)
        x[0] = 127
        steps = torch.rand(rows)
        expected = (x.double() @ weights.double().T).float() * (scale * steps[:, None])
        if cpu.unsigned:
            x = (x.int() + 128).to(torch.uint8)
        fours = x.view(rows, 11, 4).transpose(0, 1).contiguous()
        out = torch.full((rows, OUTPUTS + 3), 7.0)
        data = [t.data_ptr() for t in (panels, fours, sums, scale, steps, out)]
        run(rows, *data[:2], 11, *data[2:], 4 * (OUTPUTS + 3))
        assert torch.equal(out[:, :OUTPUTS], expected)
        assert (out[:, OUTPUTS:] == 7.0).all()


def test_the_instructions_are_those_of_the_cpu(code: Path) -> None:
    from model.cpu.interleaved.intrinsics import AVX2, AVX512_VNNI, AVX_VNNI, instructions_of

    assert instructions_of("+avx2,+avx512vnni,+avx512bw,+avx512vl,+avxvnni") == AVX512_VNNI
    assert instructions_of("+avx2,-avx512vnni,+avxvnni") == AVX_VNNI
    assert instructions_of("+avx2,-avx512vnni,-avxvnni") == AVX2
    assert instructions_of("+sse4.2") is None
    assert instructions_of("") is None


@pytest.fixture
def forgetful(fast: Interleaved, monkeypatch: pytest.MonkeyPatch) -> Interleaved:
    """The kernel of all models, as it is before there is machine code."""
    for attribute in ("_multiply", "_pool"):
        monkeypatch.setattr(INTERLEAVED, attribute, getattr(Interleaved(), attribute))
    return INTERLEAVED


def load_large(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    monkeypatch.setattr("model.loading.can_run", lambda config, folder: False)
    monkeypatch.setattr(kernel_choice, "SMALL_BYTES", 0)
    return load_model(folder, "cpu", quantization="int8", measured=tmp_path)


def test_a_large_model_has_one_form_before_and_after_the_code_is_made(
    forgetful: Interleaved, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "model", STARCODER2)
    m = load_large(folder, tmp_path, monkeypatch)
    linear = m.decoder.layers[0].attention.qkv
    assert isinstance(linear, Int8Linear)
    assert linear.plan == Plan("interleaved", "interleaved", 16)
    assert isinstance(m.decoder.embed_tokens, Int8Embedding)
    for kept in (linear, m.decoder.embed_tokens.linear):  # in no other form
        assert not kept.matrix.numel()
    assert not forgetful.ready
    ids = random_ids(LENGTH)
    before = logits_of(m, ids)
    assert distance(before, logits_of(load(folder), ids)) < 0.12
    monkeypatch.setattr(code_cache, "code_folder", lambda folder: code)
    monkeypatch.setattr(code_cache, "is_intact", lambda folder: True)
    assert list(upgrade(m.decoder, tmp_path)) == [None]
    assert forgetful.ready
    assert torch.equal(logits_of(m, ids), before)
    assert list(upgrade(m.decoder, tmp_path)) == []


def test_machine_code_that_is_there_is_measured_beside_the_other_kernels(
    forgetful: Interleaved, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_choice, "SMALL_BYTES", 0)
    monkeypatch.setattr(code_cache, "code_folder", lambda folder: code)
    monkeypatch.setattr(code_cache, "is_intact", lambda folder: True)
    monkeypatch.setattr("model.cpu.measurements.is_quiet", lambda: True)
    measured = []

    def product_us(shape: object, name: str, counts: tuple[int, ...]) -> dict[int, float]:
        measured.append(name)
        return dict.fromkeys(counts, 1.0 if name == "interleaved" else 2.0)

    monkeypatch.setattr(kernel_choice, "product_us", product_us)
    plan = make_plan({(96, 64): 1}, tmp_path)
    assert plan.few == plan.many == "interleaved"
    assert set(measured) == set(kernels.kernels()) > {"interleaved"}


def test_a_cache_folder_that_cannot_be_written_to_means_other_kernels(
    forgetful: Interleaved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_choice, "SMALL_BYTES", 0)
    (tmp_path / "compiled").write_text("")
    assert "interleaved" not in make_plan({(96, 64): 1}, tmp_path).names


@pytest.mark.parametrize("better", [True, False])
def test_a_small_model_prefills_with_it_where_that_is_faster(
    better: bool, fast: Interleaved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = load_model(write_model(tmp_path / "model", STARCODER2), "cpu", quantization="int8")
    plan = compiled_step.plan_of(m.decoder)
    assert plan is not None
    monkeypatch.setattr(compiled_step, "INTERLEAVED", fast)
    chosen = "interleaved" if better else plan.many
    monkeypatch.setattr(
        compiled_step, "make_plan", lambda shapes, folder: Plan(chosen, plan.few, 16, small=True)
    )
    prefill_interleaved(m.decoder, plan, tmp_path)
    used: list[int] = []
    monkeypatch.setattr(
        Interleaved,
        "product",
        lambda self, x, packed: used.append(len(x)) or (self._slow_product(x, packed), None),
    )
    logits_of(m, random_ids(LENGTH))
    assert bool(used) == better
