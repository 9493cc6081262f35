"""Machine code on disk: made by a process of its own, and run only if nobody else can have written
it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
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


def with_link(code: Path, elsewhere: Path) -> None:
    code.rename(elsewhere / code.name)
    code.symlink_to(elsewhere / code.name)


def with_second_name(code: Path, elsewhere: Path) -> None:
    (elsewhere / code.name).hardlink_to(code)


def with_fifo(code: Path, elsewhere: Path) -> None:
    os.mkfifo(code.with_name("more.nbi"))


def with_file_open_to_others(code: Path, elsewhere: Path) -> None:
    code.chmod(0o666)


def with_folder_open_to_others(code: Path, elsewhere: Path) -> None:
    code.parent.chmod(0o777)


def with_linked_folder(code: Path, elsewhere: Path) -> None:
    code.parent.rename(elsewhere / "folder")
    code.parent.symlink_to(elsewhere / "folder")


@pytest.mark.skipif(sys.platform == "win32", reason="modes and links")
@pytest.mark.parametrize(
    "spoil",
    [
        with_link,
        with_second_name,
        with_fifo,
        with_file_open_to_others,
        with_folder_open_to_others,
        with_linked_folder,
    ],
)
def test_a_file_that_others_can_have_written_is_not_believed(
    spoil: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    folder = kept_in(tmp_path / "cache")
    (tmp_path / "elsewhere").mkdir()
    spoil(next(folder.rglob("*.nbc")), tmp_path / "elsewhere")
    assert not is_intact(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="modes and links")
def test_the_way_to_the_code_is_private_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [True]  # whether a folder's group is the user's own
    monkeypatch.setattr("model.private_files._is_own_group", lambda number: groups[-1])
    folder = kept_in(tmp_path / "home" / "deep" / "cache")
    home = tmp_path / "home"
    home.chmod(0o1777)  # as the folder for temporary files: nobody can rename another's
    assert is_intact(folder)
    (tmp_path / "link").symlink_to(home)
    linked = tmp_path / "link" / folder.relative_to(home)
    assert is_intact(linked)
    home.chmod(0o770)
    assert is_intact(folder)
    groups.append(False)
    for mode in (0o777, 0o770, 0o707):
        home.chmod(mode)
        for each in (folder, linked):
            assert not is_intact(each)
            with pytest.raises(PermissionError, match=f"chmod go-w '{home}'"):
                code_cache.check_place(each)
    home.chmod(0o755)
    assert is_intact(folder)


def test_a_folder_above_that_is_another_users_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = kept_in(tmp_path / "cache")
    stranger = tmp_path.parent.stat()
    monkeypatch.setattr("model.private_files.SYSTEM", ())
    mine = "model.private_files.is_mine"
    monkeypatch.setattr(mine, lambda info: not os.path.samestat(info, stranger))
    with pytest.raises(PermissionError, match="belongs to another user"):
        code_cache.check_place(folder)
    assert not is_intact(folder)


def test_the_maker_lets_nobody_else_write_whatever_the_umask(tmp_path: Path) -> None:
    folder = tmp_path / "compiled" / "key"
    script = "import os, runpy, sys; os.umask(0); sys.argv[1:] = sys.argv[2:]; "
    script += "import model.cpu.code_cache as c; c.use = lambda f: (f / 'd').mkdir(); "
    script += "c.load = lambda f: (f / 'd' / 'x').touch(); c.main(sys.argv[1])"
    with subprocess.Popen(
        [sys.executable, "-c", script, "-", str(folder)], cwd=ROOT, stdin=subprocess.PIPE
    ) as process:
        assert process.wait(60) == 0
    assert [path.stat().st_mode & 0o077 for path in folder.rglob("*")] == [0, 0, 0]
    assert is_intact(folder)


def test_the_checksum_is_private_whoever_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of the maker's process it followed the umask."""
    for name in ("use", "load"):
        monkeypatch.setattr(code_cache, name, lambda written: None)
    folder = tmp_path / "compiled" / "key"
    old = os.umask(0)
    try:
        code_cache.make(folder, folder.with_name("new"))
    finally:
        os.umask(old)
    assert (folder / CHECKSUM).stat().st_mode & 0o777 == 0o600


def kept_in(cache: Path) -> Path:
    """A folder as `make` leaves it."""
    cache.mkdir(mode=0o700, parents=True)
    folder = cache / "compiled" / "key"
    (folder / "below").mkdir(mode=0o700, parents=True)
    for each in (folder.parent, folder):
        each.chmod(0o700)
    code = folder / "below" / "x.1.nbc"
    code.write_bytes(b"code")
    code.chmod(0o600)
    (folder / CHECKSUM).write_bytes(code_cache._checksum(folder))
    (folder / CHECKSUM).chmod(0o600)
    assert is_intact(folder)
    return folder


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
