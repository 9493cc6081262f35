"""The folder for the machine code that numba and LLVM make of blocks/, in the user's cache folder.

Compiling takes seconds and memory, so a process of its own does it, once for each version of the
source, numba and CPU. The engine runs what is kept there. So the folder has to be the user's alone,
and its files as they were written: their checksum is written last. In doubt it compiles again.

    python -m model.cpu.code_cache FOLDER [behind]   compiles into FOLDER, behind all other work;
                                                     ends when its input is closed
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from model.private_files import (
    NotOwned,
    check_way,
    is_private_folder,
    own_private_folder,
    read_private_file,
    write_private_file,
)

FOLDER = Path(__file__).parent
SOURCES = (
    *(FOLDER / "blocks" / f"{name}.py" for name in ("layout", "panels")),
    *sorted((FOLDER / "blocks" / "compiled").glob("*.py")),
    *sorted((FOLDER / "blocks" / "tiles").glob("*.py")),
)
CHECKSUM = "sha256"
REMOVALS = 20
KEPT_S = 30 * 86400.0  # code of other versions, or of other machines with the same home


def code_folder(cache_dir: Path) -> Path | None:
    """The folder of the code for this machine; None without numba, or if it is switched off."""
    # Switched off, the functions are plain Python, and hours slow.
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        return None
    try:
        versions = f"{version('numba')} {version('llvmlite')} {version('numpy')} {sys.version}"
        from llvmlite import binding
    except (PackageNotFoundError, ImportError, OSError):  # the last: of its shared object
        return None
    # The folder's name covers everything by which numba itself finds what it has compiled: it must
    # not take this folder's code for that of another machine or source.
    chosen = [os.environ.get(name, "") for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")]
    cpu = f"{binding.get_host_cpu_name()} {binding.get_host_cpu_features().flatten()} {chosen}"
    digest = hashlib.sha256(f"{cpu} {versions}".encode())
    for source in SOURCES:
        digest.update(f"{source} {source.stat().st_mtime_ns}".encode() + source.read_bytes())
    key = digest.hexdigest()[:16]
    return cache_dir / "compiled" / key


def check_place(folder: Path) -> None:
    """Raises OSError, with the remedy, where others could write into the folder or put another one
    in its place. It need not be there yet."""
    check_way(folder.parent.parent)
    for level in (folder.parent.parent, folder.parent, folder):
        with contextlib.suppress(FileNotFoundError):
            if not is_private_folder(level):
                raise NotOwned(
                    f"others can write to {level}, or it is a link. Close it: chmod 700 '{level}'"
                )


def is_intact(folder: Path) -> bool:
    """Whether its files are as `make` wrote them, and nobody else can have written or exchanged
    one, nor can do so."""
    try:
        before = folder.lstat()
        check_place(folder)
        intact = read_private_file(folder / CHECKSUM) == _checksum(folder)
        check_place(folder)
        return intact and os.path.samestat(before, folder.lstat())
    except OSError:
        return False


def start(folder: Path, *, awaited: bool) -> subprocess.Popen[bytes]:
    """Starts a process that makes the folder. It ends with this one. Raises OSError.

    awaited: nothing can be written before it is done, so it does not stand back for other work.
    """
    # -P keeps the working directory off its search path: a user's file named numba.py would run.
    command = [sys.executable, "-P", "-m", "model.cpu.code_cache", str(folder)]
    command += [] if awaited else ["behind"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


def make(folder: Path, written: Path) -> None:
    """Compiles into `written`, renames it to `folder`, deletes old code. Raises OSError."""
    own_private_folder(folder.parent)
    for other in folder.parent.iterdir():
        with contextlib.suppress(OSError):  # another process may delete it, too
            if time.time() - other.stat().st_mtime > KEPT_S:
                shutil.rmtree(other)
    own_private_folder(written)
    try:
        use(written)
        load(written)
        write_private_file(written / CHECKSUM, _checksum(written))
        try:
            written.rename(folder)
        except OSError:  # there is one already
            if not is_intact(folder):
                shutil.rmtree(folder)
                written.rename(folder)
    finally:
        shutil.rmtree(written, ignore_errors=True)


def use(folder: Path) -> None:
    """Has numba keep its code in the folder, before it is imported. Raises OSError."""
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    with contextlib.suppress(OSError):
        os.utime(folder)
    from model.cpu.blocks.compiled import product, step

    for function in (product.multiply, step.share):
        if not Path(str(function.stats.cache_path)).is_relative_to(folder):
            raise OSError(f"numba keeps no code in {folder}")


def load(folder: Path) -> None:
    """Loads the compiled product and pass, or compiles them where the folder has none."""
    from model.cpu.blocks import panels
    from model.cpu.blocks.compiled import product, step

    tiles = panels.load(folder)
    if tiles is not None:
        product.load(tiles)
        step.load()


def _checksum(folder: Path) -> bytes:
    """Raises OSError where the folder holds anything else than private folders and files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            if not is_private_folder(path):
                raise NotOwned(f"others can write to {path}")
        elif path != folder / CHECKSUM:
            content = read_private_file(path)
            digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return digest.digest()


def _end_with_input(written: Path) -> None:
    os.read(0, 1)
    for _ in range(REMOVALS):  # the other thread may write a file while the folder is removed
        shutil.rmtree(written, ignore_errors=True)
        if not written.exists():
            break
    os._exit(1)


def main(folder: str, how: str = "") -> None:
    wanted = Path(folder)
    here = wanted.with_name(f"{wanted.name}-{os.getpid()}")
    threading.Thread(target=_end_with_input, args=(here,), daemon=True).start()
    if how == "behind" and hasattr(os, "nice"):  # not on Windows
        os.nice(19)
    os.umask(0o077)  # numba makes folders and files as it allows
    make(wanted, here)


if __name__ == "__main__":
    main(*sys.argv[1:])
