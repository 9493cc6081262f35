"""Answers of a model that are kept in a file, so that filters can be judged again without asking
the model again.

A place costs a real model one to three seconds, and the filters after it less than a millisecond.
An answer is therefore kept whole, as far as maxTokens lets the model write, whatever would have
ended it: every set of filters then finds what it reads.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from lsp_server.commands.engine import ready_engine
from lsp_server.commands.errors import CommandError
from lsp_server.commands.source_files import lines_of
from lsp_server.completion.query import digest
from lsp_server.engines.interface import CompletionRequest, Engine, Piece
from lsp_server.settings import Settings

Kept = tuple[Piece, ...]


class AnswerFile:
    """The answers in a file, by key. New ones are added to it as they come."""

    def __init__(self, path: Path) -> None:
        """Raises CommandError: a file with something else in it."""
        self._path = path
        self._kept: dict[str, Kept] = {}
        if path.exists():
            for where, line in lines_of(path):
                key, pieces = _read(line, where)
                self._kept[key] = pieces

    def find(self, key: str) -> Kept | None:
        return self._kept.get(key)

    def keep(self, key: str, pieces: Kept) -> None:
        """Raises OSError."""
        self._kept[key] = pieces
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_written(key, pieces) + "\n")


class KnownAnswers:
    """Answers from a file; what it lacks is asked of the settings' engine, which starts with the
    first such question."""

    def __init__(self, file: AnswerFile, settings: Settings) -> None:
        self._file = file
        self._settings = settings
        self._stack = AsyncExitStack()
        self._engine: Engine | None = None
        self._starting = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        """Raises EngineUnavailable, CommandError, OSError."""
        key = self._key(request)
        pieces = self._file.find(key)
        if pieces is None:
            engine = await self._started()
            pieces = tuple([piece async for piece in engine.complete(request)])
            self._file.keep(key, pieces)
        for piece in pieces:
            yield piece

    async def _started(self) -> Engine:
        async with self._starting:
            if self._engine is None:
                self._engine = await self._stack.enter_async_context(ready_engine(self._settings))
            return self._engine

    def _key(self, request: CompletionRequest) -> str:
        """Of the model, how it is run, and all that decides on its answer."""
        engine = replace(self._settings.engine, cache_memory=0, cache_disk=0)
        asked = replace(request, client="", idle=False)
        return digest(repr((self._settings.model, engine, asked))).hex()


def _written(key: str, pieces: Kept) -> str:
    texts = [[piece.text, list(piece.logprobs)] for piece in pieces if piece.text or piece.logprobs]
    return json.dumps({"key": key, "pieces": texts}, ensure_ascii=True)


def _read(line: str, where: str) -> tuple[str, Kept]:
    """Raises CommandError."""
    row: Any = None
    with suppress(ValueError, RecursionError):
        row = json.loads(line)
    try:
        pieces = [Piece(str(text), tuple(map(float, logprobs))) for text, logprobs in row["pieces"]]
        return str(row["key"]), tuple(pieces)
    except (TypeError, ValueError, KeyError, OverflowError):
        raise CommandError(
            f"{where} is no kept answer; delete the line, or name another file for the answers"
        ) from None
