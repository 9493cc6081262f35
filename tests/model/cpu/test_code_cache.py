"""Machine code on disk: made by a process of its own, and run only if nobody else can have written
it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model.cpu import code_cache
from model.cpu.code_cache import CHECKSUM, code_folder, is_intact, make, start
from tests.conftest import ROOT

pytestmark = pytest.mark.xdist_group("compiled")  # one process compiles, for all of them


def test_code_is_made_once_and_read_after_that(made: Path) -> None:
    assert is_intact(made)
    assert {path.name for path in made.parent.iterdir()} == {made.name}
    assert made.stat().st_mode & 0o777 == 0o700
    before = sorted(made.rglob("*"))
    script = f"""
import sys
from pathlib import Path
from model.cpu.code_cache import load, use
use(Path({str(made)!r}))
load(Path({str(made)!r}))
from model.cpu.blocks.compiled import product
stats = product.multiply.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "0", "False"]
    assert sorted(made.rglob("*")) == before
    assert is_intact(made)


def test_an_engine_that_only_names_the_folder_compiles_nothing(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from model.cpu.code_cache import use
use(Path({str(tmp_path)!r}))
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_what_is_in_doubt_is_not_run(made: Path) -> None:
    checksum, code = made / CHECKSUM, next(made.rglob("*.nbc"))
    good = code.read_bytes()
    for bad in (b"", good[:-1], good + b"\0", b"garbage"):
        code.write_bytes(bad)
        assert not is_intact(made)
    code.write_bytes(good)
    (made / "more.nbc").write_bytes(b"")
    assert not is_intact(made)
    (made / "more.nbc").unlink()
    sum_of_all = checksum.read_bytes()
    checksum.unlink()
    assert not is_intact(made)
    checksum.write_bytes(sum_of_all)
    assert is_intact(made)


def test_a_folder_that_others_can_write_to_is_not_believed(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (made, made.parent, made.parent.parent):
        folder.chmod(0o777)
        assert not is_intact(made)
        folder.chmod(0o700)
    assert is_intact(made)
    link = made.with_name("link")
    link.symlink_to(made)
    assert not is_intact(link)
    link.unlink()
    monkeypatch.setattr("model.private_files.is_mine", lambda info: False)
    assert not is_intact(made)


def test_other_sources_versions_and_machines_have_code_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {code_folder(tmp_path)}
    monkeypatch.setattr(code_cache, "version", lambda name: "0.0.0")
    found.add(code_folder(tmp_path))
    monkeypatch.setenv("NUMBA_CPU_NAME", "pdp11")
    found.add(code_folder(tmp_path))
    source = tmp_path / "step.py"
    source.write_text("pass")
    monkeypatch.setattr(code_cache, "SOURCES", (source,))
    found.add(code_folder(tmp_path))
    assert len(found) == 4


def test_a_maker_ends_with_the_process_that_waits_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "compiled" / "key"
    with start(folder, awaited=False) as process:  # closes its input, and waits
        pass
    assert process.returncode == 1
    assert not folder.parent.exists() or not list(folder.parent.iterdir())


def test_code_that_nobody_used_for_long_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tmp_path / "compiled"
    for name, days in (("old", 40), ("young", 20)):
        (parent / name).mkdir(parents=True)
        os.utime(parent / name, (time.time() - days * 86400,) * 2)
    monkeypatch.setattr(code_cache, "use", lambda folder: None)
    monkeypatch.setattr(code_cache, "load", lambda folder: None)
    make(parent / "new", parent / "new-1")
    assert {path.name for path in parent.iterdir()} == {"young", "new"}
    assert is_intact(parent / "new")


def test_a_maker_that_comes_second_leaves_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_cache, "use", lambda folder: None)
    monkeypatch.setattr(code_cache, "load", lambda folder: None)
    folder = tmp_path / "compiled" / "key"
    make(folder, folder.with_name("first"))
    before = folder.stat().st_ino
    make(folder, folder.with_name("second"))
    assert (folder.stat().st_ino, is_intact(folder)) == (before, True)
    (folder / "more.nbc").write_bytes(b"")  # unless it is in doubt
    make(folder, folder.with_name("third"))
    assert is_intact(folder)
    assert folder.stat().st_ino != before
    assert [path.name for path in folder.parent.iterdir()] == ["key"]


def test_code_is_not_run_from_where_numba_likes_it_better(tmp_path: Path) -> None:
    """numba takes another folder, silently, where it cannot write into the one that it is told."""
    script = f"""
from pathlib import Path
from model.cpu.code_cache import use
use(Path({str(tmp_path / "file" / "below")!r}))
"""
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "numba keeps no code in" in done.stderr
