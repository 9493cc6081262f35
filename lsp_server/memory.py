"""The last answers by their questions: what was asked before is not asked again.

An answer is decided by the prompt's ids, the way they are sampled, and the rules by which it is read: all of that is
its key. So that going back to a text gives the prompt of then, also the context that was made at a text is kept.
Documents have their answers for themselves, and lose them when they are closed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from hashlib import blake2b
from typing import Generic, TypeVar

from fim import CursorContext
from lsp_server.completer import Prompter, Question, most_tokens, question_at
from lsp_server.documents import Snapshot
from lsp_server.generation import Generation
from lsp_server.settings import Settings

KEPT = 64  # of all documents
T = TypeVar("T")


class Newest(Generic[T]):
    """A few values by what they belong to; the ones that were used last."""

    def __init__(self, size: int) -> None:
        self._size, self._values = size, OrderedDict[tuple[str, bytes], T]()

    def get(self, uri: str, key: bytes) -> T | None:
        value = self._values.get((uri, key))
        if value is not None:
            self._values.move_to_end((uri, key))
        return value

    def put(self, uri: str, key: bytes, value: T) -> None:
        self._values[uri, key] = value
        self._values.move_to_end((uri, key))
        if len(self._values) > self._size:
            self._values.popitem(last=False)

    def forget(self, uri: str | None) -> None:
        for known in [known for known in self._values if uri is None or known[0] == uri]:
            del self._values[known]

    def __len__(self) -> int:
        return len(self._values)


class Answers:
    """What was asked, and answered in full."""

    def __init__(self) -> None:
        self._answers = Newest[Generation](KEPT)
        self._contexts = Newest[CursorContext](KEPT)  # by digests of texts, which may be long
        self._last: dict[str, CursorContext] = {}

    def question(
        self,
        snapshot: Snapshot,
        prompter: Prompter,
        settings: Settings,
        *,
        path: str | None,
        client: str,
        here: bool = True,
    ) -> Question:
        """As question_at; at a text of before with its context. here: the cursor is there, or is it only a guess?"""
        place = place_of(snapshot, path, most_tokens(prompter, settings))
        context = self._contexts.get(snapshot.uri, place)
        last = self._last.get(snapshot.uri)
        question = question_at(snapshot, prompter, settings, path=path, client=client, context=context, previous=last)
        self._contexts.put(snapshot.uri, place, question.context)
        if here:
            self._last[snapshot.uri] = question.context
        return question

    def find(self, question: Question) -> Generation | None:
        return self._answers.get(question.snapshot.uri, key_of(question))

    def keep(self, question: Question, generation: Generation) -> None:
        """Remembers the answer if it is whole."""
        if generation.whole:
            self._answers.put(question.snapshot.uri, key_of(question), generation)

    def forget(self, uri: str | None = None) -> None:
        """One document's, or all."""
        self._answers.forget(uri)
        self._contexts.forget(uri)
        if uri is None:
            self._last.clear()
        else:
            self._last.pop(uri, None)


def key_of(question: Question) -> bytes:
    """What decides the answer, as a digest. Who asks, and how sure the answer has to be, does not."""
    request, shaper = replace(question.request, client="", idle=False), question.shaper
    rules = replace(shaper, min_confidence=0.0, known=frozenset())
    return digest(repr((request, rules, sorted(shaper.known))))


def place_of(snapshot: Snapshot, path: str | None, max_tokens: int) -> bytes:
    """What decides the context, as a digest."""
    about = (snapshot.window_start, snapshot.offset, snapshot.language, path, max_tokens)
    return digest(f"{about}\n{snapshot.text}")


def digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
