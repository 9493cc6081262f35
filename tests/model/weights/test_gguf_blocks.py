"""A GGUF file's blocks in a decoder on a CPU: the weights are the file's, bit for bit, and what is
computed differs from floats by the rounding of activations alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from torch import Tensor, nn

from model import LoadedModel, load_model
from model.cpu.blocks.kernel import PRODUCT, round_activations
from model.cpu.blocks.layout import BY_NAME
from model.cpu.blocks.linear import BlockEmbedding, BlockLinear
from model.cpu.quantized_linear import interleaving
from model.decoder.factory import Embedding
from model.errors import ModelError
from model.footprint import rotary_bytes
from model.ggml import KINDS
from model.loading import needs_of
from model.weights.checkpoint import Checkpoint
from model.weights.folder import ModelFolder, find_model
from tests.conftest import write_model
from tests.model.export.exports import MODELS, exported, write_pieces
from tests.model.folders import logits, rewrite
from tests.model.toys import load
from tests.model.weights.gguf_files import HALVES, random_blocks, write_copy

Q8 = BY_NAME["q8_0"]
WIDE = {"hidden_size": 256, "intermediate_size": 256}
FAMILIES = [name for name in MODELS if "window" not in name]


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toys are treated as large models, on a machine that can compile. Products are torch's, also
    where another test has loaded machine code."""
    monkeypatch.setattr(PRODUCT, "_code", None)
    monkeypatch.setattr("model.loading.can_run", lambda folder: True)
    for module in ("model.loading", "model.cpu.blocks.linear"):
        monkeypatch.setattr(f"{module}.can_wait", lambda config: False)


def file_of(folder: Path, config: dict[str, Any], kind: str | None) -> Path:
    """A toy as a GGUF file, its matrices whose rows fill blocks of that kind as random blocks."""
    path = write_model(folder / "toy", config)
    digits = pre_tokenizers.Digits(individual_digits=True)
    write_pieces(path, digits, like_qwen2=config["model_type"].startswith("qwen2"))
    found = find_model(path)
    assert isinstance(found, ModelFolder)
    (whole,) = exported(found, folder, "gguf").glob("*.gguf")
    if kind is None:
        return whole
    blocks = {}
    for number, tensor in enumerate(gguf.GGUFReader(whole).tensors):
        shape = tuple(int(size) for size in reversed(tensor.shape))
        size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]
        if len(shape) == 2 and shape[1] % size == 0:
            blocks[tensor.name] = random_blocks(kind, shape, number)
    assert blocks
    return write_copy(whole, folder / "blocks.gguf", tensors=blocks, kind=kind)


def in_blocks(file: Path, quantization: str = "auto", **how: Any) -> LoadedModel:
    return load_model(file, "cpu", quantization=quantization, **how)


def matrices(m: LoadedModel) -> dict[str, BlockLinear]:
    found = dict(m.decoder.named_modules())
    return {name: module for name, module in found.items() if isinstance(module, BlockLinear)}


def check_weights(ours: LoadedModel, floats: LoadedModel, exact: str) -> None:
    """Ours are those of the decoder of floats, bit for bit in that format, and elsewhere rounded to
    8 bits; then they take their place."""
    order = interleaving(ours.decoder.config)[0]
    found = matrices(ours)
    head = [] if ours.decoder.config.tie_embeddings else ["head"]
    assert len(found) == 4 * len(ours.decoder.layers) + len(["embed_tokens", *head])
    for name, matrix in found.items():
        owner = floats.decoder.get_submodule(name.removesuffix(".linear"))
        assert isinstance(owner, nn.Linear | Embedding)
        expected = owner.weight[order] if name.endswith(".qkv") else owner.weight
        weights = matrix.floats()
        for part in matrix.parts:
            rows = slice(part.first, part.first + part.rows)
            if part.format.name == exact:
                assert torch.equal(weights[rows], expected[rows]), name
            else:
                assert part.format == Q8
                largest = expected[rows].abs().amax(-1, keepdim=True)
                assert ((weights[rows] - expected[rows]).abs() < 0.51 * largest / 127).all(), name
        back = torch.argsort(order) if name.endswith(".qkv") else slice(None)
        owner.weight.data = weights[back]


