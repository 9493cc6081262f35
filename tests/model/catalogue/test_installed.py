"""What lies on the disk is found and named, whoever put it there; damaged things are skipped."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from model.catalogue import records
from model.catalogue.entries import CATALOGUE, entries, entry_of, find_entry
from model.catalogue.installed import find_all, locate
from model.catalogue.places import RECORD, folder_name
from model.catalogue.records import PulledFile, Record, check_unaltered, write_record
from model.catalogue.transfer import Job, has_checksum
from model.errors import ModelError
from model.weights.preferences import read_preferences

SMALL = "qwen2.5-coder-0.5b"


def put(path: Path, content: bytes = b"GGUF" + bytes(60), size: int = 0) -> Path:
    """A file, with holes up to the size that it is to have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if size:
        os.truncate(path, size)
    return path


def snapshot(root: Path, repository: str, commit: str = "a" * 40, *, main: bool = True) -> Path:
    folder = root / "hub" / f"models--{repository.replace('/', '--')}"
    if main:
        put(folder / "refs" / "main", commit.encode())
    (folder / "snapshots" / commit).mkdir(parents=True)
    return folder / "snapshots" / commit


def test_the_catalogue_is_whole() -> None:
    from fim.formats import FORMATS

    for name, entry in entries().items():
        assert name == name.lower() and find_entry(name.upper()) is entry
        assert entry.repository.count("/") == 1 and entry.licence.name
        assert entry.fim_format in FORMATS
        assert not entry.licence.ask or entry.licence.url
        read_preferences(entry.preferences, CATALOGUE)
        for file in entry.files:
            assert not file.sha256 or (len(file.sha256) == 64 and file.bytes)
        if entry.pieces is not None:  # nothing but the checksum vouches for these
            assert len(entry.files) == 1 and entry.files[0].sha256
            assert len(set(entry.pieces.paths)) == entry.pieces.count


def test_nothing_is_found_where_nothing_is() -> None:
    assert find_all() == []
    for name in (SMALL, "a/b", "a/b:c.gguf", "ollama/x", "", "\0", "../x", "/", "x" * 5000):
        assert locate(name) is None


def test_a_pulled_model_is_found_while_it_is_whole(places: Path) -> None:
    file = put(places / "data" / "models" / SMALL / "x.gguf", size=100)
    pulled = PulledFile(str(file), 100, "0" * 64)
    write_record(Record(SMALL, str(file), "packages", "Q/R", "", "Apache-2.0", (pulled,)))
    assert locate(SMALL) == file and locate(SMALL.upper()) == file
    (found,) = find_all()
    assert (found.name, found.origin, found.bytes, found.entry) == (SMALL, "fimls", 100, SMALL)
    os.truncate(file, 50)
    assert locate(SMALL) is None and find_all() == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": 1}', b"\xff", b"{}" * 2**20])
def test_a_damaged_record_is_skipped(places: Path, content: bytes) -> None:
    put(places / "data" / "models" / folder_name("a/b:c") / RECORD, content)
    assert locate("a/b:c") is None and find_all() == []


def test_a_record_that_is_a_fifo_holds_nobody_up(places: Path) -> None:
    folder = places / "data" / "models" / SMALL
    folder.mkdir(parents=True)
    os.mkfifo(folder / RECORD)
    assert locate(SMALL) is None


def test_a_cache_of_fifos_holds_nobody_up(places: Path) -> None:
    folder = snapshot(places, "org/repo")
    main = folder.parent.parent / "refs" / "main"
    main.unlink()
    os.mkfifo(main)
    put(folder / "m.gguf", size=1000)
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
        os.mkfifo(folder / name)
    assert [installed.bytes for installed in find_all()] == [1000]
    blob = places / "blob"
    os.mkfifo(blob)
    with pytest.raises(OSError, match="not a regular file"):
        has_checksum(blob, "0" * 64, Job())


def test_the_files_of_the_hubs_cache_are_found(places: Path) -> None:
    folder = snapshot(places, "org/repo")
    blob = put(folder.parent.parent / "blobs" / ("b" * 64), size=1000)
    (folder / "m-q4_k_m.gguf").symlink_to(blob)
    put(folder / "m-q8_0.gguf", size=2000)
    put(folder / "split-00001-of-00002.gguf", size=10)
    put(folder / "split-00002-of-00002.gguf", size=20)
    put(folder / "mmproj-m.gguf")
    put(folder / "html.gguf", b"<!DOCTYPE html>")
    os.mkfifo(folder / "fifo.gguf")
    (folder / "dangling.gguf").symlink_to(folder / "nothing")
    found = {installed.name: installed.bytes for installed in find_all()}
    assert found == {
        "org/repo:m-q4_k_m.gguf": 1000,
        "org/repo:m-q8_0.gguf": 2000,
        "org/repo:split-00001-of-00002.gguf": 30,
    }
    assert locate("org/repo:m-q4_k_m.gguf") == folder / "m-q4_k_m.gguf"
    assert locate("ORG/repo:Q8_0") == folder / "m-q8_0.gguf"
    assert locate("org/repo") is None and locate("org/repo:m-q") is None  # which of them?


