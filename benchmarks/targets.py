"""The sides that a typing trace is played against: fimls itself, or a peer's model with a minimal
client.

A side is written KIND[:PRECISION][,OPTION=VALUE...]: `ours`, `ours,contextTokens=512`,
`llama:q8_0,draft=10`, `transformers:float32`, `llama.vim:file` (llama_vim.py). Options are fimls'
settings (of a peer: those of the prompt and the answer), and for peers `draft`, the tokens of a
draft, and `front=1`: asked by the real server, too, as its remote engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from benchmarks.editor import Editor, Home, position, window
from benchmarks.figures import cpu_seconds
from benchmarks.peers import Exports, process
from benchmarks.sides import dtype_and_quantization
from fim import CursorContext
from lsp_server.commands.errors import CommandError
from lsp_server.commands.evaluation.evaluate import with_setting
from lsp_server.completion.query import ask_engine, query_at
from lsp_server.documents import Snapshot
from lsp_server.engines.http import HttpClient, Where
from lsp_server.engines.interface import EngineUnavailable
from lsp_server.engines.local import local_client
from lsp_server.engines.remote import RemoteEngine
from lsp_server.session.prompter import Prompter
from lsp_server.settings import RemoteSettings, Settings
from model.machine import memory_bytes

PRECISIONS = {"ours": "", "llama": "q8_0", "llama.vim": "file", "transformers": "float32"}
WINDOW = 200_000  # characters around the cursor that a client of a peer reads


@dataclass(frozen=True, slots=True)
class Side:
    """name: as it was typed."""

    name: str
    kind: str
    precision: str
    settings: Settings
    options: dict[str, Any]  # as a client sends them
    draft: int = 0
    through_front: bool = False


@dataclass(slots=True)
class Answer:
    """What came back; ms is None while nothing has. prefilled: the ids of the prompt that were
    computed for it."""

    text: str = ""
    insertion: bool = True  # it replaces nothing
    item: dict[str, Any] | None = None
    asked: float = field(default_factory=time.perf_counter)
    ms: float | None = None
    prompt: int | None = None
    prefilled: int | None = None
    decoded: int | None = None
    passes: int | None = None


class Target(Protocol):
    pids: list[int]

    def open(self, path: Path, language: str, text: str) -> None: ...
    def close(self, path: Path) -> None: ...
    def text(self, path: Path) -> str: ...
    def change(self, path: Path, start: int, end: int, new: str) -> None: ...
    def focus(self, path: Path, at: int) -> None: ...
    def ask(self, path: Path, at: int) -> Answer:
        """Asks; the answer is filled in when it comes. What was asked before and is not answered
        yet is cancelled."""

    def accepted(self, answer: Answer) -> None: ...
    def client(self) -> HttpClient:
        """The way to the model itself."""


def parse_side(text: str, model: str) -> Side:
    """Raises CommandError."""
    head, *pairs = text.split(",")
    kind, _, precision = head.partition(":")
    if kind not in PRECISIONS:
        raise CommandError(f"there is no side {kind!r}; choose from {', '.join(PRECISIONS)}")
    precision = precision or PRECISIONS[kind]
    settings, options, draft, front = Settings(model=model), {"model": model}, 0, False
    if kind == "ours" and precision:
        dtype, quantization = dtype_and_quantization(precision)
        pairs += [f"engine.dtype={dtype}", f"engine.quantization={quantization or 'none'}"]
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key == "draft" and kind != "ours":
            draft = int(value)
            continue
        if key == "front" and kind != "ours":
            front = value == "1"
            continue
        settings = with_setting(settings, pair)
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return Side(text, kind, precision, settings, options, draft, front)


class Ours:
    """The real server over stdio. Also a peer behind it, as the remote engine of the settings."""

    def __init__(self, editor: Editor, home: Home, pids: list[int], client: HttpClient) -> None:
        self.pids, self._client = pids, client
        self._editor, self._home = editor, home
        self._asked: tuple[int, asyncio.Future[Any]] | None = None
        self.open, self.close = editor.put, editor.forget
        self.text, self.change, self.focus = editor.text, editor.change, editor.focus

    def ask(self, path: Path, at: int) -> Answer:
        if self._asked is not None and not self._asked[1].done():
            self._editor.cancel(self._asked[0])
        self._home.new_lines()  # what is older belongs to others
        number, future = self._asked = self._editor.ask(path, at)
        answer, version = Answer(), self.text(path)
        future.add_done_callback(
            lambda done: self._fill(answer, done, position(version, at), number)
        )
        return answer

    def _fill(
        self, answer: Answer, done: asyncio.Future[Any], at: dict[str, int], number: int
    ) -> None:
        if (
            done.cancelled()
            or done.exception() is not None
            or self._asked is None
            or self._asked[0] != number
        ):
            return
        answer.ms = (time.perf_counter() - answer.asked) * 1000
        if items := done.result()["items"]:
            answer.item = items[0]
            answer.text, answer.insertion = (
                items[0]["insertText"],
                items[0]["range"] == {"start": at, "end": at},
            )
        traces = [
            trace for line in self._home.new_lines() if (trace := parse_trace(line)) is not None
        ]
        # None: the rest of an earlier suggestion, for which the model was not asked.
        answer.prefilled, answer.decoded, answer.passes = 0, 0, 0
        if traces:
            trace = traces[-1]
            answer.prompt, answer.decoded = trace["prompt_tokens"], trace["generated_tokens"]
            answer.prefilled, answer.passes = trace["prefilled_tokens"], trace["forward_passes"]

    def accepted(self, answer: Answer) -> None:
        if answer.item is not None:
            self._editor.accepted(answer.item)

    def client(self) -> HttpClient:
        return self._client


class Thin:
    """A peer's server and a client without a language server in between: prompt, stop rules and
    filters are ours."""

    def __init__(self, side: Side, settings: Settings, pids: list[int], client: HttpClient) -> None:
        self.pids, self._client = pids, client
        self._settings, self._prompter = settings, Prompter.for_settings(settings)
        self._engine = RemoteEngine(settings.remote)
        self._texts: dict[Path, tuple[str, str]] = {}
        self._contexts: dict[Path, Mapping[int, CursorContext]] = {}
        self._task: asyncio.Task[None] | None = None

    def open(self, path: Path, language: str, text: str) -> None:
        self._texts[path] = language, text

    def close(self, path: Path) -> None:
        self._texts.pop(path, None)
        self._contexts.pop(path, None)

    def text(self, path: Path) -> str:
        return self._texts[path][1]

    def change(self, path: Path, start: int, end: int, new: str) -> None:
        language, text = self._texts[path]
        self._texts[path] = language, text[:start] + new + text[end:]

    def focus(self, path: Path, at: int) -> None:
        pass

    def ask(self, path: Path, at: int) -> Answer:
        if self._task is not None:
            self._task.cancel()
            if self._task.done() and not self._task.cancelled():
                self._task.result()  # what went wrong is no slow answer
        answer = Answer()
        self._task = asyncio.ensure_future(self._complete(path, at, answer))
        return answer

    async def _complete(self, path: Path, at: int, answer: Answer) -> None:
        language, text = self._texts[path]
        start = max(0, at - WINDOW)
        snapshot = Snapshot(
            path.as_uri(), 1, language, text[start : at + WINDOW], at - start, start
        )
        query = query_at(
            snapshot,
            path.name,
            self._prompter,
            self._settings,
            "replay",
            previous=self._contexts.get(path, {}),
        )
        self._contexts[path] = query.contexts
        with contextlib.suppress(EngineUnavailable):
            done = await ask_engine(self._engine, query)
            answer.ms = (time.perf_counter() - answer.asked) * 1000
            found, trace = done.suggestion, done.trace
            answer.text, answer.insertion = found.text, found.replace == (0, 0)
            answer.prompt, answer.prefilled = trace.prompt_tokens, trace.prefilled_tokens

    def accepted(self, answer: Answer) -> None:
        pass

    def client(self) -> HttpClient:
        return self._client

    async def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self._engine.close()


def parse_trace(line: str) -> dict[str, Any] | None:
    """The trace in a line of the server's log; None in any other line."""
    _, found, rest = line.partition(" lsp_server.completion.suggestions: {")
    if not found:
        return None
    try:
        value = json.loads("{" + rest)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "prompt_tokens" in value else None


