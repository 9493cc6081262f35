"""Heads on a decoder whose layers are on several devices or on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model import load_model
from model.errors import ModelError
from model.heads import BareModel, CausalLM, SequenceClassifier, TokenClassifier
from model.heads.heads import Head
from model.heads.lora import add_lora
from model.placement.device_map import Placement
from model.placement.placed_decoder import PlacedDecoder
from model.weights.checkpoint import Checkpoint
from model.weights.folder import find_model
from tests.conftest import STABLELM, STARCODER2, write_model
from tests.model.toys import CPU

PAD = 5
CONFIGS: dict[str, dict[str, Any]] = {
    "starcoder2": STARCODER2 | {"sliding_window": 8, "pad_token_id": PAD},
    "stablelm": STABLELM
    | {"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True}
    | {"pad_token_id": PAD},
}
MAPS: dict[str, dict[str, str]] = {
    "disk": {"": "cpu", "embed_tokens": "disk", "layers.0": "disk", "norm": "disk"},
    "two devices": {"": "cpu", "layers.1": "cpu:1"},
}
maps = pytest.mark.parametrize("device_map", MAPS.values(), ids=MAPS)
HEADS = (BareModel, CausalLM, SequenceClassifier, TokenClassifier)


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("toy"), request.param)


def both(head: type[Head], folder: Path, device_map: dict[str, str]) -> tuple[Head, Head]:
    """The same head whole and placed, with the same new weights."""
    torch.manual_seed(3)
    whole = head.load(folder, device="cpu")
    torch.manual_seed(3)
    placed = head.load(folder, device_map=device_map)
    assert isinstance(placed.decoder, PlacedDecoder)
    return whole, placed


def padded() -> dict[str, Tensor]:
    ids = torch.randint(10, 320, (3, 24), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    mask[2, :9] = 0
    return {"input_ids": ids.masked_fill(mask == 0, PAD), "attention_mask": mask}


def equal(a: Any, b: Any) -> None:
    if isinstance(a, tuple):
        for x, y in zip(a, b, strict=True):
            equal(x, y)
    else:
        assert torch.equal(a, b)


@maps
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_a_placed_head_is_whole(
    head: type[Head], device_map: dict[str, str], toy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, placed = both(head, toy, device_map)
    given = padded() | {"output_hidden_states": True, "output_attentions": True, "use_cache": True}
    a, b = whole(**given), placed(**given)
    fields = ["hidden_states", "attentions"]
    fields += ["last_hidden_state"] if head is BareModel else ["logits"]
    for field in fields:
        equal(getattr(a, field), getattr(b, field))
    new = torch.tensor([[20], [21], [22]])
    mask = torch.cat((given["attention_mask"], torch.ones_like(new)), dim=1)
    more = [m(new, attention_mask=mask, cache=o.cache) for m, o in ((whole, a), (placed, b))]
    equal(*(getattr(o, fields[-1]) for o in more))


@maps
def test_generation_is_that_of_the_whole(toy: Path, device_map: dict[str, str]) -> None:
    whole, placed = both(CausalLM, toy, device_map)
    assert isinstance(whole, CausalLM)
    assert isinstance(placed, CausalLM)
    for sampled in (False, True):
        given = padded() | {"max_new_tokens": 12, "do_sample": sampled, "seed": 4}
        equal(whole.generate(**given), placed.generate(**given))
    ids = list(range(10, 40))
    answers = [
        [(token.id, token.logprob) for token in m.generate(ids, max_new_tokens=16)]
        for m in (
            load_model(toy, device="cpu", dtype="float32"),
            load_model(toy, dtype="float32", device_map=device_map),
        )
    ]
    assert len(answers[0]) > 3
    assert answers[0] == answers[1]


@pytest.mark.parametrize("checkpointing", [False, True])
@maps
def test_what_is_in_memory_is_trained(
    device_map: dict[str, str], checkpointing: bool, toy: Path
) -> None:
    whole, placed = both(SequenceClassifier, toy, device_map)
    for m in (whole, placed):
        m.train()
        if checkpointing:
            m.gradient_checkpointing_enable()
        m(**padded(), labels=torch.tensor([0, 1, 1])).loss.backward()
    expected = dict(whole.named_parameters())
    trained = 0
    for name, parameter in placed.named_parameters():
        place = next(p for part, p in places_of(placed) if name.startswith(part))
        assert parameter.is_meta == (place == "disk")
        if place == "disk":
            assert not parameter.requires_grad
            continue
        torch.testing.assert_close(parameter.grad, expected[name].grad)
        trained += 1
    assert trained >= 10


def places_of(head: Head) -> list[tuple[str, Any]]:
    assert isinstance(head.decoder, PlacedDecoder)
    places = [(f"decoder.{part}.", place) for part, place in head.decoder.places.items()]
    return [*places, ("score.", "cpu")]


@maps
def test_what_is_saved_is_the_checkpoint(
    toy: Path, device_map: dict[str, str], tmp_path: Path
) -> None:
    _, placed = both(CausalLM, toy, device_map)
    placed.save(tmp_path / "saved")
    stored = load_file(toy / "model.safetensors")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == stored.keys()
    assert all(torch.equal(saved[name], stored[name]) for name in stored)


def test_what_is_on_the_disk_is_not_replaced(starcoder2_folder: Path) -> None:
    on_disk = CausalLM.load(starcoder2_folder, device_map={"": "cpu", "layers.1": "disk"})
    with pytest.raises(ModelError, match="device_map without them"):
        on_disk.resize_embeddings(400)
    with pytest.raises(ModelError, match="device_map without them"):
        add_lora(on_disk)
    on_devices = CausalLM.load(starcoder2_folder, device_map=MAPS["two devices"])
    on_devices.resize_embeddings(400)
    adapted = add_lora(on_devices)
    ids = torch.tensor([[10, 399, 20]])
    loss = adapted(ids, labels=ids).loss
    loss.backward()
    assert adapted(ids).logits.shape[-1] == 400
    assert any(p.grad is not None for n, p in adapted.named_parameters() if "lora_A" in n)


@pytest.mark.parametrize("kind", ["llm.int8", "nf4", "nf4-double"])
def test_matrices_of_few_bits_are_placed_too(kind: str, toy: Path) -> None:
    device_map = {"": "cpu", "layers.1": "cpu:1", "embed_tokens": "disk"}
    whole = TokenClassifier.load(toy, device="cpu", quantization=kind)
    placed = TokenClassifier.load(toy, device_map=device_map, quantization=kind)
    assert isinstance(placed.decoder, PlacedDecoder)
    with torch.no_grad():
        placed.score.weight.copy_(whole.score.weight)
    results = [m(**padded(), labels=torch.ones(3, 24).long()) for m in (whole, placed)]
    equal(*(result.logits for result in results))
    for result in results:
        result.loss.backward()
    equal(*(m.score.weight.grad for m in (whole, placed)))
    assert not any(p.requires_grad for p in placed.decoder.parameters())
    generated = [
        [token.id for token in m.generate(list(range(10, 30)), max_new_tokens=8)]
        for m in (
            load_model(toy, device="cpu", dtype="float32", quantization=kind),
            load_model(toy, dtype="float32", quantization=kind, device_map=device_map),
        )
    ]
    assert generated[0] == generated[1]


@pytest.mark.parametrize(("kind", "bits"), [("llm.int8", 8), ("nf4-double", 4)])
def test_auto_knows_how_small_few_bits_are(kind: str, bits: int, starcoder2_folder: Path) -> None:
    """Layers of floats do not fit into the same memory."""
    config = Checkpoint.open(find_model(starcoder2_folder)).config
    placement = Placement("auto", max_memory={"cpu": 90_000})
    floats = PlacedDecoder(config, torch.float32, placement)
    assert "disk" in floats.places.values()
    few = PlacedDecoder(config, torch.float32, placement, kind)
    assert few.only_device == CPU
    matrices = 2 * (32 * 64 + 32 * 32 + 2 * 32 * 64)
    saved = matrices * (32 - bits) // 8
    assert few.bytes_by_place() == {CPU: sum(floats.bytes_by_place().values()) - saved}


# A second device with memory of its own.


@pytest.mark.parametrize("attentions", [False, True])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_all_inputs_come_to_a_layers_device(
    config: dict[str, Any], attentions: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands for a GPU: a tensor that is left on the CPU beside one of its own is
    an error there too. It has no numbers, so that nothing can come back."""
    monkeypatch.setattr("model.placement.placed_decoder.main_device", lambda places: CPU)
    monkeypatch.setattr(PlacedDecoder, "_bring_back", lambda self, module, inputs, output: output)
    folder = write_model(tmp_path, config | {"tie_word_embeddings": False})
    device_map = {"": "meta", "embed_tokens": "cpu", "layers.0": "cpu"}
    placed = CausalLM.load(folder, device_map=device_map)
    given = padded() | {"output_attentions": attentions, "use_cache": True}
    result = placed(**given)
    assert result.logits.is_meta
    assert result.logits.shape == (3, 24, 320)
    assert result.cache is not None
    assert [keys.is_meta for keys in result.cache.keys] == [False, True]
    mask = torch.ones(3, 25, dtype=torch.long)
    assert placed(torch.ones(3, 1).long(), attention_mask=mask, cache=result.cache).logits.is_meta
    with torch.inference_mode():
        cache = placed.decoder.new_cache()
        for count in (20, 1):
            assert placed.decoder(torch.ones(1, count).long(), cache=cache).logits.is_meta
    assert cache.length == 21


