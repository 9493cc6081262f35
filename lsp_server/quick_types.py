"""lsprotocol's types in half the time: the code that attrs writes for its 569 classes is compiled
once a machine.

attrs generates source for every class at import and compiles it, which is most of what `initialize`
waits for (benchmarks/RESULTS.md). Here the compiled code is kept in the cache folder, looked up by
a hash of the very source that attrs wants compiled, so another version of attrs or lsprotocol just
finds nothing. Doubt about the file is a miss.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import marshal
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

from lsp_server.folders import cache_folder, make_private

CHECKSUM_BYTES = 32


def import_types() -> None:
    """Imports lsprotocol.types; afterwards `import lsprotocol.types` costs nothing."""
    path = cache_file()
    with compiled_code(path):
        import lsprotocol.types  # noqa: F401


def cache_file() -> Path:
    """Where this interpreter's compiled code is kept."""
    return cache_folder() / f"attrs-{sys.implementation.cache_tag}-{sys.hexversion:x}.marshal"


@contextlib.contextmanager
def compiled_code(path: Path) -> Iterator[None]:
    """While it lasts, attrs takes compiled code from the file; what it had to compile is there the
    next time."""
    import attr._make

    known = read(path)
    used: dict[bytes, CodeType] = {}

    def compile_once(source: str, filename: str, mode: str, *rest: Any, **named: Any) -> Any:
        key = hashlib.blake2b(f"{filename}\n{mode}\n{source}".encode(), digest_size=16).digest()
        code = known.get(key) or builtins.compile(source, filename, mode, *rest, **named)
        used[key] = code
        return code

    # A name in the module hides the builtin there. attrs without such a call is merely not helped.
    attr._make.__dict__["compile"] = compile_once
    try:
        yield
    finally:
        del attr._make.__dict__["compile"]
        if used.keys() - known.keys():
            with contextlib.suppress(OSError):
                write(path, used)


def read(path: Path) -> dict[bytes, CodeType]:
    """The file's code by its source's hash; nothing unless the file is whole and only this user
    could write it."""
    try:
        info = path.stat()
        if hasattr(os, "getuid") and (info.st_uid != os.getuid() or info.st_mode & 0o022):
            return {}
        raw = path.read_bytes()
        if hashlib.sha256(raw[CHECKSUM_BYTES:]).digest() != raw[:CHECKSUM_BYTES]:
            return {}
        found = marshal.loads(raw[CHECKSUM_BYTES:])
    except (OSError, ValueError, EOFError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def write(path: Path, code: dict[bytes, CodeType]) -> None:
    """Replaces the file as a whole, so that another window never reads half of one. Raises
    OSError."""
    body = marshal.dumps(code)
    make_private(path.parent)
    descriptor, partial = tempfile.mkstemp(dir=path.parent)  # mode 0600
    with os.fdopen(descriptor, "wb") as sink:
        sink.write(hashlib.sha256(body).digest() + body)
    Path(partial).replace(path)
