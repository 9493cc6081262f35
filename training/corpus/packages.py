"""The packages of the corpus: their wheels, and a check that their licences are those that
packages.toml names."""

from __future__ import annotations

import email
import hashlib
import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from training.corpus.folder import SPLITS, CorpusError

# One wheel a version, whatever machine builds the corpus: hashes hold, and macOS has the smallest
# of the big ones.
WHEELS = (
    "--only-binary :all: --platform macosx_14_0_arm64 --implementation cp --python-version 3.13"
).split()
LICENCES = {  # SPDX name -> how metadata and licence files say it
    "MIT": r"\bMIT\b|Permission is hereby granted, free of charge",
    "BSD-2-Clause": r"BSD-2-Clause|\bBSD\b(?!-\d)",
    "BSD-3-Clause": r"BSD-3-Clause|\bBSD\b(?!-\d)",
    "Apache-2.0": r"Apache",
    "PSF-2.0": r"PSF|Python Software Foundation",
}
NOT_PERMISSIVE = re.compile(
    r"GPL|GNU|\bMPL|Mozilla|\bEPL|Eclipse|CDDL|SSPL|BUSL|Business Source|Proprietary"
)


@dataclass(frozen=True)
class Package:
    """One line of packages.toml with its line of packages.lock; the standard library has no archive
    and no hash."""

    name: str
    split: str
    licence: str
    version: str
    sha256: str | None


def read_packages(table: Path, lock: Path) -> list[Package]:
    """The packages in the order they are read: held-out ones first. Raises CorpusError."""
    try:
        wanted = tomllib.loads(table.read_text(encoding="utf-8"))
        splits = [(split, [*wanted["held_out"][split].items()]) for split in SPLITS[:2]]
        splits.append(("train", [*wanted["train"].items()]))
        lines = lock.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise CorpusError(
            f"{error.filename} cannot be read ({error.strerror}): restore it"
        ) from None
    except ValueError as error:
        raise CorpusError(
            f"{table} and {lock.name} cannot be read ({error}): correct them"
        ) from None
    except (KeyError, TypeError, AttributeError):
        raise CorpusError(
            f"{table} needs the tables held_out.test, held_out.validation and train: add them"
        ) from None
    locked = {}
    for line in lines:
        if match := re.fullmatch(r"([\w.-]+)==(\S+) --hash=sha256:([0-9a-f]{64})", line):
            locked[match[1]] = match[2], match[3]
    packages = []
    for split, licences in splits:
        if split == "train" and "standard_library" in wanted:
            packages.append(Package("python", "train", "PSF-2.0", wanted["standard_library"], None))
        for name, licence in licences:
            if str(licence) not in LICENCES:
                raise CorpusError(
                    f"{table.name}: {name} is under {licence}; only {', '.join(LICENCES)} are taken"
                )
            if name not in locked:
                raise CorpusError(
                    f"{lock.name} has no {name}: add the line NAME==VERSION --hash=sha256:HASH "
                    "for it"
                )
            packages.append(Package(name, split, licence, *locked[name]))
    if twice := [name for name, count in Counter(p.name for p in packages).items() if count > 1]:
        raise CorpusError(
            f"{table.name} has {', '.join(twice)} in two splits: a package belongs to one"
        )
    return packages


def archives_by_hash(folder: Path) -> dict[str, Path]:
    return {hashlib.sha256(p.read_bytes()).hexdigest(): p for p in sorted(folder.rglob("*.whl"))}


def fetch(packages: list[Package], folder: Path) -> dict[str, Path]:
    """SHA-256 -> wheel, of all packages; what the folder lacks is downloaded. Raises
    CorpusError."""
    folder.mkdir(parents=True, exist_ok=True)
    found = archives_by_hash(folder)
    if missing := [p for p in packages if p.sha256 and p.sha256 not in found]:
        print(
            f"downloading {len(missing)} packages: {' '.join(p.name for p in missing)}", flush=True
        )
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
            requirements.writelines(
                f"{p.name}=={p.version} --hash=sha256:{p.sha256}\n" for p in missing
            )
            requirements.flush()
            pip = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "--ignore-requires-python",
                *WHEELS,
            ]
            pip += ["--require-hashes", "-r", requirements.name, "-d", str(folder)]
            run = subprocess.run(pip, capture_output=True, text=True)
        if run.returncode:
            said = next(
                (x for x in run.stderr.splitlines() if x.startswith("ERROR")), ""
            ).removeprefix("ERROR: ")
            raise CorpusError(
                f"pip could not download them ({said}): check the network, or put the wheels that "
                f"packages.lock names into {folder}"
            )
        found = archives_by_hash(folder)
        if lost := [p.name for p in missing if p.sha256 not in found]:
            raise CorpusError(
                f"the wheels of {', '.join(lost)} are not those of packages.lock: build again"
            )
    return found


@contextmanager
def opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(archive) as z:
            yield z
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise CorpusError(
            f"{archive} cannot be read ({error}): delete it and build again"
        ) from error


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The Python files of a wheel, in the order of their names. Raises CorpusError."""
    with opened(archive) as z:
        for name in sorted(n for n in z.namelist() if n.endswith(".py")):
            yield name, z.read(name)


def standard_library() -> Iterator[tuple[str, bytes]]:
    """Lib/ of the running Python, without what is installed into it or written for one machine."""
    root = Path(sysconfig.get_paths()["stdlib"]).resolve()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if not re.match(r"(site|dist)-packages/|config-|_sysconfigdata", name):
            yield name, path.read_bytes()


def licence_found(archive: Path) -> str:
    """What a wheel says of its licence: the expression in its metadata, else classifiers, field, or
    licence file.

    Raises CorpusError.
    """
    with opened(archive) as z:
        info = next(
            (n for n in z.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)), None
        )
        if info is None:
            raise CorpusError(f"{archive} has no metadata: delete it and build again")
        metadata = email.message_from_bytes(z.read(info))
        if expression := metadata.get("License-Expression"):
            return str(expression)
        if classifiers := [
            c for c in metadata.get_all("Classifier", []) if c.startswith("License ::")
        ]:
            return "; ".join(classifiers)
        if field := str(metadata.get("License") or "").strip():
            return field.splitlines()[0]
        for name in sorted(
            n for n in z.namelist() if re.search(r"\.dist-info/(.*/)?LICEN[CS]E[^/]*$", n)
        ):
            text = " ".join(z.read(name).decode("utf-8", "replace").split())
            for spelling in LICENCES.values():
                if match := re.search(spelling, text):
                    return f"{name.rsplit('/', 1)[-1]}: {text[match.start() : match.start() + 60]}"
    return "none"


def contradiction(package: Package, found: str) -> str | None:
    """Why the licence found does not bear out the one in packages.toml, or None."""
    if not re.search(LICENCES[package.licence], found):
        return f"packages.toml says {package.licence}, its metadata {found!r}"
    alternatives = re.split(r"\bOR\b", found)
    if package.split == "train" and all(NOT_PERMISSIVE.search(a) for a in alternatives):
        return f"its metadata says {found!r}, which is no licence to train on"
    return None