def rounding(floats: LoadedModel) -> None:
    """Lets a decoder of floats round what goes into its matrices, as ours does."""

    def round_input(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        flat = inputs[0].reshape(-1, inputs[0].shape[-1])
        return round_activations(flat)[:, : flat.shape[1]].view_as(inputs[0])

    decoder = floats.decoder
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(round_input)
    embeddings = decoder.embed_tokens
    plain = embeddings.as_head
    embeddings.as_head = lambda x: plain(round_input(embeddings, (x,)))  # type: ignore[method-assign]


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def check_logits(ours: LoadedModel, floats: LoadedModel) -> None:
    """The weights are equal. 8 bits with a scale a block lose 0.6% of a product (127 steps to the
    block's largest of 32, which is about twice the usual size); a toy has nine of them in a row."""
    found = logits(ours)
    assert distance(found, logits(floats)) < 0.06
    rounding(floats)
    # What is left comes of numbers between two steps, of which few go another way.
    assert distance(found, logits(floats)) < 0.005


@pytest.mark.parametrize("kind", [kind for kind in HALVES if kind.lower() in KINDS])
def test_blocks_of_every_kind_stay_as_they_are(kind: str, tmp_path: Path) -> None:
    file = file_of(tmp_path, MODELS["qwen2"] | WIDE, kind)
    ours = in_blocks(file)
    for matrix in matrices(ours).values():
        assert {part.format.name for part in matrix.parts} == {kind.lower()}
    assert ours.precision.startswith("the file's own blocks, which need")
    floats = load(file)
    check_weights(ours, floats, kind.lower())
    check_logits(ours, floats)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["Q5_0", None])
def test_every_family_computes_what_its_floats_do(
    family: str, kind: str | None, tmp_path: Path
) -> None:
    """Also where rows are in another order, or fill no blocks: those are rounded to 8 bits."""
    file = file_of(tmp_path, MODELS[family], kind)
    ours = in_blocks(file) if kind else in_blocks(file, "int8")
    floats = load(file)
    check_weights(ours, floats, str(kind).lower())
    check_logits(ours, floats)


def test_what_has_no_format_here_is_rounded_to_8_bits(tmp_path: Path) -> None:
    file = file_of(tmp_path, MODELS["qwen2"] | WIDE, "Q2_K")
    embeddings = {"token_embd.weight": random_blocks("Q6_K", (320, 256), 0)}
    mixed = write_mixed(file, tmp_path / "mixed.gguf", embeddings, "Q6_K")
    ours = in_blocks(mixed)
    assert [part.format.name for part in matrices(ours)["embed_tokens.linear"].parts] == ["q6_k"]
    assert [part.format.name for part in matrices(ours)["head"].parts] == ["q8_0"]
    floats = load(mixed)
    check_weights(ours, floats, "q6_k")
    check_logits(ours, floats)


def write_mixed(source: Path, target: Path, blocks: dict[str, Any], kind: str) -> Path:
    """The file with some matrices in place of its own, which are of another kind."""
    raw = {t.name: (np.array(t.data), t.tensor_type) for t in gguf.GGUFReader(source).tensors}
    raw |= {name: (data, gguf.GGMLQuantizationType[kind]) for name, data in blocks.items()}
    return write_copy(source, target, tensors=raw)


@pytest.mark.parametrize(
    ("quantization", "layers", "embeddings"), [("int8", "q8_0", "q8_0"), ("int4", "q4_0", "q8_0")]
)
def test_fewer_bits_that_are_asked_for(
    quantization: str, layers: str, embeddings: str, tmp_path: Path
) -> None:
    file = file_of(tmp_path, MODELS["qwen2"] | WIDE, "Q6_K")
    ours = in_blocks(file, quantization)
    for name, matrix in matrices(ours).items():
        inner = name.startswith("layers.") and not name.endswith(".qkv")  # which keep 8 bits
        expected = layers if inner else embeddings
        assert {part.format.name for part in matrix.parts} == {expected}, name
    assert ours.precision == f"{quantization} as asked for"
    if quantization == "int8":
        floats = load(file)
        check_weights(ours, floats, "")
        check_logits(ours, floats)


def test_a_folder_has_8_bits_unless_others_are_asked_for(tmp_path: Path) -> None:
    folder = write_model(tmp_path, MODELS["qwen2"])
    ours = in_blocks(folder)
    assert ours.precision.startswith("int8, which need")
    assert isinstance(ours.decoder.embed_tokens, BlockEmbedding)
    assert distance(logits(ours), logits(load(folder))) < 0.05


