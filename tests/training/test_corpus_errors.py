"""A corpus that cannot be built, read or restored says so in one line with its remedy; pieces
restore it exactly."""

from __future__ import annotations

import errno
import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.training.corpus_recipe import Recipe, source
from training.corpus import __main__ as command
from training.corpus import folder
from training.corpus.folder import FILES, CorpusError, Row, read_manifest, rows
from training.corpus.packages import read_packages
from training.corpus.pieces import pack, unpack
from training.tokenizer import main as tokenizer_main


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip fails as it does without a network
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return Recipe(tmp_path)


@pytest.fixture
def data(recipe: Recipe) -> Path:
    recipe.add("more", "train", {f"more/{i}.py": source(i) for i in range(40)})
    recipe.build()
    return recipe.data


def test_recipes_that_contradict_themselves(recipe: Recipe) -> None:
    recipe.packages["odd"] = "train", "GPL-3.0", "0" * 64
    recipe.write()
    with pytest.raises(CorpusError, match=r"odd is under GPL-3\.0; only MIT"):
        read_packages(recipe.table, recipe.lock)
    recipe.packages["odd"] = "train", "MIT", "not a hash"
    recipe.write()
    with pytest.raises(CorpusError, match=r"packages\.lock has no odd: add the line NAME==VERSION"):
        read_packages(recipe.table, recipe.lock)
    del recipe.packages["odd"]
    recipe.write()
    recipe.table.write_text(recipe.table.read_text() + 'tested = "MIT"\n')
    with pytest.raises(CorpusError, match="tested in two splits"):
        read_packages(recipe.table, recipe.lock)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[held_out\n", r"packages\.toml and packages\.lock cannot be read \(Expected"),
        (
            "[train]\n",
            r"packages\.toml needs the tables held_out\.test, held_out\.validation and train",
        ),
        ("train = 1\n[held_out]\ntest = {}\nvalidation = {}\n", "needs the tables"),
        (
            "[train]\na = ['MIT']\n[held_out]\ntest = {}\nvalidation = {}\n",
            r"a is under \['MIT'\]; only MIT",
        ),
        (None, r"packages\.toml cannot be read \(No such file or directory\)"),
    ],
)
def test_recipes_that_cannot_be_read(recipe: Recipe, table: str | None, message: str) -> None:
    recipe.write()
    recipe.table.unlink() if table is None else recipe.table.write_text(table)
    with pytest.raises(CorpusError, match=message):
        read_packages(recipe.table, recipe.lock)


GOOD = b'{"package": "p", "licence": "MIT", "path": "a.py", "text": "x = 1\\n"}\n'


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"",
        b"[]",
        b'"text"',
        b'{"package": "p", "path": "a.py"}',
        b'{"package": "p", "path": "a.py", "text": ""}',
        b'{"package": "p", "path": "a.py", "text": 1}',
        b'{"package": null, "path": "a.py", "text": "x"}',
        b'{"package": "p", "path": "a.py", "text": "\xff"}',
        b"[" * 10**5,
    ],
    ids=lambda line: line[:50],
)
def test_a_line_that_is_no_row(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD)
    read = rows(path)
    assert next(read) == Row("p", "a.py", "x = 1\n")
    with pytest.raises(
        CorpusError, match=r"train\.jsonl, line 2, is no row of a corpus: build it again"
    ):
        next(read)


def test_rows_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(CorpusError, match=r"cannot be read \(.*directory\): make corpus"):
            next(rows(path))


def test_a_wheel_under_another_licence(recipe: Recipe) -> None:
    recipe.add(
        "more", "train", {"more/a.py": source(4)}, metadata="License-Expression: GPL-3.0-only"
    )
    with pytest.raises(
        CorpusError, match=r"more: packages\.toml says MIT, its metadata 'GPL-3\.0-only'"
    ):
        recipe.build()


def test_a_wheel_that_is_not_the_one_locked(recipe: Recipe) -> None:
    recipe.write()
    archive = next(recipe.data.rglob("trained*.whl"))
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(
        CorpusError,
        match=r"pip could not download them \(.+\): check the network, or put the wheels",
    ):
        recipe.build()


@pytest.mark.parametrize("damage", ["cut short", "a flipped bit"])
def test_a_broken_wheel(recipe: Recipe, damage: str) -> None:
    archive = next(recipe.data.rglob("trained*.whl"))
    raw = bytearray(archive.read_bytes())
    if damage == "cut short":
        del raw[-100:]
    else:
        raw[raw.index(b"return")] ^= 1
    archive.write_bytes(raw)
    recipe.packages["trained"] = "train", "MIT", folder.hashlib.sha256(raw).hexdigest()
    with pytest.raises(
        CorpusError,
        match=r"trained-1\.0-py3-none-any\.whl cannot be read \(.+\): delete it and build",
    ):
        recipe.build()
    assert not (recipe.data / "train.jsonl").exists()


