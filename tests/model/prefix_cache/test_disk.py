"""Prefixes on disk: what is read is what was written, bit for bit; and nothing that happens to the
folder does harm."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import resource
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from model import LoadedModel, load_model
from model.decoder.kv_cache import KVCache
from model.prefix_cache.disk import BLOCK, WORTH_WRITING, PrefixStore, model_key, open_store
from model.prefix_cache.memory import PrefixCache
from model.prefix_cache.packed_ids import pack
from model.weights.folder import ModelFolder, find_model
from tests.conftest import STARCODER2, write_model
from tests.model.toys import Parrot, read_ids, remember, toy_config

A, B, C = (list(range(first, first + 1000)) for first in (1000, 3000, 5000))
VALUES = 64  # bytes of a position's keys and values
SIZE = 70_000  # of a file of 1000 positions and a little more: with ids and a header
AMPLE = 100 * SIZE


def store_in(
    folder: Path, *, key: str = "key", budget: int = AMPLE, layout: KVCache | None = None
) -> PrefixStore:
    return PrefixStore(folder, key, budget, layout or Parrot().new_cache())


def computed(ids: Sequence[int]) -> KVCache:
    cache = Parrot().new_cache()
    remember(cache, ids)
    return cache


def save(store: PrefixStore, ids: Sequence[int]) -> None:
    store.save(pack(ids), computed(ids))


def restored(store: PrefixStore, ids: Sequence[int], held: int = 0) -> list[int]:
    """What a store adds to a cache that holds the first ids of a prompt, and that."""
    cache = computed(ids[:held]) if held else Parrot().new_cache()
    if stored := store.find(pack(ids)):
        store.restore(stored, cache)
    return read_ids(cache) if cache.length else []


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "prefixes"


@pytest.mark.parametrize("length", [WORTH_WRITING, 2 * BLOCK + 1, 1000])
@pytest.mark.parametrize("held", [0, 1, BLOCK, BLOCK + 1, 500])
def test_what_is_read_is_what_was_written(folder: Path, length: int, held: int) -> None:
    save(store_in(folder), A[:length])
    for prompt in (A[:length], [*A[:length], 7], [*A[:600], 7, 8], [*A[:510], 7]):
        expected = [x for x, y in zip(A[:length], prompt, strict=False) if x == y]
        assert restored(store_in(folder), prompt, held) == expected
    assert restored(store_in(folder), B) == []


def test_the_longest_of_several_is_read(folder: Path) -> None:
    store = store_in(folder)
    for ids in ([*A[:700], *C], B, [*A[:300], *C]):
        save(store, ids)
    assert len(files(folder)) == 3
    assert restored(store, A) == A[:700]
    assert store.hits == 1


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_restored_prefix_gives_what_the_one_in_memory_gives(
    talkative_folder: Path, folder: Path, quantization: str | None
) -> None:
    """Bit for bit, for the same positions are computed behind it."""
    decoder = load_model(talkative_folder, "cpu", "float32", quantization).decoder
    ids = [random.Random(2).randrange(8, 260) for _ in range(1100)]
    warm = decoder.new_cache()
    with torch.inference_mode():
        decoder(torch.tensor([ids[:900]]), cache=warm)
        store_in(folder, layout=warm).save(pack(ids[:900]), warm)
        for split in (900, 899):
            warm.trim(split)
            lease = PrefixCache(decoder, store=store_in(folder, layout=warm)).lease(
                ids[: split + 1]
            )
            assert lease.reused == split
            rest = torch.tensor([ids[split:]])
            logits = [
                decoder(rest, cache=cache).logits for cache in (warm.fork(split), lease.cache)
            ]
            assert torch.equal(*logits)


def test_a_file_is_safetensors_and_the_users_alone(folder: Path) -> None:
    old = os.umask(0)
    try:
        save(store_in(folder), A)
    finally:
        os.umask(old)
    (path,) = files(folder)
    assert [stat.S_IMODE(p.stat().st_mode) for p in (folder, path)] == [0o700, 0o600]
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["model"] == "key"
        assert file.get_tensor("ids").tolist() == A
        assert file.get_tensor("block00003").shape == (2, 2, 1, 1000 - 3 * BLOCK, 4)
        assert file.get_tensor("block00000")[1, 0, 0, :, 0].tolist() == [-x for x in A[:BLOCK]]


def test_a_folder_that_others_may_enter_is_closed(folder: Path) -> None:
    folder.mkdir(mode=0o755, parents=True)
    folder.chmod(0o755)
    store_in(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("second", "kept"),
    [
        (A[: WORTH_WRITING - 1], [A]),
        (A[:900], [A]),
        (A + B[: WORTH_WRITING - 1], [A]),
        (A + B, [A + B]),  # A would find nothing there that A + B does not have
        (A[:700] + C[:400], [A]),
        (A[:700] + C, [A, A[:700] + C]),
    ],
)
def test_only_what_is_new_and_costly_is_written(
    folder: Path, second: list[int], kept: list[list[int]]
) -> None:
    store = store_in(folder)
    save(store, A)
    save(store, second)
    assert len(files(folder)) == len(kept)
    assert [restored(store, ids) for ids in kept] == kept


# The budget.


def dated(folder: Path, seconds: int) -> None:
    """What has just been used was used that long ago."""
    newest = max(files(folder), key=lambda path: path.stat().st_mtime_ns)
    os.utime(newest, (time.time() - seconds,) * 2)


def test_the_budget_drops_what_was_used_least_recently_of_any_model(folder: Path) -> None:
    first, second = (store_in(folder, key=key, budget=3 * SIZE) for key in ("one", "two"))
    for age, (store, ids) in zip((40, 30, 20), ((first, A), (second, B), (first, C)), strict=True):
        save(store, ids)
        dated(folder, age)
    assert restored(first, A) == A  # now the most recent
    save(second, A)
    assert [restored(s, ids) for s, ids in ((first, A), (second, B), (first, C), (second, A))] == [
        A,
        [],
        C,
        A,
    ]
    assert sum(path.stat().st_size for path in files(folder)) <= 3 * SIZE


def test_what_does_not_fit_is_cut_to_fit(folder: Path) -> None:
    store = store_in(folder, budget=SIZE * 7 // 10)
    save(store, A)
    assert restored(store, A) == A[: len(restored(store, A))]
    assert WORTH_WRITING <= len(restored(store, A)) < 1000
    assert sum(path.stat().st_size for path in files(folder)) <= SIZE * 7 // 10
    small = store_in(folder.with_name("small"), budget=WORTH_WRITING * 30)
    save(small, A)
    assert files(folder.with_name("small")) == []


def test_no_folder_or_no_budget_is_no_store(talkative: LoadedModel, folder: Path) -> None:
    layout = talkative.decoder.new_cache()
    assert open_store(None, AMPLE, talkative.folder, layout) is None
    assert open_store(folder, 0, talkative.folder, layout) is None
    assert not folder.exists()
    assert isinstance(open_store(folder, AMPLE, talkative.folder, layout), PrefixStore)
    assert open_store(folder, AMPLE, ModelFolder(folder / "gone", {}), layout) is None


# Whose values they are.


def test_another_model_or_version_is_another_key(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", STARCODER2)
    weights = folder / "model.safetensors"
    times = (weights.stat().st_atime_ns, weights.stat().st_mtime_ns)

    def key(*details: str) -> str:
        return model_key(find_model(folder), *details)

    assert key("1") == key("1")
    keys = {key("1"), key("2")}
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 2] ^= 1
    weights.write_bytes(raw)
    os.utime(weights, ns=times)  # as an installer may set them: the size is the same, too
    keys |= {key("1")}
    os.utime(weights)
    keys |= {key("1")}
    shutil.copytree(folder, tmp_path / "copy")
    keys |= {model_key(find_model(tmp_path / "copy"), "1")}
    assert len(keys) == 5


def test_what_one_precision_computed_is_not_read_by_another(
    starcoder2_folder: Path, folder: Path
) -> None:
    names = set()
    for dtype, quantization in (("float32", None), ("bfloat16", None), ("float32", "int8")):
        model = load_model(starcoder2_folder, "cpu", dtype, quantization)
        cache = model.decoder.new_cache()
        store = open_store(folder, AMPLE, model.folder, cache, model.decoder.scheme)
        assert store is not None and store.find(pack(A)) is None
        cache.reserve(len(A))
        cache.commit(len(A))
        store.save(pack(A), cache)
        names |= {path.name for path in files(folder)}
    assert len(names) == 3


def test_another_models_files_are_not_seen(folder: Path) -> None:
    save(store_in(folder, key="one"), A)
    assert restored(store_in(folder, key="two"), A) == []
    (path,) = files(folder)
    path.rename(path.with_name(path.name.replace("one", "two")))
    assert restored(store_in(folder, key="two"), A) == []


@pytest.mark.parametrize("other", ["dtype", "shape"])
def test_another_layout_is_a_miss(folder: Path, other: str) -> None:
    save(store_in(folder), A)
    config = toy_config()
    layout = KVCache(config, dtype=torch.bfloat16, device=torch.device("cpu"))
    if other == "shape":
        object.__setattr__(config, "num_layers", 3)
        layout = KVCache(config, dtype=torch.float32, device=torch.device("cpu"))
    assert store_in(folder, layout=layout).find(pack(A)) is None


# Damage.

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "a few bytes": lambda raw: raw[:5],
    "header cut off": lambda raw: raw[:300],
    "a byte too few": lambda raw: raw[:-1],
    "a byte too many": lambda raw: raw + b"\0",
    "text": lambda raw: b"not a model " * 1000,
    "huge header": lambda raw: (1 << 60).to_bytes(8, "little") + raw[8:],
    "a list for a header": lambda raw: (8).to_bytes(8, "little") + b"[1, 2]  " + raw,
    "deep header": lambda raw: (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "a header without values": lambda raw: (
        (24).to_bytes(8, "little") + b'{"__metadata__": {}}    ' + raw
    ),
    "a bit of the header": lambda raw: flip(raw, raw.index(b'"key"') + 2),
    "a bit of the ids": lambda raw: flip(raw, first_byte(raw, "ids") + 17),
    "zeros": lambda raw: bytes(len(raw)),
}


def first_byte(raw: bytes, tensor: str) -> int:
    """Where a tensor's numbers begin in a safetensors file."""
    length = int.from_bytes(raw[:8], "little")
    first, _ = json.loads(raw[8 : 8 + length])[tensor]["data_offsets"]
    return 8 + length + first


