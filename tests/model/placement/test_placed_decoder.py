"""A decoder on several devices or partly on the disk gives what the whole one gives.

No test here has a GPU. The device "cpu:1" stands for a second one: it is another device than "cpu"
to maps and caches, and tensors of both can be mixed, so a tensor that is left on the wrong one is
not noticed.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model import load_model
from model.decoder.decoder import Decoder
from model.decoder.kv_cache import KVCache
from model.errors import ModelError
from model.placement.device_map import parts_of
from model.placement.placed_decoder import PlacedDecoder
from model.placement.split_cache import SplitCache
from tests.conftest import GPT_BIGCODE, STABLELM, STARCODER2, write_model
from tests.model.toys import CPU, load, toy_config

CONFIGS: dict[str, dict[str, Any]] = {
    "starcoder2": STARCODER2 | {"sliding_window": 8},
    "starcoder2, untied": STARCODER2 | {"tie_word_embeddings": False},
    "stablelm": STABLELM,
    "stablelm, all switches": STABLELM
    | {"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True},
    "learned positions": GPT_BIGCODE,
}
MAPS: dict[str, dict[str, str]] = {
    "all on the disk": {"": "disk"},
    "a layer on the disk": {"": "cpu", "layers.1": "disk"},
    "all but a layer on the disk": {"": "disk", "layers.0": "cpu"},
    "embeddings on the disk": {"embed_tokens": "disk", "layers": "cpu", "norm": "cpu", "": "cpu"},
    "two devices": {"": "cpu", "layers.1": "cpu:1"},
}


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS)
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("toy"), request.param)


def place(folder: Path, device_map: Any, offload: Path | None = None, **more: Any) -> Decoder:
    model = load_model(
        folder, dtype="float32", device_map=device_map, offload_folder=offload, **more
    )
    return model.decoder


def logits_of(decoder: Decoder) -> list[torch.Tensor]:
    """Of a prefill in two pieces, of a token after it, and of all without a cache."""
    ids = torch.randint(10, 320, (1, 24), generator=torch.Generator().manual_seed(1))
    pieces = ids.split((15, 8, 1), dim=1)
    with torch.inference_mode():
        cache = decoder.new_cache()
        return [*(decoder(piece, cache=cache).logits for piece in pieces), decoder(ids).logits]


@pytest.mark.parametrize("device_map", MAPS.values(), ids=MAPS)
def test_placed_is_whole(toy: Path, device_map: dict[str, str], tmp_path: Path) -> None:
    whole = logits_of(load(toy).decoder)
    placed = place(toy, device_map, tmp_path)
    for _ in range(2):
        for ours, theirs in zip(logits_of(placed), whole, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_kept_on_the_disk(dtype: str, starcoder2_folder: Path) -> None:
    whole = load_model(starcoder2_folder, device="cpu", dtype=dtype)
    placed = load_model(starcoder2_folder, dtype=dtype, device_map={"": "disk", "norm": "cpu"})
    assert placed.decoder.dtype == whole.decoder.dtype == getattr(torch, dtype)
    for ours, theirs in zip(logits_of(placed.decoder), logits_of(whole.decoder), strict=True):
        assert torch.equal(ours, theirs)


def test_weights_in_the_cpus_memory_come_to_a_gpu_for_their_layer(
    starcoder2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU computes them here too."""
    whole = logits_of(load(starcoder2_folder).decoder)
    monkeypatch.setattr(PlacedDecoder, "_is_offloaded", lambda self, place: place == CPU)
    placed = place(starcoder2_folder, {"": "cpu", "layers.0": "cpu:1"})
    assert on_meta(placed) == {
        name for name, _ in placed.named_parameters() if not name.startswith("layers.0")
    }
    for ours, theirs in zip(logits_of(placed), whole, strict=True):
        assert torch.equal(ours, theirs)


