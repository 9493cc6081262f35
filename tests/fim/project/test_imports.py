"""Which files of a project a text imports."""

from __future__ import annotations

import pytest

from fim.project import imported_names, imported_paths

PYTHON = "a/__init__.py a/b.py a/c/__init__.py a/c/d.py a/c/e.py tests/b.py src/x/y.py".split()
SCRIPT = "src/a.ts src/b/index.ts src/c.js lib/d.tsx node.ts".split()
GO = "pkg/store/store.go pkg/store/open.go pkg/other/x.go main.go".split()
RUST = "src/main.rs src/a.rs src/b/mod.rs src/b/c.rs".split()
JAVA = "src/main/java/org/x/A.java src/main/java/org/x/B.java".split()
C = "src/a.c src/a.h include/lib/b.h".split()
CASES = [
    ("python", "import a.b\n", "main.py", PYTHON, ["a/b.py"]),
    (
        "python",
        "from a import b, c\n",
        "main.py",
        PYTHON,
        ["a/b.py", "a/c/__init__.py", "a/__init__.py"],
    ),
    ("python", "from a.c.d import (\n    F,\n    G,\n)\n", "main.py", PYTHON, ["a/c/d.py"]),
    ("python", "from . import e\n", "a/c/d.py", PYTHON, ["a/c/e.py", "a/c/__init__.py"]),
    ("python", "from ..b import X as Y\n", "a/c/d.py", PYTHON, ["a/b.py"]),
    ("python", "from x.y import z\n", "src/x/w.py", PYTHON, ["src/x/y.py"]),
    ("python", "import os\nfrom ... import q\n", "a/b.py", PYTHON, []),
    (
        "typescript",
        'import { A } from "./a"\nimport b from "./b"\n',
        "src/m.ts",
        SCRIPT,
        ["src/a.ts", "src/b/index.ts"],
    ),
    (
        "javascript",
        'const c = require("./c.js")\nimport("../lib/d")\nimport "react"\n',
        "src/m.js",
        SCRIPT,
        ["src/c.js", "lib/d.tsx"],
    ),
    (
        "go",
        'import (\n\t"fmt"\n\t"example.com/me/app/pkg/store"\n)\n',
        "main.go",
        GO,
        ["pkg/store/open.go", "pkg/store/store.go"],
    ),
    (
        "rust",
        "mod a;\nuse crate::b::c::{D};\n",
        "src/main.rs",
        RUST,
        ["src/a.rs", "src/b/mod.rs", "src/b/c.rs"],
    ),
    (
        "java",
        "import org.x.B;\nimport java.util.List;\n",
        "src/main/java/org/x/A.java",
        JAVA,
        ["src/main/java/org/x/B.java"],
    ),
    (
        "c",
        '#include "a.h"\n#include <lib/b.h>\n#include <stdio.h>\n',
        "src/a.c",
        C,
        ["src/a.h", "include/lib/b.h"],
    ),
    ("prolog", "import a.b\n", "x.pl", PYTHON, []),
]


@pytest.mark.parametrize(("language", "text", "path", "known", "found"), CASES)
def test_imported_paths(
    language: str, text: str, path: str, known: list[str], found: list[str]
) -> None:
    assert list(imported_paths(text, path, language, known)) == found


def test_imported_names() -> None:
    python = "from a.b import (\n    C, d as e\n)\nimport x.y\nz = 1\n"
    assert imported_names(python, "python") >= {"C", "e", "y"}
    assert "z" not in imported_names(python, "python")
    assert imported_names('import { A, b as c } from "./a"', "typescript") >= {"A", "c"}
    assert imported_names("use crate::a::{B, C};", "rust") >= {"B", "C"}
    assert imported_names("anything", "") == frozenset()