def flip(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :]


@pytest.mark.parametrize("seen_before", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_a_miss_and_goes(folder: Path, damage: str, seen_before: bool) -> None:
    store = store_in(folder)
    save(store, A)
    (path,) = files(folder)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    store = store if seen_before else store_in(folder)
    assert restored(store, A) == []
    assert files(folder) == []
    save(store, A)
    assert restored(store, A) == A


def test_up_to_a_damaged_block_all_is_as_it_was(folder: Path) -> None:
    store = store_in(folder)
    save(store, A)
    (path,) = files(folder)
    raw = path.read_bytes()
    path.write_bytes(flip(raw, first_byte(raw, "block00002") + 5))
    assert restored(store, A) == A[: 2 * BLOCK]
    assert files(folder) == []


def test_a_block_of_another_text_is_no_good(folder: Path) -> None:
    """Each is whole, but what it was computed behind is not what stands before it."""
    store = store_in(folder)
    save(store, A)
    save(store, [7, *A[1:]])
    one, other = files(folder)
    raw, donor = one.read_bytes(), other.read_bytes()
    first = first_byte(raw, "block00000")
    last = first + 1000 * VALUES
    one.write_bytes(raw[:first] + donor[first:last] + raw[last:])
    assert sorted(map(len, (restored(store, A), restored(store, [7, *A[1:]])))) == [0, 1000]


@pytest.mark.parametrize("kind", ["folder", "fifo", "link", "readable", "socketless garbage"])
def test_what_is_no_private_file_is_a_miss(folder: Path, tmp_path: Path, kind: str) -> None:
    save(store_in(folder), A)
    (path,) = files(folder)
    if kind == "readable":  # somebody else has had a hand in it
        path.chmod(0o644)
    else:
        path.rename(tmp_path / "away")
        if kind == "folder":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path, 0o600)
        elif kind == "link":
            path.symlink_to(tmp_path / "away")
        else:
            (folder / "notes.txt").write_text("x")
            (folder / "key-.3.safetensors").write_bytes(b"")
    store = store_in(folder)
    assert restored(store, A) == []
    save(store, B)
    assert restored(store, B) == B


