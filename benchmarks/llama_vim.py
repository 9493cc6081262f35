"""llama.vim's recipe with llama.cpp's server, as a side to compare suggestions with.

Written anew from the behaviour of both programs (llama.vim of January 2026 with its defaults, and
the server's /infill with --batch-size 1024, as its presets for FIM have it):

- the prompt: 256 lines before the cursor and 64 after, cut to 768 and 256 tokens, behind the
  repository's form of Qwen2.5-Coder with a ring of 16 chunks of other files and places;
- no request where more than eight characters stand right of the cursor; at a line of blanks the
  prompt ends with the line above;
- one request at a time, never aborted; while one runs, a key asks again 100 ms later; answers are
  kept by prefix, cursor's line and suffix, and typed along for up to 128 characters; behind what is
  shown the next one is asked for ahead;
- an answer ends at an end token, at a line indented less than the cursor's, after 256 tokens, or
  with the first line end behind 1.5 seconds;
- it is hidden where it repeats the lines below word by word.

One thing is kinder than the original: answers are greedy, where llama.vim samples.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.targets import Answer
from fim import Encoder, Sentinels, without_surrogates
from lsp_server.engines.http import HttpClient
from lsp_server.engines.interface import Answering, CompletionRequest, EngineUnavailable
from lsp_server.session.prompter import Prompter

LINES_BEFORE = 256
LINES_AFTER = 64
MOST_RIGHT = 8  # characters right of the cursor
TOKENS_BEFORE = 768
TOKENS_AFTER = 256
TOKENS_OF_CHUNKS = 16_384
MOST_TOKENS = 256
MOST_S = 1.5
CHUNKS = 16
CHUNK_LINES = 64
SCOPE = 1024  # lines around the cursor from which chunks of its own file come
MOVED = 32  # lines after which such chunks are picked again
RING_S = 1.0  # from one queued chunk to the next
STILL_S = 3.0  # without a key, then queued chunks are read
RETRY_S = 0.1
KEPT = 250  # answers
LOOK_BACK = 128  # characters that were typed along
SAME_CHUNK = 0.9


@dataclass(frozen=True, slots=True)
class Question:
    """What a request is made of. indent: of the cursor's line, in characters."""

    prefix: str
    line: str  # left of the cursor
    suffix: str
    indent: int

    @property
    def key(self) -> tuple[str, str]:
        return self.prefix + "\0" + self.line, self.suffix


@dataclass(frozen=True, slots=True)
class Chunk:
    name: str
    lines: tuple[str, ...]

    def likeness(self, other: Chunk) -> float:
        """0..1"""
        common = sum(line in other.lines for line in self.lines)
        return 2 * common / (len(self.lines) + len(other.lines))


def question_at(text: str, cursor: int) -> Question | None:
    """None where nothing is asked of itself."""
    before = text[:cursor].split("\n")
    after = text[cursor:].split("\n")
    line, rest = before[-1], after[0]
    if len(rest) > MOST_RIGHT:
        return None
    indent = len(line) - len(line.lstrip())
    if not (line + rest).strip():
        line, rest, indent = "", "", 0
    prefix = "\n".join(before[:-1][-LINES_BEFORE:]) + "\n"
    suffix = rest + "\n" + "\n".join(after[1:][:LINES_AFTER]) + "\n"
    return Question(prefix, line, suffix, indent)


def prompt_of(
    question: Question, sentinels: Sentinels, encoder: Encoder, chunks: Sequence[Chunk] = ()
) -> tuple[int, ...]:
    """The ids as the server makes them of the question, for the format of Qwen2.5-Coder."""
    family = sentinels.format
    assert family.repo_name is not None and family.file_sep is not None
    repo, file = sentinels.ids[family.repo_name], sentinels.ids[family.file_sep]

    def ids(text: str) -> list[int]:
        return encoder.encode(without_surrogates(text))

    extra: list[int] = []
    for chunk in chunks:
        text = "".join(line + "\n" for line in chunk.lines)
        extra += [file, *ids(chunk.name + "\n"), *ids(text)]
    line = ids(question.line)
    prefix = ids(question.prefix)[-TOKENS_BEFORE:]
    suffix = ids(question.suffix)[: max(0, TOKENS_AFTER - 2 - len(line))]
    assert sentinels.middle is not None
    return (
        *(repo, *ids("myproject\n")),
        *extra[-TOKENS_OF_CHUNKS:],
        *(file, *ids("filename\n")),
        *(sentinels.prefix, *prefix, *line),
        *(sentinels.suffix, *suffix),
        sentinels.middle,
    )