def test_weights_on_the_disk_are_in_memory_only_while_their_layer_runs(
    starcoder2_folder: Path, tmp_path: Path
) -> None:
    decoder = place(starcoder2_folder, {"": "cpu", "layers.1": "disk"}, tmp_path / "new")
    on_disk = {f"layers.1.{name}" for name, _ in decoder.layers[1].named_parameters()}
    assert len(on_disk) == 12
    seen: list[set[str]] = []
    see_meta_weights(decoder, seen)
    logits_of(decoder)
    assert seen == [on_disk, set()] * 4
    assert on_meta(decoder) == on_disk
    (folder,) = (tmp_path / "new").iterdir()
    files = {path.name: path for path in folder.iterdir()}
    assert files.keys() == on_disk
    up = load(starcoder2_folder).decoder.get_parameter("layers.1.mlp.up.weight")
    stored = torch.from_file(str(files["layers.1.mlp.up.weight"]), size=up.numel())
    assert torch.equal(stored.view(up.shape), up)
    if sys.platform != "win32":
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o600}
    del decoder
    gc.collect()
    assert not folder.exists()


def see_meta_weights(decoder: Decoder, seen: list[set[str]]) -> None:
    """Notes while each layer runs which weights are on meta."""
    for layer in decoder.layers:
        layer.mlp.register_forward_hook(lambda *_: seen.append(on_meta(decoder)))


def on_meta(decoder: Decoder) -> set[str]:
    return {name for name, parameter in decoder.named_parameters() if parameter.is_meta}


