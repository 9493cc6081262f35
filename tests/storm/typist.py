"""Somebody who types without sense or pause in one window, and checks every answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.lsp_server.helpers import PATIENCE_S, RpcError, Window

LINE_ENDS = re.compile(r"\r\n|\n|\r")
LETTERS = "abcdefghijklmnopqrstuvwxyz_0123456789"
SIGNS = "  ()[]{}:;,.\"'\\=+-*/#\t"
MORE = (
    *("\n", "\n    ", "\r\n", "é", "e\u0301", "漢", "😋", "👩\u200d💻", "\u2028", "\x0c", "\ufeff"),
    *("def ", "return ", "import "),
)
KEYS = (*LETTERS, *SIGNS, *MORE)
CANCELLED = (-32800, -32801, -32802)  # by the client, by a change of the text, by the server
AT_ONCE = 40  # requests that wait for an answer
ENOUGH = 6000  # characters: a longer text is begun anew


@dataclass(frozen=True)
class Asked:
    """A request: the document's text then, and the cursor as an offset."""

    number: int
    uri: str
    text: str
    cursor: int


class Typist:
    """counts: what happened, by name. judge: is told of each suggestion, what was asked, and the
    text with it."""

    def __init__(
        self,
        window: Window,
        name: str,
        seed: int,
        judge: Callable[[Asked, dict[str, Any]], None] = lambda asked, item: None,
    ) -> None:
        self.window = window
        self.random = Random(seed)
        self.judge = judge
        self.counts = dict.fromkeys(("keys", "requests", "shown", "empty", "cancelled", "taken"), 0)
        self._texts = {f"file:///work/{name}{n}.py": "" for n in range(3)}
        self._versions = dict.fromkeys(self._texts, 0)
        self._cursors = dict.fromkeys(self._texts, 0)
        self._before: list[tuple[str, str]] = []
        self._uri = next(iter(self._texts))
        self._waiting: set[asyncio.Task[None]] = set()
        self._numbers: list[int] = []
        self._shown: tuple[Asked, dict[str, Any]] | None = None

    async def type(self, keys: int) -> None:
        """Raises AssertionError where an answer is wrong or does not come."""
        for uri in self._texts:
            self._open(uri)
        for _ in range(keys):
            self.counts["keys"] += 1
            self._act()
            self._ask()
            pause = self.random.random()
            if pause < 0.03:  # looks at what comes
                await asyncio.wait(self._waiting, timeout=PATIENCE_S)
                await asyncio.sleep(0.02 * self.random.random())
            elif pause < 0.3 or len(self._waiting) > AT_ONCE:
                await asyncio.sleep(0.002)
            if len(self._waiting) > AT_ONCE:
                await asyncio.wait_for(asyncio.gather(*self._waiting), PATIENCE_S)
            for task in [task for task in self._waiting if task.done()]:
                self._waiting.discard(task)
                task.result()  # raises what it found wrong
        await asyncio.wait_for(asyncio.gather(*self._waiting), PATIENCE_S)
        self._waiting.clear()
        assert set(self.window.answers.values()) <= {1}, "a request was answered twice"

    # ---- what is done at a key ----

    def _act(self) -> None:
        uri, text = self._uri, self._texts[self._uri]
        at = self._cursors[uri]
        dice = self.random.random()
        if len(text) > ENOUGH:
            self._close_and_open(uri)
        elif dice < 0.70:
            self._edit(at, at, self.random.choice(KEYS))
        elif dice < 0.80:
            self._edit(max(0, at - 1), at, "")
        elif dice < 0.83:
            start = self.random.randrange(len(text) + 1)
            self._edit(start, min(len(text), start + self.random.randrange(80)), "x\n" * 3)
        elif dice < 0.88:
            self._cursors[uri] = self.random.randrange(len(text) + 1)
        elif dice < 0.91:
            self._undo()
        elif dice < 0.96:
            self._take()
        elif dice < 0.98:
            for number in self._numbers[-3:]:
                self.window.cancel(number)
        elif dice < 0.995:
            self._uri = self.random.choice(list(self._texts))
        else:
            self._close_and_open(uri)

    def _edit(self, start: int, end: int, new: str) -> None:
        text = self._texts[self._uri]
        where = {"start": position(text, start), "end": position(text, end)}
        start, end = offset(text, where["start"]), offset(text, where["end"])
        self._before.append((self._uri, text))
        del self._before[:-20]
        self._set(text[:start] + new + text[end:], start + len(new), new, where)

    def _set(self, text: str, cursor: int, new: str, where: dict[str, Any] | None) -> None:
        uri = self._uri
        self._texts[uri] = text
        self._cursors[uri] = cursor
        self._versions[uri] += 1
        self.window.change(self._versions[uri], new, where, uri)

    def _undo(self) -> None:
        """As some editors do: the whole text as it was."""
        if self._before and self._before[-1][0] == self._uri:
            _, text = self._before.pop()
            self._set(text, min(self._cursors[self._uri], len(text)), text, None)

    def _take(self) -> None:
        if self._shown is None:
            return
        asked, item = self._shown
        self._shown = None
        if asked.uri == self._uri and asked.text == self._texts[self._uri]:
            self.counts["taken"] += 1
            where = item["range"]
            start, end = (offset(asked.text, where[side]) for side in ("start", "end"))
            self._edit(start, end, item["insertText"])

    def _open(self, uri: str) -> None:
        self.window.open(self._texts[uri], uri)
        self._versions[uri] = 1

    def _close_and_open(self, uri: str) -> None:
        self.window.close_document(uri)
        self._texts[uri] = "".join(self.random.choices(KEYS, k=self.random.randrange(400)))
        self._cursors[uri] = self.random.randrange(len(self._texts[uri]) + 1)
        self._open(uri)

    # ---- questions and answers ----

    def _ask(self) -> None:
        text = self._texts[self._uri]
        where = position(text, self._cursors[self._uri])
        number, answer = self.window.ask(
            where["line"], where["character"], self._uri, invoked=self.random.random() < 0.05
        )
        self.counts["requests"] += 1
        self._numbers = [*self._numbers[-9:], number]
        asked = Asked(number, self._uri, text, offset(text, where))
        self._waiting.add(asyncio.ensure_future(self._check(asked, answer)))

    async def _check(self, asked: Asked, answer: asyncio.Future[Any]) -> None:
        try:
            items = await answer
        except RpcError as error:
            assert error.code in (-32800, -32801, -32802), (
                error
            )  # cancelled, or the text has changed
            self.counts["cancelled"] += 1
            return
        if not items:
            self.counts["empty"] += 1
            return
        self.counts["shown"] += 1
        for item in items:
            check(asked, item)
            self.judge(asked, item)
        self._shown = asked, items[0]