class Ending:
    """Where the server ends an answer."""

    def __init__(self, indent: int) -> None:
        self.text = ""
        self._indent = indent
        self._started = time.perf_counter()

    def add(self, piece: str, *, seconds: float | None = None) -> bool:
        """Whether it ends with this piece. seconds: since the start; None: by the clock."""
        if seconds is None:
            seconds = time.perf_counter() - self._started
        was_broken = "\n" in self.text
        self.text += piece
        for line in re.finditer(r"\n([ \t]*)(?=[^ \t\n])", self.text):
            if len(line[1]) < self._indent:
                self.text = self.text[: line.start()]
                return True
        return was_broken and "\n" in piece and seconds > MOST_S


def shown(content: str, text: str, cursor: int) -> str:
    """What is shown of an answer at the cursor; "" for nothing."""
    lines = content.split("\n")
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        return ""
    before = text[:cursor].rpartition("\n")[2]
    after, *below = text[cursor:].split("\n")
    if not (before + after).strip():
        # It begins with the line's beginning there: as many blanks as the line has are left out.
        blanks = len(lines[0]) - len(lines[0].lstrip())
        lead = min(blanks, len(before + after))
        before, lines[0] = lines[0][:lead], lines[0][lead:]
    if len(lines) > 1 and not lines[0] and lines[1:] == below[: len(lines) - 1]:
        return ""
    if lines == [after]:
        return ""
    while below and not below[0].strip():
        below.pop(0)
    if below and before + lines[0] == below[0]:
        last = below[1][: len(lines[-1])] if len(below) > 1 else ""
        middle = lines[1:-1] == below[1 : len(lines) - 1]
        if len(lines) == 1 or (len(lines) == 2 and lines[1] == last) or (len(lines) > 2 and middle):
            return ""
    shown = "\n".join(lines)
    return shown if shown.strip() else ""


def request_of(
    question: Question, prompter: Prompter, chunks: Sequence[Chunk] = ()
) -> CompletionRequest:
    assert prompter.sentinels is not None
    return CompletionRequest(
        prompt=prompt_of(question, prompter.sentinels, prompter.encoder, chunks),
        max_tokens=MOST_TOKENS,
        stop_ids=tuple(sorted(prompter.sentinels.stop_ids)),
        client="llama.vim",
    )


async def answer_to(
    engine: Answering, question: Question, request: CompletionRequest, per_token_s: float | None
) -> str:
    """The server's answer. per_token_s: so long a token is said to take, in place of the clock.
    Raises EngineUnavailable."""
    ending = Ending(question.indent)
    tokens = 0
    async with aclosing(engine.complete(request)) as pieces:
        async for piece in pieces:
            tokens += max(1, len(piece.logprobs))
            seconds = None if per_token_s is None else tokens * per_token_s
            if piece.text and ending.add(piece.text, seconds=seconds):
                break
    return ending.text


class Ring:
    """The chunks of other places that go into every prompt, the oldest first."""

    def __init__(self, seed: int = 0) -> None:
        self.chunks: list[Chunk] = []
        self._queued: list[Chunk] = []
        self._random = random.Random(seed)

    def pick(self, name: str, lines: Sequence[str]) -> None:
        """Queues a random piece of half a chunk of these lines."""
        if len(lines) < 3:
            return
        if len(lines) + 1 >= CHUNK_LINES:
            half = CHUNK_LINES // 2
            first = self._random.randint(0, max(0, len(lines) - half))
            lines = lines[first : first + half + 1]
        chunk = Chunk(name, tuple(lines))
        for held in (self.chunks, self._queued):
            held[:] = [each for each in held if each.likeness(chunk) <= SAME_CHUNK]
        self._queued = [*self._queued, chunk][-CHUNKS:]

    def take(self) -> bool:
        """Moves one queued chunk into the ring; whether there was one."""
        if not self._queued:
            return False
        self.chunks = [*self.chunks, self._queued.pop(0)][-CHUNKS:]
        return True