def test_a_full_disk_leaves_the_corpus_that_was_there(
    data: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (data / name).read_bytes() for name in FILES}
    recipe.add("late", "train", {"late/a.py": source(50)})
    recipe.write()

    def full(self: folder.Sink, block: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder.Sink, "write", full)
    monkeypatch.setattr(command.build, "__defaults__", (recipe.table, recipe.lock))
    assert command.main(["build", str(data)]) == 1
    said = capsys.readouterr().err
    assert (
        said
        == f"corpus: {data}: No space left on device: free 2 GB or name a folder on another disk\n"
    )
    assert {name: (data / name).read_bytes() for name in FILES} == before
    assert list(data.glob("*.partial")) == []


def test_a_folder_without_a_whole_corpus(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (data / "train.jsonl").read_bytes()
    (data / "train.jsonl").write_bytes(whole[:-50])
    with pytest.raises(
        CorpusError, match=rf"train\.jsonl has {len(whole) - 50} of {len(whole)} bytes"
    ):
        read_manifest(data)
    assert tokenizer_main([str(data), "300"]) == 1
    assert "build the corpus again (make corpus)" in capsys.readouterr().err
    (data / "manifest.json").write_text("{")
    with pytest.raises(CorpusError, match="broken or of an older kind: make corpus"):
        read_manifest(data)
    (data / "manifest.json").unlink()
    with pytest.raises(CorpusError, match="holds no corpus: make corpus"):
        read_manifest(data)


def test_pieces_restore_the_corpus(data: Path, tmp_path: Path) -> None:
    sizes = pack(data, tmp_path / "pieces", 1000)
    paths = sorted((tmp_path / "pieces").iterdir())
    assert len(sizes) > 3
    assert [path.stat().st_size for path in paths] == sizes
    assert set(sizes[:-1]) == {1000} and 0 < sizes[-1] <= 1000
    unpack(tmp_path / "pieces", tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (data / name).read_bytes()

    first = [path.read_bytes() for path in paths]
    (tmp_path / "pieces" / f"corpus.tar.xz.{len(first):03}").write_bytes(
        b"of a larger corpus, packed before"
    )
    pack(tmp_path / "again", tmp_path / "pieces", 1000)
    assert [path.read_bytes() for path in sorted((tmp_path / "pieces").iterdir())] == first


@pytest.mark.parametrize("damage", ["first", "middle", "last", "changed"])
def test_pieces_that_are_no_whole_corpus(data: Path, tmp_path: Path, damage: str) -> None:
    count = len(pack(data, tmp_path / "pieces", 1000))
    which = {"first": 0, "last": count - 1}.get(damage, count // 2)
    path = tmp_path / "pieces" / f"corpus.tar.xz.{which:03}"
    if damage == "changed":
        raw = bytearray(path.read_bytes())
        raw[500] ^= 1
        path.write_bytes(raw)
    else:
        path.unlink()
    with pytest.raises(
        CorpusError, match=r"pieces in .* are no whole corpus \(.+\): copy them again"
    ):
        unpack(tmp_path / "pieces", tmp_path / "again")
    assert list((tmp_path / "again").iterdir()) == []


def test_pieces_of_another_corpus_are_told_by_their_hashes(data: Path, tmp_path: Path) -> None:
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["written"]["test.jsonl"]["sha256"] = "0" * 64
    (data / "manifest.json").write_text(json.dumps(manifest))
    pack(data, tmp_path / "pieces")
    with pytest.raises(CorpusError, match=r"test\.jsonl came out wrong"):
        unpack(tmp_path / "pieces", tmp_path / "again")


@pytest.mark.parametrize(
    ("name", "kind", "content", "message"),
    [
        ("train.jsonl", tarfile.REGTYPE, b"{}", "the manifest is missing"),
        ("manifest.json", tarfile.REGTYPE, b"[]", "TypeError|indices"),
        ("manifest.json", tarfile.REGTYPE, b'{"written": {}}', "the manifest is missing"),
        ("train.jsonl", tarfile.DIRTYPE, b"", "train.jsonl is no file"),
        ("other.jsonl", tarfile.REGTYPE, b"{}", "other.jsonl"),
    ],
)
def test_pieces_of_something_else(
    name: str, kind: bytes, content: bytes, message: str, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "corpus.tar.xz.000", "w:xz") as tar:
        entry = tarfile.TarInfo(name)
        entry.type, entry.size = kind, len(content)
        tar.addfile(entry, io.BytesIO(content))
    with pytest.raises(CorpusError, match=rf"are no whole corpus \(.*({message})"):
        unpack(tmp_path, tmp_path / "again")
    assert list((tmp_path / "again").iterdir()) == []


def test_a_folder_without_pieces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["unpack", str(tmp_path), str(tmp_path / "data")]) == 1
    assert (
        "holds no pieces corpus.tar.xz.000, ...: make them with `pack`" in capsys.readouterr().err
    )