def test_another_users_file_or_folder_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store_in(folder), A)
    store = store_in(folder)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert restored(store, A) == []
    stranger = store_in(folder)
    save(stranger, B)
    assert restored(stranger, A) == restored(stranger, B) == []
    assert len(files(folder)) == 1


# A folder that cannot be written.


@contextlib.contextmanager
def warnings_of(caplog: pytest.LogCaptureFixture, count: int) -> Iterator[None]:
    with caplog.at_level(logging.WARNING):
        yield
    assert [record.message.partition(" (")[0] for record in caplog.records] == [
        "no prefixes are kept on disk"
    ] * count


def test_a_file_in_the_folders_place_is_no_folder(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.parent.mkdir()
    folder.write_text("mine")
    with warnings_of(caplog, 1):
        store = store_in(folder)
        for ids in (A, B):
            save(store, ids)
            assert restored(store, ids) == []
    assert folder.read_text() == "mine"


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Writes beyond fail with an OSError, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_write_that_fails_leaves_nothing_and_is_said_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_in(folder)
    save(store, A)
    with warnings_of(caplog, 1), files_no_larger_than(SIZE // 2):
        save(store, B)
        save(store, C)
    assert len(files(folder)) == 1
    assert restored(store, A) == A  # what is there is still read


def test_a_full_disk_is_left_some_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in(folder)
    full = shutil.disk_usage(folder.parent.parent)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    save(store, A)
    assert files(folder) == []


@pytest.mark.parametrize("call", ["open", "replace", "utime"])
def test_a_folder_that_can_only_be_read_is_read(
    folder: Path, call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(store_in(folder), A)
    store = store_in(folder)
    real_open = os.open

    def refuse(path: object, flags: int = os.O_WRONLY, *rest: object, **named: object) -> int:
        if call == "open" and not flags & os.O_CREAT:
            return real_open(path, flags)
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path if call == "replace" else os, call, refuse)
    with warnings_of(caplog, call != "utime"):
        assert restored(store, A) == A
        save(store, B)
    assert len(files(folder)) == 1 + (call == "utime")
    assert restored(store, A) == A


def test_a_folder_that_goes_is_a_miss(folder: Path) -> None:
    store = store_in(folder)
    save(store, A)
    found = store.find(pack(A))
    assert found is not None
    shutil.rmtree(folder)
    cache = Parrot().new_cache()
    store.restore(found, cache)
    assert cache.length == 0
    assert restored(store, A) == []
    save(store, B)
    assert restored(store, B) == []


# Two processes.


def test_two_stores_see_each_others_files(folder: Path) -> None:
    one, other = store_in(folder), store_in(folder)
    for i in range(4):
        ids = [i, *A]
        writer, reader = (one, other) if i % 2 else (other, one)
        save(writer, ids)
        assert restored(reader, ids) == ids
        save(reader, ids)
    assert len(files(folder)) == 4


def test_two_stores_write_and_drop_at_once(folder: Path) -> None:
    """With room for three files, two writers drop what the other reads; each reads its text, or
    nothing."""
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng, store = random.Random(seed), store_in(folder, budget=3 * SIZE)
        try:
            for _ in range(40):
                ids = [rng.randrange(5), *A]
                found = restored(store, ids)
                if found != ids[: len(found)]:
                    wrong.append(found)
                save(store, ids)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert 1 <= len(files(folder)) <= 4
    assert all(path.suffix == ".safetensors" for path in files(folder))


def test_what_a_killed_process_left_is_cleared_away_in_time(folder: Path) -> None:
    store = store_in(folder)
    fresh, abandoned = folder / "key-1.safetensors.7-a.tmp", folder / "key-2.safetensors.7-b.tmp"
    for path, age in ((fresh, 10), (abandoned, 10_000)):
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
    save(store, A)
    assert (fresh.exists(), abandoned.exists(), restored(store, A)) == (True, False, A)


def test_files_of_earlier_formats_are_deleted(folder: Path) -> None:
    """Until the third one, secrets could stand in prompts."""
    save(store_in(folder), A)
    (kept,) = files(folder)
    for name in ("key-0123456789abcdef.safetensors", "other-1.2.safetensors"):
        (folder / name).write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    assert restored(store_in(folder), A) == A
    assert files(folder) == [kept, folder / "notes.txt"]


def test_writing_and_reading_can_be_put_off(folder: Path) -> None:
    store = store_in(folder)
    asked = iter([False, False, True])
    store.save(pack(A), computed(A), lambda: next(asked))
    assert files(folder) == []
    save(store, A)
    asked = iter([False, False, True])
    cache, stored = Parrot().new_cache(), store.find(pack(A))
    assert stored is not None
    store.restore(stored, cache, lambda: next(asked))
    assert read_ids(cache) == A[: 2 * BLOCK]
