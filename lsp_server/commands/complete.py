"""`fimls complete FILE:LINE:COL`: one completion without an editor."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lsp_server.commands.engine import ready_engine
from lsp_server.commands.errors import CommandError
from lsp_server.commands.source_files import language_of, read_source
from lsp_server.completion.explain import REASONS
from lsp_server.completion.query import ask_engine, query_at
from lsp_server.context.secret_files import is_secret_file
from lsp_server.documents import Document, Snapshot
from lsp_server.session.prompter import Prompter
from lsp_server.settings import Settings


async def print_completion(place: str, settings: Settings, *, as_json: bool) -> None:
    """The command. Raises CommandError, ModelError, FormatError, EngineUnavailable, OSError."""
    answer = await complete_at(place, settings)
    if as_json:
        print(json.dumps(answer))
    elif answer["text"]:
        print(answer["text"])
    else:
        withheld = [REASONS[each] for each in answer["timings"]["reasons"] if "secret" in each]
        print(": ".join(("fimls: no suggestion here", *withheld)) + ".", file=sys.stderr)


async def complete_at(place: str, settings: Settings) -> dict[str, Any]:
    """The completion at FILE:LINE:COL, as --json prints it.

    The range that it replaces is 1-based, its columns count code points; attribution is a
    fim.attribution.Match or None. Raises what `print_completion` does.
    """
    path, line, column = parse_place(place)
    document = document_at(path, line, column)
    prompter = Prompter.for_settings(settings)
    snapshot = snapshot_at(document, path, line, column)
    async with ready_engine(settings) as engine:
        done = await ask_engine(engine, query_at(snapshot, path.name, prompter, settings, "cli"))
    suggestion = done.suggestion
    cursor = snapshot.window_start + snapshot.offset
    start, end = suggestion.replace
    return {
        "text": suggestion.text,
        "range": {
            "start": one_based_position(document, cursor + start),
            "end": one_based_position(document, cursor + end),
        },
        "attribution": asdict(suggestion.match) if suggestion.match else None,
        "model": settings.remote.model or settings.model,
        "timings": done.trace.to_json(),
    }


def parse_place(place: str) -> tuple[Path, int, int]:
    """FILE:LINE:COL -> path and 0-based line and column. Raises CommandError."""
    match = re.fullmatch(r"(.+):([0-9]{1,9}):([0-9]{1,9})", place, re.DOTALL)
    if match is None or not int(match[2]) or not int(match[3]):
        raise CommandError(f"{place!r} is not FILE:LINE:COL with line and column counted from 1")
    return Path(match[1]), int(match[2]) - 1, int(match[3]) - 1


def document_at(path: Path, line: int, column: int) -> Document:
    """The file as a document. Raises CommandError, also where the position is not in the file."""
    document = Document(path.absolute().as_uri(), 1, language_of(path), read_source(path), "utf-32")
    if line >= document.line_count:
        raise CommandError(
            f"line {line + 1} is beyond the end of {path}, which has {document.line_count} lines"
        )
    end_of_line = document.position_to_offset(line, 2**31)
    _, length = document.offset_to_position(end_of_line)
    if column > length:
        raise CommandError(
            f"column {column + 1} is beyond the end of line {line + 1}, which has {length} "
            "characters"
        )
    return document


def snapshot_at(document: Document, path: Path, line: int, column: int) -> Snapshot:
    """The file's document with its cursor; it says whether the file is secret."""
    return replace(document.snapshot(line, column), secret=is_secret_file(path))


def one_based_position(document: Document, offset: int) -> dict[str, int]:
    line, column = document.offset_to_position(offset)
    return {"line": line + 1, "column": column + 1}
