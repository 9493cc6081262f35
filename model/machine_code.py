"""Machine code that numba makes of model.compiled_step, kept in the user's cache folder.

To compile takes seconds and memory, so a process of its own does it, once for each version of the source, numba and
CPU. What is kept is run as a program, so the folder has to be the user's alone, and its files as they were written:
their checksum is written last. Any doubt is a miss.

    python -m model.machine_code FOLDER     compiles into FOLDER; ends early when its input is closed
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from model.machine import is_private, own_folder, processor

SOURCE = Path(__file__).with_name("compiled_step.py")
CHECKSUM = "sha256"
KEPT_S = 30 * 86400.0  # code of other versions, or of other machines with the same home


def code_folder(cache: Path) -> Path | None:
    """Where the code for this machine is, or will be, in a folder for caches; None without numba, or with it off."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":  # the functions are then plain Python, and hours slow
        return None
    try:
        versions = f"{version('numba')} {version('llvmlite')} {version('numpy')} {sys.version}"
    except PackageNotFoundError:
        return None
    # numba looks at the source's path and time, too, and would compile again: that belongs to the name.
    source = f"{SOURCE} {SOURCE.stat().st_mtime_ns}".encode() + SOURCE.read_bytes()
    key = hashlib.sha256(f"{processor()} {versions}".encode() + source).hexdigest()[:16]
    return cache / "compiled" / key


def is_intact(folder: Path) -> bool:
    """Whether its files are as `make` wrote them, in folders that only this user can write to."""
    try:
        private = is_private(folder.parent) and is_private(folder)
        return private and (folder / CHECKSUM).read_text() == _checksum(folder)
    except OSError:
        return False


def start(folder: Path) -> subprocess.Popen[bytes]:
    """A process that makes the folder; it ends with this one. Raises OSError."""
    command = [sys.executable, "-P", "-m", "model.machine_code", str(folder)]  # -P: see lsp_server.spawn
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


def make(folder: Path) -> None:
    """Compiles; the folder appears as a whole. What nobody has used for long goes. Raises OSError."""
    own_folder(folder.parent)
    for other in folder.parent.iterdir():
        if other != folder and time.time() - other.stat().st_mtime > KEPT_S:
            shutil.rmtree(other, ignore_errors=True)
    written = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        use(written)
        from model.compiled_step import forward, toy

        forward(*toy())
        (written / CHECKSUM).write_text(_checksum(written))
        if not is_intact(folder):
            shutil.rmtree(folder, ignore_errors=True)
            written.rename(folder)
    finally:
        shutil.rmtree(written, ignore_errors=True)


def use(folder: Path) -> None:
    """Has numba read and write code there; to be called before model.compiled_step is imported."""
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    with contextlib.suppress(OSError):
        os.utime(folder)


def _checksum(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != CHECKSUM:
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _end_with_input() -> None:
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_input, daemon=True).start()
    with contextlib.suppress(OSError):
        os.nice(19)
    make(Path(sys.argv[1]))
