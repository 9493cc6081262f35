"""The engine's whole answers by query: the same query is not asked twice.

The context made at a text is kept too, so that a return to that text gives the same prompt. Each
document has its own answers, and loses them when it is closed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from fim import CursorContext
from lsp_server.completion.query import Query, query_at
from lsp_server.completion.stream import AnswerStream
from lsp_server.context.project import NOTHING, Surroundings
from lsp_server.documents import Snapshot
from lsp_server.session.prompt_sizes import UNLIMITED
from lsp_server.session.prompter import Prompter
from lsp_server.settings import Settings

Contexts = Mapping[int, CursorContext]
"""Of one text, by the size of the prompt."""

KEPT = 64  # of all documents
T = TypeVar("T")


class Newest(Generic[T]):
    """The values that were used last, by document and key."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[tuple[str, Hashable], T] = OrderedDict()

    def get(self, uri: str, key: Hashable) -> T | None:
        value = self._values.get((uri, key))
        if value is not None:
            self._values.move_to_end((uri, key))
        return value

    def put(self, uri: str, key: Hashable, value: T) -> None:
        self._values[uri, key] = value
        self._values.move_to_end((uri, key))
        if len(self._values) > self._size:
            self._values.popitem(last=False)

    def close(self, uri: str | None) -> None:
        """Forgets the values of a document, or all."""
        for place in list(self._values):
            if uri in (None, place[0]):
                del self._values[place]


class AnswerCache:
    """The answers and contexts of one window."""

    def __init__(self) -> None:
        self._answers: Newest[AnswerStream] = Newest(KEPT)
        self._contexts: Newest[Contexts] = Newest(KEPT)  # by texts, hashed
        self._last: dict[str, Contexts] = {}

    def query(
        self,
        snapshot: Snapshot,
        path: str | None,
        prompter: Prompter,
        settings: Settings,
        client: str,
        sizes: Sequence[int] = (UNLIMITED,),
        around: Surroundings = NOTHING,
    ) -> Query:
        """As query_at, but reuses the context of a text that was seen before."""
        uri = snapshot.uri
        max_tokens = prompter.most_tokens(settings)
        place = (snapshot.window_start, snapshot.offset, snapshot.language, snapshot.secret)
        about = (place, path, max_tokens, tuple(sizes), around)
        key = hash((about, snapshot.text))
        query = query_at(
            snapshot,
            path,
            prompter,
            settings,
            client,
            sizes=sizes,
            contexts=self._contexts.get(uri, key),
            previous=self._last.get(uri, {}),
            around=around,
        )
        self._contexts.put(uri, key, query.contexts)
        last = self._last.get(uri, {})
        secrets = query.context.secrets
        if query.withheld is None or not last:
            last = {**last, **query.contexts}
        self._last[uri] = {size: replace(each, secrets=secrets) for size, each in last.items()}
        return query

    def find(self, query: Query) -> AnswerStream | None:
        return self._answers.get(query.snapshot.uri, query.key)

    def keep(self, query: Query, stream: AnswerStream) -> None:
        """Keeps the answer if it is whole."""
        if stream.whole:
            self._answers.put(query.snapshot.uri, query.key, stream)

    def close(self, uri: str | None = None) -> None:
        """Forgets the answers of a document, or all."""
        self._answers.close(uri)
        self._contexts.close(uri)
        if uri is None:
            self._last.clear()
        else:
            self._last.pop(uri, None)
