"""What the model wrote, by what it was asked: what was asked before is not asked again.

An answer is decided by the prompt's ids, the way they are sampled, and the rules by which it is
read: all of that is its key. So that going back to a text gives the prompt of then, also the
context that was made at a text is kept. Documents have their answers for themselves, and lose them
when they are closed.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from fim import CursorContext
from lsp_server.completion.completer import Place, Question, digest, question_at
from lsp_server.completion.stream import Generation

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


class Memory:
    """What was asked, and answered in full."""

    def __init__(self) -> None:
        self._answers = Newest[Generation](KEPT)
        self._contexts = Newest[CursorContext](KEPT)  # by digests of texts, which may be long
        self._last: dict[str, CursorContext] = {}

    def question(self, place: Place) -> Question:
        """As question_at; at a text of before with its context."""
        uri, key = place.snapshot.uri, context_key(place)
        question = question_at(
            place, context=self._contexts.get(uri, key), previous=self._last.get(uri)
        )
        self._contexts.put(uri, key, question.context)
        self._last[uri] = question.context
        return question

    def find(self, question: Question) -> Generation | None:
        return self._answers.get(question.place.snapshot.uri, question.key)

    def keep(self, question: Question, generation: Generation) -> None:
        """Remembers the answer if it is whole."""
        if generation.whole:
            self._answers.put(question.place.snapshot.uri, question.key, generation)

    def forget(self, uri: str | None = None) -> None:
        """One document's, or all."""
        self._answers.forget(uri)
        self._contexts.forget(uri)
        if uri is None:
            self._last.clear()
        else:
            self._last.pop(uri, None)


def context_key(place: Place) -> bytes:
    """What decides the context, as a digest."""
    snapshot, most = place.snapshot, place.prompter.most_tokens(place.settings)
    about = (snapshot.window_start, snapshot.offset, snapshot.language, place.path, most)
    return digest(f"{about}\n{snapshot.text}")