def test_a_folder_of_safetensors_is_one_model_when_it_is_whole(places: Path) -> None:
    folder = snapshot(places, "bigcode/starcoder2-3b", main=False)
    for name in ("config.json", "tokenizer.json", "model-1.safetensors"):
        put(folder / name, b"{}")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    put(folder / "model.safetensors.index.json", json.dumps(index).encode())
    assert find_all() == []
    put(folder / "model-2.safetensors", b"{}")
    (found,) = find_all()
    assert (found.name, found.entry) == ("bigcode/starcoder2-3b", "starcoder2-3b")
    assert locate("starcoder2-3b") == folder == locate("bigcode/starcoder2-3b")


def test_an_entry_is_known_by_name_and_size(places: Path) -> None:
    entry = entries()[SMALL]
    (file,) = entry.files
    folder = snapshot(places, "someone/copy")
    path = put(folder / file.name, size=file.bytes or 0)
    assert entry_of(path) is entry
    assert locate(SMALL) == path
    os.truncate(path, 1000)
    assert entry_of(path) is None and locate(SMALL) is None
    assert entry_of(path.with_name("nothing")) is None


def test_an_entry_is_known_by_its_blob_in_the_hubs_cache(places: Path) -> None:
    folder = snapshot(places, "Qwen/Qwen2.5-Coder-7B-Instruct-GGUF")
    (file,) = entries()["qwen2.5-coder-7b"].files
    blob = put(folder.parent.parent / "blobs" / ("c" * 64))
    (folder / file.name).symlink_to(blob)
    assert entry_of(folder / file.name) is entries()["qwen2.5-coder-7b"] is entry_of(blob.resolve())
    other = put(folder.parent.parent / "blobs" / ("d" * 64))
    assert entry_of(other) is None


def test_what_ollama_has_is_used_in_place(places: Path) -> None:
    store = places / "ollama"
    (file,) = entries()[SMALL].files
    manifests = store / "manifests" / "registry.ollama.ai"

    def manifest(path: Path, digest: str) -> None:
        layers = [
            {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "1" * 64},
            {"mediaType": "application/vnd.ollama.image.model", "digest": digest},
        ]
        put(path, json.dumps({"layers": layers}).encode())

    known = put(store / "blobs" / f"sha256-{file.sha256}", size=500)
    other = put(store / "blobs" / f"sha256-{'2' * 64}", size=700)
    put(store / "blobs" / f"sha256-{'3' * 64}", b"no model")
    manifest(manifests / "library" / "qwen2.5-coder" / "0.5b", f"sha256:{file.sha256}")
    manifest(manifests / "me" / "mine" / "latest", "sha256:" + "2" * 64)
    manifest(manifests / "library" / "odd" / "latest", "sha256:" + "3" * 64)
    manifest(manifests / "library" / "gone" / "latest", "sha256:" + "4" * 64)
    manifest(manifests / "library" / "escape" / "latest", "sha256:../../x")
    put(manifests / "library" / "bad" / "latest", b'{"layers": [1, {"mediaType": 2}]}')
    put(manifests / "library" / "bad" / "worse", b"\xff")
    found = {installed.name: (installed.path, installed.entry) for installed in find_all()}
    assert found == {
        "ollama/qwen2.5-coder:0.5b": (known, SMALL),
        "ollama/me/mine:latest": (other, ""),
    }
    assert locate(SMALL) == known == locate("ollama/qwen2.5-coder:0.5b")
    assert locate("ollama/me/mine") == other
    assert locate("ollama/qwen2.5-coder") is None


def test_finding_loads_neither_torch_nor_the_hubs_library() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from model.catalogue.installed import find_all, locate; find_all(); "
        "locate('a/b'); print({'torch', 'numpy', 'huggingface_hub'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize("kind", ["hub", "ollama", "hub, small"])
def test_what_other_programs_fetched_is_checked_once_by_its_name(
    kind: str, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that were flipped there were loaded in silence."""
    content = b"GGUF" + bytes(range(200))
    name = hashlib.sha256(content).hexdigest()
    folder = places / "hub" / "models--a--b" / "blobs"
    if kind == "ollama":
        folder, name = places / "ollama" / "blobs", f"sha256-{name}"
    elif "small" in kind:
        name = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    blob = put(folder / name, content)
    link = places / "model.gguf"
    link.symlink_to(blob)
    reads: list[Path] = []

    def counted(path: Path, checksum: str, job: Job) -> bool:
        reads.append(path)
        return has_checksum(path, checksum, job)

    monkeypatch.setattr(records, "has_checksum", counted)
    for _ in range(2):
        check_unaltered([link])
    assert reads == [blob]
    before = blob.stat()
    blob.write_bytes(content.replace(b"\x07", b"\x08"))
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a failing disk leaves it
    with pytest.raises(ModelError) as caught:
        check_unaltered([link])
    assert f"{blob} is damaged" in str(caught.value)
    assert ("`ollama pull`" if kind == "ollama" else "`fimls pull a/b`") in str(caught.value)
    put(blob, content)
    check_unaltered([link])
    put(places / "data" / "checked.json", b"[1")
    check_unaltered([link])
    assert len(reads) == 4


def test_a_file_that_is_no_blob_is_not_read(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "has_checksum", None)
    check_unaltered([put(places / "blobs" / "model.gguf"), put(places / ("a" * 64))])
