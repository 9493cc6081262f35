"""A workspace that somebody made to harm: canaries in all its files, links out of it, a FIFO, a
file of 100 MB, many files, and patterns in .gitignore that take a regular expression for ever."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from tests.salt import FORMS, Salt

PATTERNS = ["*a" * 40 + "*b", "**/a" * 40 + "/**/b", "?*" * 200 + "x", "[a-z]*" * 60 + "[!a-z]"]
PATTERNS += ["a" + " " * 5000 + "b", "!" * 999, "[" * 999, "ignored/", "*_ignored.py"]
SOURCE = """import os

from {package}.models import Basket


class Order{number}(Basket):
    def add_article_{number}(self, number: int, amount: int = 1) -> None:
        self.articles[number] = amount


def {canary}(order):
    return order
"""


@dataclass
class Hostile:
    """The workspace. main: a document in it. hidden: what no prompt may hold."""

    root: Path
    main: Path
    salt: Salt
    hidden: list[str] = field(default_factory=list)

    def canary(self) -> str:
        """A name that is to stay unknown."""
        name = f"canary_{self.salt.word(12).lower()}"
        self.hidden.append(name)
        return name


def make(top: Path, files: int = 50_000) -> Hostile:
    root = top / "work"
    package = root / "package"
    package.mkdir(parents=True)
    made = Hostile(root, package / "main.py", Salt(11))
    (root / ".git").mkdir()
    (root / ".gitignore").write_text("\n".join(PATTERNS) + "\n")
    _outside(top, made)
    _ignored(made)
    for number in range(200):  # beside the document
        secret = list(FORMS.values())[number % len(FORMS)](made.salt)
        text = SOURCE.format(package="package", number=number, canary=f"order_{number}")
        (package / f"orders_{number}.py").write_text(f"{text}\n\n{secret}\n")
    os.mkfifo(package / "models.py")
    with (package / "everything.py").open("wb") as file:
        file.write(SOURCE.format(package="x", number=0, canary=made.canary()).encode())
        file.truncate(100 * 2**20)
    for number in range(files):
        folder = root / f"part_{number // 1000}"
        if number % 1000 == 0:
            folder.mkdir()
        (folder / f"file_{number}.py").write_text(f"def function_{number}():\n    pass\n")
    made.main.write_text(
        "from package.orders_7 import Order7\nfrom package.outside import x\n\n"
        "order = Order7()\norder.add_"
    )
    return made


def _outside(top: Path, made: Hostile) -> None:
    """Links to what is not in the workspace."""
    outside = top / "outside"
    outside.mkdir()
    text = SOURCE.format(package="x", number=1, canary=made.canary())
    (outside / "outside.py").write_text(text)
    package = made.root / "package"
    (package / "outside.py").symlink_to(outside / "outside.py")
    (package / "folder").symlink_to(outside)
    (made.root / "round").symlink_to(made.root)
    (package / "itself.py").symlink_to(package / "itself.py")


def _ignored(made: Hostile) -> None:
    """Files that are not to be shown by their names and places."""
    package = made.root / "package"
    places = {
        "ignored/a.py": "",
        "b_ignored.py": "",
        "nested/deep/c.py": "nested/.gitignore:deep",
        "private/d.py": "private/.fimlsignore:*.py",
        ".aws/e.py": "",
        "fifo/f.py": "",
        "huge/g.py": "",
        "node_modules/h.py": "",
    }
    for place, rule in places.items():
        path = package / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SOURCE.format(package="x", number=2, canary=made.canary()))
        file, _, line = rule.partition(":")
        if line:
            (package / file).write_text(f"{line}\n")
    os.mkfifo(package / "fifo" / ".gitignore")
    (package / "huge" / ".gitignore").write_text("*a*b\n" * 100_000)