class LlamaVim:
    """An editor with the recipe; benchmarks.targets.Target."""

    def __init__(self, prompter: Prompter, client: HttpClient, pids: list[int]) -> None:
        self.pids = pids
        self._prompter = prompter
        self._client = client
        self._engine = _Stream(client)
        self._texts: dict[Path, str] = {}
        self._ring = Ring()
        self._answers: dict[tuple[str, str], str] = {}
        self._answer: Answer | None = None
        self._at: tuple[Path, int] | None = None
        self._picked = (Path(), 0)  # where chunks were picked, by line
        self._busy = False
        self._retry: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_key = time.perf_counter()
        self._start(self._fill_ring())

    # ---- as the player types ----

    def open(self, path: Path, language: str, text: str) -> None:
        self._texts[path] = text
        self._ring.pick(path.name, text.split("\n")[: CHUNK_LINES // 2 + 1])

    def close(self, path: Path) -> None:
        self._pick_around(path)
        del self._texts[path]

    def text(self, path: Path) -> str:
        return self._texts[path]

    def change(self, path: Path, start: int, end: int, new: str) -> None:
        text = self._texts[path]
        self._texts[path] = text[:start] + new + text[end:]
        self._last_key = time.perf_counter()

    def focus(self, path: Path, at: int) -> None:
        pass

    def accepted(self, answer: Answer) -> None:
        pass

    def client(self) -> HttpClient:
        return self._client

    def ask(self, path: Path, at: int) -> Answer:
        self._answer = Answer()
        self._at = (path, at)
        self._ask_now()
        return self._answer

    async def end(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- as the plug-in asks ----

    def _ask_now(self) -> None:
        if self._at is None or self._at[0] not in self._texts:
            return
        path, cursor = self._at
        if self._show():
            return
        question = question_at(self._texts[path], cursor)
        if question is None:
            return
        if self._busy:
            if self._retry is not None:
                self._retry.cancel()
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._ask_now)
            return
        self._request(question)
        self._pick_near(path, cursor)

    def _request(self, question: Question) -> None:
        self._busy = True
        self._start(self._complete(question))

    async def _complete(self, question: Question) -> None:
        request = request_of(question, self._prompter, self._ring.chunks)
        try:
            content = await answer_to(self._engine, question, request, None)
        except EngineUnavailable:
            return
        finally:
            self._busy = False
        self._answers[question.key] = content
        while len(self._answers) > KEPT:
            del self._answers[next(iter(self._answers))]
        self._show()

    def _show(self) -> bool:
        """Shows a kept answer at the cursor, if there is one, and asks for the one behind it."""
        answer = self._answer
        if answer is None or self._at is None or self._at[0] not in self._texts:
            return False
        path, cursor = self._at
        text = self._texts[path]
        question = question_at(text, cursor)
        content = None if question is None else self._kept(question)
        if content is None:
            return False
        if answer.ms is None:
            answer.ms = (time.perf_counter() - answer.asked) * 1000
            answer.text = shown(content, text, cursor)
            if answer.text and not self._busy:
                self._ahead(text, cursor, answer.text)
        return True

    def _ahead(self, text: str, cursor: int, suggestion: str) -> None:
        accepted = text[:cursor] + suggestion + text[cursor:]
        question = question_at(accepted, cursor + len(suggestion))
        if question is not None and self._kept(question) is None:
            self._request(question)

    def _kept(self, question: Question) -> str | None:
        before, suffix = question.key
        if question.key in self._answers:
            return self._answers[question.key]
        for size in range(1, min(LOOK_BACK, len(question.line)) + 1):
            content = self._answers.get((before[:-size], suffix))
            if content is not None:
                typed = question.line[-size:]
                return content[size:] if content.startswith(typed) else None
        return None

    # ---- the ring ----

    def _pick_near(self, path: Path, cursor: int) -> None:
        """Chunks above and below the windows, where the cursor has moved far."""
        text = self._texts[path]
        number = text.count("\n", 0, cursor)
        picked_path, picked_number = self._picked
        if picked_path == path and abs(picked_number - number) <= MOVED:
            return
        self._picked = (path, number)
        lines = text.split("\n")
        above = lines[max(0, number - SCOPE) : max(0, number - LINES_BEFORE)]
        start = number + LINES_AFTER
        self._ring.pick(path.name, above)
        self._ring.pick(path.name, lines[start : start + CHUNK_LINES])

    def _pick_around(self, path: Path) -> None:
        text = self._texts[path]
        at = self._at[1] if self._at is not None and self._at[0] == path else 0
        number = text.count("\n", 0, at)
        half = CHUNK_LINES // 2
        lines = text.split("\n")
        self._ring.pick(path.name, lines[max(0, number - half) : number + half + 1])

    async def _fill_ring(self) -> None:
        """One queued chunk a second goes into the ring while nobody types, and is read then."""
        nothing = Question("", "", "", 0)
        while True:
            await asyncio.sleep(RING_S)
            idle = time.perf_counter() - self._last_key > STILL_S
            if idle and not self._busy and self._ring.take():
                request = request_of(nothing, self._prompter, self._ring.chunks)
                self._busy = True
                with contextlib.suppress(EngineUnavailable):
                    await answer_to(self._engine, nothing, replace(request, max_tokens=1), None)
                self._busy = False

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Stream:
    """A client as something that answers."""

    def __init__(self, client: HttpClient) -> None:
        self.complete = client.stream
