"""Source files of a folder, rows of a .jsonl file, and the held-out packages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lsp_server.commands.errors import CommandError
from lsp_server.commands.source_files import read_packages


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, newline="")
    return folder


def test_a_folders_own_source_files_by_package(tmp_path: Path) -> None:
    wanted = {
        "one.py": "a\r\nb\n",
        "src/two.rs": "c",
        "src/deep/er/three.py": "d",
        "zoo/four.py": "e",
    }
    others = {
        ".hidden/x.py": "",
        "venv/x.py": "",
        "src/_vendor/x.py": "",
        "node_modules/x.js": "",
        "readme.md": "",
        "own/pyvenv.cfg": "",
        "own/x.py": "",
        "src/.x.py": "",
        "zoo/large.py": "x" * 200_001,
        ".fimlsignore": "ours/\n",
        "src/ours/x.py": "",
        "src/.aws/x.py": "",
    }
    folder = write(tmp_path / "place", **wanted, **others)
    (folder / "binary.py").write_bytes(b"\0")
    (folder / "latin.py").write_bytes("é".encode("latin-1"))
    (folder / "gone.py").symlink_to("nowhere")
    assert read_packages(folder) == {
        "place": [("one.py", "a\nb\n")],
        "src": [("src/two.rs", "c"), ("src/deep/er/three.py", "d")],
        "zoo": [("zoo/four.py", "e")],
    }


def test_rows_of_a_file(tmp_path: Path) -> None:
    rows = [
        {"package": "a", "path": "x.py", "text": "1\u2028\n", "more": 0},
        {"package": "a", "path": "y", "text": ""},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8"
    )
    assert read_packages(path) == {"a": [("x.py", "1\u2028\n"), ("y", "")]}


def test_without_a_path_the_held_out_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lsp_server.commands.source_files.HELD_OUT", tmp_path)
    (tmp_path / "validation.jsonl").write_text('{"package": "a", "path": "b", "text": "c"}')
    assert read_packages(None, "validation") == {"a": [("b", "c")]}
    with pytest.raises(CommandError, match="are not here; name a folder"):
        read_packages(None, "test")