def test_the_default_folder_is_a_temporary_one(
    starcoder2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # read anew
    decoder = place(starcoder2_folder, {"": "disk"})
    assert len(list(tmp_path.iterdir())) == 1
    del decoder
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_auto_uses_the_memory_it_may_then_the_disk(toy: Path, tmp_path: Path) -> None:
    whole = load(toy).decoder
    first, layer, *others = (
        sum(p.nbytes for p in whole.get_submodule(part).parameters()) for part in parts_of(whole)
    )
    if whole.config.rope is None:
        first += whole.embed_positions.nbytes
    # It keeps room for the largest part, to read those in that are on the disk.
    limit = first + layer + max(layer, *others) + 100
    placed = place(toy, "auto", tmp_path, max_memory={"cpu": limit})
    assert isinstance(placed, PlacedDecoder)
    assert [placed.places[part] for part in ("embed_tokens", "layers.0", "layers.1")] == [
        CPU,
        CPU,
        "disk",
    ]
    for ours, theirs in zip(logits_of(placed), logits_of(whole), strict=True):
        assert torch.equal(ours, theirs)


def test_auto_is_one_device_where_all_fits(starcoder2_folder: Path) -> None:
    whole = place(starcoder2_folder, "auto")
    assert not isinstance(whole, PlacedDecoder)
    assert whole.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_each_layers_cache_is_on_its_device(starcoder2_folder: Path) -> None:
    """On a device that has no memory, so that a part on another one would be an error."""
    decoder = place(starcoder2_folder, {"": "cpu", "layers.1": "cpu:1"})
    assert isinstance(decoder, PlacedDecoder)
    decoder.places = {**decoder.places, "layers.1": torch.device("meta")}
    cache = decoder.new_cache(4)
    assert isinstance(cache, SplitCache)
    assert [layer.device.type for layer in cache.layers] == ["cpu", "meta"]
    assert cache.device == CPU
    decoder.places = {**decoder.places, "layers.0": torch.device("meta")}
    assert type(decoder.new_cache()) is KVCache


def test_a_placed_decoder_is_not_moved(starcoder2_folder: Path) -> None:
    decoder = place(starcoder2_folder, {"": "cpu", "layers.1": "disk"})
    moves: list[Callable[[], Any]] = [decoder.half, lambda: decoder.to("cpu")]
    for move in moves:
        with pytest.raises(RuntimeError, match="device_map"):
            move()


# Split caches.


def test_a_split_cache_is_a_cache() -> None:
    """The same verbs, in any order, give the same on a split cache and on one that is not."""
    config = toy_config(2048)
    devices = [CPU, torch.device("cpu:1")]
    split: KVCache = SplitCache(config, dtype=torch.float32, devices=devices)
    plain = KVCache(config, dtype=torch.float32, device=CPU)
    generator = torch.Generator().manual_seed(0)
    for verb in torch.randint(5, (60,), generator=generator).tolist():
        count = int(torch.randint(1, 200, (1,), generator=generator))
        shorter = max(0, plain.length - count)
        if verb < 2:
            count = min(count, config.max_positions - plain.length)
            new = torch.randn(2, 2, 1, count, config.head_dim, generator=generator)
            assert torch.equal(extend(plain, new, shorter), extend(split, new, shorter))
        elif verb == 2:
            assert plain.trim(shorter) == split.trim(shorter)
        elif verb == 3:
            plain.shrink()
            split.shrink()
        else:
            plain, split = plain.fork(shorter, count), split.fork(shorter, count)
        assert (plain.length, plain.capacity) == (split.length, split.capacity)
        assert (plain.nbytes, plain.spare_bytes) == (split.nbytes, split.spare_bytes)
        assert torch.equal(content(plain), content(split))
    block = torch.randn(2, 2, 1, 50, config.head_dim)
    for cache in (plain, split):
        cache.trim(30)
        cache.extend(block)
        assert torch.equal(content(cache)[:, :, :, -50:], block)
    assert torch.equal(content(plain), content(split))


def extend(cache: KVCache, new: torch.Tensor, first: int) -> torch.Tensor:
    """Appends keys and values (2, layers, kv_heads, n, D), as a pass does; returns what each layer
    sees from position `first` on."""
    cache.reserve(cache.length + new.shape[3])
    seen = [torch.cat(cache.append(i, *new[:, i], first)) for i in range(new.shape[1])]
    cache.commit(new.shape[3])
    return torch.stack(seen)


def content(cache: KVCache) -> torch.Tensor:
    """(2, layers, kv_heads, length, D)."""
    config = cache.config
    shape = (2, config.num_layers, config.num_kv_heads, cache.length, config.head_dim)
    block = torch.zeros(shape)
    cache.copy_out(0, block)
    return block


# Bad maps.


@pytest.mark.parametrize(
    ("device_map", "words"),
    [
        ("balanced", ["balanced", "'auto'"]),
        ({"layers": "cpu"}, ["no place for embed_tokens", "''"]),
        ({"": "cpu", "layers.0": "gpu9"}, ["gpu9", "'disk'"]),
        ({"": "cpu", "layers.0": None}, ["None", "'disk'"]),
        ({"": "cpu", "layers.2": "disk"}, ["layers.2", "no part", "layers.1"]),
        ({"": "cpu", "layers.0.mlp": "disk"}, ["layers.0.mlp", "a layer stays whole"]),
        ({"": "cpu", "model.norm": "disk"}, ["model.norm", "embed_tokens"]),
    ],
)
def test_bad_maps_are_refused(
    device_map: Any, words: list[str], starcoder2_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as caught:
        place(starcoder2_folder, device_map, tmp_path)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
@pytest.mark.parametrize("device", [0, "cuda:1"])
def test_a_gpu_that_is_missing_is_named(device: int | str, starcoder2_folder: Path) -> None:
    with pytest.raises(ModelError, match=f"{device!r}, which cannot be used"):
        place(starcoder2_folder, {"": device})


@pytest.mark.parametrize("limits", [{"cpu": "much"}, {"tpu": 5}, {0.5: "1GB"}])
def test_bad_limits_are_refused(limits: dict[Any, Any], starcoder2_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"max_memory .* cannot be used"):
        place(starcoder2_folder, "auto", max_memory=limits)
    with pytest.raises(ModelError, match="Leave it out"):
        place(starcoder2_folder, {"": "disk"}, max_memory={"cpu": 5})


def test_a_folder_that_cannot_be_used_is_named(
    starcoder2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"file.*Name another offload_folder"):
        place(starcoder2_folder, {"": "disk"}, tmp_path / "file")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(ModelError, match=r"are to go to the disk.*another disk"):
        place(starcoder2_folder, {"": "disk"}, tmp_path)
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_accelerate_the_package_is_named(
    starcoder2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ModelError, match=r"pip install 'fimls\[gpu\]'"):
        place(starcoder2_folder, "auto")