def check(asked: Asked, item: dict[str, Any]) -> None:
    """A suggestion replaces text around the cursor, on its line, and goes on with what stands left
    of it."""
    new = item["insertText"]
    start, end = (offset(asked.text, item["range"][side]) for side in ("start", "end"))
    assert start <= asked.cursor <= end
    replaced = asked.text[start:end]
    assert not LINE_ENDS.search(replaced)
    assert new.startswith(asked.text[start : asked.cursor])
    assert new != replaced
    assert "\ufffd" not in new
    assert new.encode()
    assert not re.search(r"<\|?(fim|file|end|repo)", new)


def position(text: str, at: int) -> dict[str, int]:
    """LSP's, in UTF-16; inside of a line's end it is before it."""
    line = start = 0
    for end in LINE_ENDS.finditer(text):
        if end.end() > at:
            at = min(at, end.start())
            break
        line, start = line + 1, end.end()
    return {"line": line, "character": len(text[start:at].encode("utf-16-le")) // 2}


def offset(text: str, where: dict[str, int]) -> int:
    """Of a position that is not inside a character."""
    starts = [0, *(end.end() for end in LINE_ENDS.finditer(text))]
    ends = [*(end.start() for end in LINE_ENDS.finditer(text)), len(text)]
    start, end = starts[where["line"]], ends[where["line"]]
    units = text[start:end].encode("utf-16-le")[: 2 * where["character"]]
    return start + len(units.decode("utf-16-le"))