# Bad arguments.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"device_map": "auto", "device": "cpu"}, "'cpu' too. Leave out"),
        ({"device_map": "auto", "quantization": "int8"}, "own int8 weights are whole on a CPU"),
        (
            {"device_map": {"": "disk"}, "quantization": "nf4"},
            r"layers\.0 is on disk. Place it on a device",
        ),
        ({"max_memory": {"cpu": 5}}, "go with a device_map"),
        ({"offload_folder": "x"}, "go with a device_map"),
        ({"device_map": "auto", "tensor_parallel": object()}, "either shared"),
    ],
)
def test_arguments_that_do_not_go_together(
    arguments: dict[str, Any], words: str, starcoder2_folder: Path
) -> None:
    with pytest.raises(ModelError, match=words):
        load_model(starcoder2_folder, **arguments)
    with pytest.raises(ModelError, match=words):
        CausalLM.load(starcoder2_folder, **arguments)


def test_a_device_without_room_is_named(
    starcoder2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.placement.spread.free_memory", lambda device: 50_000)
    with pytest.raises(ModelError, match=r"0.0 GB of the memory of cpu, .*on 'disk'"):
        CausalLM.load(starcoder2_folder, device_map={"": "cpu", "layers.1": "disk"})
    CausalLM.load(starcoder2_folder, device_map={"": "disk", "layers.1": "cpu"})

    def out_of_memory(*_: object) -> Tensor:
        raise RuntimeError("not enough memory: you tried to allocate 9 bytes\nmore")

    monkeypatch.setattr("model.placement.placed_decoder._empty", out_of_memory)
    with pytest.raises(ModelError, match=r"tried to allocate 9 bytes\).*on 'disk'"):
        CausalLM.load(starcoder2_folder, device_map={"": "disk", "layers.1": "cpu"})


def test_other_architectures_are_on_one_device(tmp_path: Path) -> None:
    folder = write_model(
        tmp_path, {"model_type": "gpt2", "vocab_size": 320, "n_embd": 16, "n_layer": 1, "n_head": 2}
    )
    with pytest.raises(ModelError, match="not of a native architecture"):
        load_model(folder, device_map="auto")
