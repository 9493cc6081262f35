"""What the commands do: one completion without an editor, and looking after the engines."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from lsp_server import __version__
from lsp_server.completion.completer import Place, complete
from lsp_server.completion.prompter import Prompter
from lsp_server.documents import Document
from lsp_server.engines.interface import Engine
from lsp_server.engines.local import local_client, make_engine
from lsp_server.folders import runtime_folder
from lsp_server.settings import Settings
from model.weights.folder import find_model

PRECISIONS = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}  # bytes a weight
MAX_FILE = 512 * 2**20  # bytes
LANGUAGES = {  # LSP's identifiers where they are not the suffix itself
    ".py": "python",
    ".pyi": "python",
    ".js": "javascript",
    ".ts": "typescript",
    ".rs": "rust",
    ".rb": "ruby",
    ".md": "markdown",
    ".sh": "shellscript",
    ".h": "c",
    ".cc": "cpp",
    ".hpp": "cpp",
    ".cs": "csharp",
    ".yml": "yaml",
}


class CommandError(Exception):
    """What the user of a command should read instead of a traceback."""


def language_of(path: PurePath) -> str:
    """LSP's identifier of a file's language, by its suffix."""
    return LANGUAGES.get(path.suffix, path.suffix[1:])


def read_source(path: Path) -> str:
    """A source file's text, its line ends as they are. Raises CommandError."""
    if not path.exists():
        raise CommandError(f"there is no file {path}; check the path")
    if not path.is_file():
        raise CommandError(f"{path} is not a file; name a source file")
    if path.stat().st_size > MAX_FILE:
        raise CommandError(
            f"{path} is larger than {MAX_FILE >> 20} MiB; complete in a smaller file"
        )
    raw = path.read_bytes()
    if b"\0" in raw[:8192]:
        raise CommandError(f"{path} is a binary file; name a text file")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is not UTF-8 (byte {error.start}); convert it first") from None


def parse_place(place: str) -> tuple[Path, int, int]:
    """FILE:LINE:COL -> path and 0-based line and column. Raises CommandError."""
    match = re.fullmatch(r"(.+):([0-9]{1,9}):([0-9]{1,9})", place, re.DOTALL)
    if match is None or not int(match[2]) or not int(match[3]):
        raise CommandError(f"{place!r} is not FILE:LINE:COL with line and column counted from 1")
    return Path(match[1]), int(match[2]) - 1, int(match[3]) - 1


def document_at(path: Path, line: int, column: int) -> Document:
    """The file as a document, after a look that the position is in it. Raises CommandError."""
    document = Document(path.absolute().as_uri(), 1, language_of(path), read_source(path), "utf-32")
    if line >= document.line_count:
        raise CommandError(
            f"line {line + 1} is beyond the end of {path}, which has {document.line_count} lines"
        )
    length = document.offset_to_position(document.position_to_offset(line, 2**31))[1]
    if column > length:
        raise CommandError(
            f"column {column + 1} is beyond the end of line {line + 1}, which has {length} "
            "characters"
        )
    return document


@asynccontextmanager
async def ready_engine(settings: Settings) -> AsyncGenerator[Engine]:
    """An engine that answers. Raises CommandError."""
    engine = make_engine(settings)
    try:
        engine.start()
        state = await engine.wait_until_settled()
        if state.name != "ready":
            raise CommandError(state.message or "the engine is not ready; try again")
        yield engine
    finally:
        await engine.close()


async def complete_at(place: str, settings: Settings) -> dict[str, Any]:
    """text, range (1-based, columns in code points), attribution (fim.attribution.Match) or None,
    model, timings."""
    path, line, column = parse_place(place)
    document = document_at(path, line, column)
    prompter = Prompter.for_settings(settings)
    async with ready_engine(settings) as engine:
        snapshot = document.snapshot(line, column)
        found = await complete(Place(snapshot, path.name, prompter, engine, settings, "cli"))
    cursor, suggestion = snapshot.window_start + snapshot.offset, found.suggestion
    start, end = (document.offset_to_position(cursor + o) for o in suggestion.replace)
    return {
        "text": suggestion.text,
        "range": {"start": _one_based(start), "end": _one_based(end)},
        "attribution": None if suggestion.match is None else asdict(suggestion.match),
        "model": settings.remote.model or settings.model,
        "timings": found.trace.to_json(),
    }


def _one_based(position: tuple[int, int]) -> dict[str, int]:
    return {"line": position[0] + 1, "column": position[1] + 1}


async def start_engine(settings: Settings) -> str:
    async with ready_engine(settings):
        return f"the engine for {settings.model} is ready (fimls {__version__})"


async def engine_statuses() -> list[dict[str, Any]]:
    """The status of every engine that answers."""
    return [status for _, status in await _engines("GET", "/fimls/status") if status is not None]


async def stop_engines() -> int:
    """Tells every engine to stop; returns how many there were."""
    return sum(answer is not None for _, answer in await _engines("POST", "/fimls/stop"))


async def _engines(method: str, call: str) -> list[tuple[Path, dict[str, Any] | None]]:
    found = []
    for socket in sorted(runtime_folder().glob("*.sock")):
        client = local_client(socket)
        try:
            found.append((socket, await client.call(method, call)))
        finally:
            await client.close()
    return found


async def known_models(settings: Settings) -> list[dict[str, Any]]:
    """The bundled model and the one that the settings name, read from config.json and the weights'
    headers alone."""
    folders = {name: find_model(name) for name in ("bundled", settings.model)}
    return [
        {
            "name": name,
            "path": str(folder.path),
            "architecture": folder.model_type,
            "parameters": folder.parameters,
            "max_positions": folder.max_positions,
            "languages": folder.preferences.languages,
            "other_languages": folder.preferences.other_languages,
            "disk_bytes": sum(
                file.stat().st_size for file in folder.path.iterdir() if file.is_file()
            ),
            "weights_bytes": {
                dtype: folder.parameters * size for dtype, size in PRECISIONS.items()
            },
        }
        for name, folder in folders.items()
    ]
