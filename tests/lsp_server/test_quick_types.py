"""The kept code of attrs' classes: used when whole and ours, and otherwise as if it were not
there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Imports the types, counts what attrs had to compile, and checks that a class works.
PROGRAM = """
import builtins, lsp_server.quick_types as quick
count = 0
def counting(*arguments, real=builtins.compile, **named):
    global count
    count += arguments[2] == "exec" and "attrs generated" in arguments[1]
    return real(*arguments, **named)
builtins.compile = counting
quick.import_types()
from lsprotocol.types import Position
assert Position(1, 2) == Position(1, 2) != Position(2, 1)
print(count)
"""


def compiled_with(folder: Path) -> int:
    env = os.environ | {"FIMLS_CACHE_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_the_second_start_compiles_next_to_nothing(tmp_path: Path) -> None:
    assert compiled_with(tmp_path / "new") > 500
    assert (
        compiled_with(tmp_path / "new") < 50
    )  # attrs' own classes are there before it can be helped


@pytest.mark.parametrize(
    "damage", ["truncated", "flipped", "writable by others", "read-only folder"]
)
def test_a_doubtful_file_is_a_miss(damage: str, tmp_path: Path) -> None:
    compiled_with(tmp_path)
    (kept,) = tmp_path.iterdir()
    raw = kept.read_bytes()
    if damage == "truncated":
        kept.write_bytes(raw[: len(raw) // 2])
    elif damage == "flipped":
        kept.write_bytes(raw[:1000] + bytes([raw[1000] ^ 1]) + raw[1001:])
    elif damage == "writable by others":
        kept.chmod(0o666)
    else:
        kept.unlink()
        tmp_path.chmod(0o500)
    assert compiled_with(tmp_path) > 500