@contextlib.asynccontextmanager
async def running(
    side: Side,
    exports: Exports,
    folder: Path,
    threads: int,
    home: Home | None = None,
    alone: bool = True,
) -> AsyncIterator[Target]:
    """The side, ready to be asked. home: ours' own, where it has been used before. alone: its
    engine ends with it."""
    from benchmarks.llama_vim import LlamaVim  # it is made of this module's parts

    async with AsyncExitStack() as stack:
        settings, options = side.settings, side.options
        if side.kind != "ours":
            peer = "llama" if side.kind == "llama.vim" else side.kind
            started, first = stack.enter_context(
                process(
                    "peer_server",
                    peer,
                    exports.path(peer, side.precision),
                    "--threads",
                    str(threads),
                    "--precision",
                    side.precision,
                    "--draft",
                    str(side.draft),
                )
            )
            url = f"http://127.0.0.1:{first['port']}"
            client = HttpClient(Where(url), aiohttp.TCPConnector, model="peer", extensions=True)
            stack.push_async_callback(client.close)
            settings = replace(settings, remote=RemoteSettings(url, "peer"))
            if side.kind == "llama.vim":
                recipe = LlamaVim(Prompter.for_settings(settings), client, [started.pid])
                stack.push_async_callback(recipe.end)
                yield recipe
                return
            if not side.through_front:
                thin = Thin(side, settings, [started.pid], client)
                stack.push_async_callback(thin.end)
                yield thin
                return
            options = options | {"remote": {"url": url, "model": "peer"}}
            editor, here = await stack.enter_async_context(window(folder, options))
            yield Ours(editor, here, [editor.process.pid, started.pid], client)
            return
        editor, here = await stack.enter_async_context(window(folder, options, home, alone))
        socket, status = await here.engine_of(side.settings.model)
        client = local_client(socket, side.settings.model)
        stack.push_async_callback(client.close)
        yield Ours(editor, here, [editor.process.pid, status["pid"]], client)


def used(target: Target) -> tuple[float, float]:
    """CPU-seconds so far: of the side's processes, and of this one, which is a thin side's
    client."""
    here = 0.0 if isinstance(target, Ours) else cpu_seconds("self")
    return sum(map(cpu_seconds, target.pids)), here


def memory(target: Target) -> int:
    """Bytes of the side's processes (RssAnon + VmSwap)."""
    return sum(memory_bytes(pid) or 0 for pid in target.pids)


async def passes(target: Target) -> int | None:
    """Forward passes so far; None where nobody counts."""
    status = (
        await target.client().call("GET", "/fimls/status") if isinstance(target, Ours) else None
    )
    return status["forward_passes"]["calls"] if status else None