@pytest.mark.parametrize("kind", ["Q5_0", "Q6_K"])
@pytest.mark.parametrize("quantization", ["auto", "int8", "int4"])
def test_the_memory_that_is_counted_is_the_memory_that_is_held(
    kind: str, quantization: str, tmp_path: Path
) -> None:
    config = MODELS["qwen2"] | {"hidden_size": 256, "intermediate_size": 96}
    file = file_of(tmp_path, config, kind)
    ours = in_blocks(file, quantization)
    held = sum(part.panels.nbytes for each in matrices(ours).values() for part in each.parts)
    held += sum(parameter.nbytes for parameter in ours.decoder.parameters())
    checkpoint = Checkpoint.open(find_model(file))
    needs = needs_of(checkpoint.folder, checkpoint, torch.float32, in_blocks=True)
    rotary = rotary_bytes(ours.decoder.config, 4)
    counted = needs.nbytes["blocks" if quantization == "auto" else quantization]
    assert counted == held + rotary


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q6_K"])
@pytest.mark.parametrize("quantization", ["auto", "none"])
def test_a_scale_that_is_no_number_is_refused(kind: str, quantization: str, tmp_path: Path) -> None:
    file = file_of(tmp_path, MODELS["qwen2"] | WIDE, kind)
    tensor = next(t for t in gguf.GGUFReader(file).tensors if t.name == "blk.1.ffn_down.weight")
    places, block_bytes = HALVES[kind]
    raw = bytearray(file.read_bytes())
    at = tensor.data_offset + 7 * block_bytes + max(places)
    raw[at : at + 2] = np.float16(np.nan).tobytes()
    file.write_bytes(raw)
    with pytest.raises(ModelError, match=r"mlp.down_proj.weight holds numbers .* Download"):
        in_blocks(file, quantization)


@pytest.mark.parametrize("kind", ["Q5_0", "Q4_K", "Q6_K"])
def test_a_prepared_file_holds_the_same_bits(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_of(tmp_path, MODELS["qwen3"] | WIDE, kind)
    first = in_blocks(file, prepared=tmp_path)
    assert first.prepared is not None and not first.prepared.restored
    first.prepared.write(first.decoder, lambda: None)

    def fill(*arguments: object) -> None:
        raise AssertionError("it reads the model's own file")

    monkeypatch.setattr(Checkpoint, "fill", fill)
    second = in_blocks(file, prepared=tmp_path)
    assert second.prepared is not None and second.prepared.restored
    for name, matrix in matrices(first).items():
        for one, other in zip(matrix.parts, matrices(second)[name].parts, strict=True):
            assert one[:3] == other[:3]
            assert torch.equal(one.panels, other.panels)
    assert torch.equal(logits(first), logits(second))
    with pytest.raises(AssertionError):  # other formats are another file
        in_blocks(file, "int4", prepared=tmp_path)


def test_names_that_do_not_make_up_a_matrix_are_no_prepared_file() -> None:
    matrix = BlockLinear(256, 96, False, Q8)
    assert matrix.specs_of(["0.q4_k", "64.q6_k", "bias"]).keys() == {"0.q4_k", "64.q6_k"}
    for names in ([], ["32.q8_0"], ["0.q8_0", "0.q4_0"], ["0.q8_0", "96.q8_0"]):
        with pytest.raises(ValueError, match="rows of"):
            matrix.specs_of(names)
    with pytest.raises(ValueError, match="rows of"):
        BlockLinear(96, 96, False, Q8).specs_of(["0.q6_k"])


def test_a_copy_of_the_embeddings_is_known_in_blocks(tmp_path: Path) -> None:
    folder = write_model(tmp_path, MODELS["starcoder2"])

    def copy(weights: dict[str, Tensor], more: float = 0.0) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        weights["lm_head.weight"][7, 3] += more

    rewrite(folder, copy)
    assert isinstance(in_blocks(folder).decoder.embed_tokens, BlockEmbedding)
    rewrite(folder, lambda weights: copy(weights, 0.5))
    with pytest.raises(ModelError, match="differs from the embeddings"):
        in_blocks(folder)
