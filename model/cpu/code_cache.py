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

from model.private_files import is_private_folder, own_private_folder

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
    except (PackageNotFoundError, ImportError):
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


def is_intact(folder: Path) -> bool:
    """Whether its files are as `make` wrote them, in folders that only this user can write to."""
    levels = (folder.parent.parent, folder.parent, folder)
    try:
        private = all(map(is_private_folder, levels))
        return private and (folder / CHECKSUM).read_bytes() == _checksum(folder)
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
        (written / CHECKSUM).write_bytes(_checksum(written))
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
    from model.cpu.blocks.compiled import product, sharing, step

    tiles = panels.load(folder)
    if tiles is not None:
        sharing.load()
        product.load(tiles)
        step.load()


def _checksum(folder: Path) -> bytes:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != CHECKSUM:
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return digest.digest()


def _end_with_input(written: Path) -> None:
    os.read(0, 1)
    for _ in range(REMOVALS):  # the other thread may write a file while the folder is removed
        shutil.rmtree(written, ignore_errors=True)
        if not written.exists():
            break
    os._exit(1)


if __name__ == "__main__":
    wanted = Path(sys.argv[1])
    here = wanted.with_name(f"{wanted.name}-{os.getpid()}")
    threading.Thread(target=_end_with_input, args=(here,), daemon=True).start()
    if "behind" in sys.argv[2:] and hasattr(os, "nice"):  # not on Windows
        os.nice(19)
    make(wanted, here)
