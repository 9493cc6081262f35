"""Snippets of other files for the prompts of one window, chosen beside the typing.

A prompt never waits for them: `snippets` is what was chosen last for a document. They are chosen on
a thread while nobody types, and changed only between lines, since the model has to read all that
follows them anew: at a jump, and where others suit the place much better.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fim import Snippet
from fim.project import Part, Place, Source, better, choose, imported_names, imported_paths
from fim.project import parts_of as parts_of_text
from fim.secrets import is_secret_path
from fim.secrets.paths import LANGUAGES
from lsp_server.context.locations import name_in, to_path
from lsp_server.context.project_files import LARGEST, ProjectFiles, family_of, has_secret
from lsp_server.daemon import in_daemon
from lsp_server.documents import Document, Snapshot
from lsp_server.logs import log_error

logger = logging.getLogger(__name__)
PAUSE_S = 0.4  # without a key, before other snippets are looked for,
QUIET_S = 1.0  # and before they are used in the middle of a line
AGAIN_S = 10.0  # from one look to the next, unless the cursor jumps
JUMP = 30  # lines
PATIENCE_S = 10.0  # for the disk; after that there are no snippets of files for a while
MOST_OPEN = 24  # documents that were used last
REACH = 6000  # code points on each side of the cursor that are compared
RECENT_S = 600.0  # a place that was edited
NEAR = 400  # code points around such a place

# How much more than others a part of such a file is worth:
CELL = 2.0
EDITED = 1.6
IMPORTED = 1.5
OPEN = 1.3
NEIGHBOUR = 1.1
OTHER = 1.0

Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a prompt has beside its own file's text."""

    repository: str | None = None  # the workspace's name
    snippets: tuple[Snippet, ...] = ()


NOTHING = Surroundings()


@dataclass(frozen=True, slots=True)
class Open:
    """An open document as it was when snippets were looked for."""

    uri: str
    language: str
    text: str
    edited: tuple[int, ...]  # offsets at which it was edited a short while ago


@dataclass(slots=True)
class _Place:
    """The state of one document."""

    chosen: Surroundings = NOTHING
    waiting: Surroundings | None = None  # better ones, which are used at the next line
    line: int | None = None  # at which they were looked for
    last_line: int | None = None  # of the last request
    looked: float = 0.0  # by time.monotonic()
    touched: float = 0.0
    task: asyncio.Task[None] | None = None
    edits: list[tuple[float, int]] = field(default_factory=list)


class _Typed(Exception):
    """A key was typed, and a search has to wait."""


class ProjectContext:
    """The snippets of one window.

    documents: the open ones. roots: the workspace's folders. on_change: is called with a document's
    URI when its snippets have changed.
    """

    def __init__(
        self,
        documents: Callable[[], Mapping[str, Document]],
        roots: Callable[[], Sequence[Path]],
        on_change: Callable[[str], None] = lambda uri: None,
    ) -> None:
        self.on_change = on_change
        self._documents = documents
        self._roots = roots
        self._places: dict[str, _Place] = {}
        self._files: dict[Path, ProjectFiles] = {}
        self._turn = asyncio.Lock()  # one thread at a time
        self._resting_until = 0.0

    def surroundings(self, uri: str) -> Surroundings:
        """The snippets to use at this moment."""
        place = self._places.get(uri)
        return NOTHING if place is None else place.chosen

    def visit(self, snapshot: Snapshot, budget: int, count: Count) -> None:
        """The cursor is here now: chooses snippets where that is due, of at most `budget` tokens.

        Costs next to nothing; the work is done on a thread."""
        place = self._places.setdefault(snapshot.uri, _Place())
        now = time.monotonic()
        place.touched = now
        line = snapshot.text.count("\n", 0, snapshot.offset)
        if place.waiting is not None and line != place.last_line:
            self._use(snapshot.uri, place)
        place.last_line = line
        jumped = place.line is None or abs(line - place.line) > JUMP
        if place.task is None and (jumped or now - place.looked > AGAIN_S):
            work = self._look(snapshot, place, line, budget, count)
            place.task = asyncio.ensure_future(work)

    def edited(self, snapshot: Snapshot) -> None:
        place = self._places.setdefault(snapshot.uri, _Place())
        now = time.monotonic()
        place.touched = now
        at = snapshot.window_start + snapshot.offset
        if place.edits and abs(place.edits[-1][1] - at) < NEAR:
            place.edits.pop()
        place.edits = [*place.edits[-7:], (now, at)]

    def close(self, uri: str | None = None) -> None:
        """Forgets a document, or all."""
        for each in [uri] if uri is not None else list(self._places):
            place = self._places.pop(each, None)
            if place is not None and place.task is not None:
                place.task.cancel()

    async def settled(self, uri: str) -> None:
        """Waits until nothing is being looked for."""
        while (place := self._places.get(uri)) is not None and place.task is not None:
            await asyncio.wait({place.task})

    async def _look(
        self, snapshot: Snapshot, place: _Place, line: int, budget: int, count: Count
    ) -> None:
        uri = snapshot.uri
        try:
            found = await self._find_in_a_pause(snapshot, place, budget, count)
            jumped = place.line is None or abs(line - place.line) > JUMP
            place.looked = time.monotonic()
            place.line = line
            if found is None or found == place.chosen:
                place.waiting = None
                return
            if not jumped and not better(place.chosen.snippets, found.snippets):
                return
            place.waiting = found
            if place.chosen.snippets:
                await _quiet(place, QUIET_S)
            if place.waiting is found:
                self._use(uri, place)
        except Exception as error:
            log_error(logger, error)
        finally:
            place.task = None

    def _use(self, uri: str, place: _Place) -> None:
        assert place.waiting is not None
        place.chosen = place.waiting
        place.waiting = None
        self.on_change(uri)

    async def _find_in_a_pause(
        self, snapshot: Snapshot, place: _Place, budget: int, count: Count
    ) -> Surroundings | None:
        """As _find; a key ends the search, which then begins again, with what it has read."""
        first = place.line is None
        while True:
            if not first:
                await _quiet(place, PAUSE_S)
            first = False
            with contextlib.suppress(_Typed):
                return await self._find(snapshot, budget, count, _Touched(place))

    async def _find(
        self, snapshot: Snapshot, budget: int, count: Count, should_stop: Callable[[], bool]
    ) -> Surroundings | None:
        """None where the disk does not answer. Raises _Typed where it should stop."""
        roots = tuple(self._roots())
        opened = self._open_documents(snapshot.uri)
        async with self._turn:
            if time.monotonic() < self._resting_until:
                return None
            try:
                return await in_daemon(
                    lambda: self._search(snapshot, roots, opened, budget, count, should_stop),
                    PATIENCE_S,
                )
            except TimeoutError:
                self._resting_until = time.monotonic() + 30 * PATIENCE_S
                self._files = {}  # the thread goes on with the old ones
                return None

    def _open_documents(self, uri: str) -> list[Open]:
        """The other documents, those that were used last first."""
        documents = self._documents()
        since = time.monotonic() - RECENT_S

        def used(other: str) -> float:
            return self._places[other].touched if other in self._places else 0.0

        newest = sorted(documents, key=used, reverse=True)[:MOST_OPEN]
        found = []
        for other in newest:
            document = documents[other]
            if other != uri and document.length <= LARGEST:
                place = self._places.get(other, _Place())
                edited = tuple(at for when, at in place.edits if when > since)
                found.append(Open(other, document.language, document.text, edited))
        return found

    # ---- on a thread ----

    def _search(
        self,
        snapshot: Snapshot,
        roots: Sequence[Path],
        opened: Sequence[Open],
        budget: int,
        count: Count,
        should_stop: Callable[[], bool],
    ) -> Surroundings:
        def check() -> None:
            if should_stop():
                raise _Typed

        files, path = self._folder_of(snapshot.uri, roots)
        search = _Search(snapshot, files, path, opened)
        offset = snapshot.offset
        near = Place(
            snapshot.text[max(0, offset - REACH) : offset],
            snapshot.text[offset : offset + REACH],
            imported_names(snapshot.text, snapshot.language),
        )
        snippets = choose(near, search.sources(), budget, count, search.may_show, check)
        return Surroundings(None if files is None else files.root.name, snippets)

    def _folder_of(self, uri: str, roots: Sequence[Path]) -> tuple[ProjectFiles | None, str | None]:
        """The workspace folder that holds a document, and the document's path in it."""
        path = to_path(_file_uri(uri))
        if path is None:
            return None, None
        for root in roots:
            if root not in self._files:
                self._files[root] = ProjectFiles(root)
            if (relative := self._files[root].relative(path)) is not None:
                return self._files[root], relative
        return None, None


class _Search:
    """One search for snippets, on a thread."""

    def __init__(
        self,
        snapshot: Snapshot,
        files: ProjectFiles | None,
        path: str | None,
        opened: Sequence[Open],
    ) -> None:
        self._snapshot = snapshot
        self._files = files
        self._path = path
        self._opened = opened
        self._texts: dict[str, str | None] = {}  # of the files that a part is of, by path

    def may_show(self, part: Part) -> bool:
        """Whether a part holds no secret. Asked only of those that would be shown."""
        if part.path not in self._texts:
            assert self._files is not None
            self._texts[part.path] = self._files.text(part.path)
        text = self._texts[part.path]
        return text is not None and not has_secret(text, part)

    def sources(self) -> Iterator[Source]:
        cells = [each for each in self._opened if self._is_sibling(each.uri)]
        for cell in cells:
            path = f"{name_in(cell.uri).rpartition('/')[2]}#{len(self._texts)}"
            self._texts[path] = cell.text
            yield Source("a cell of this notebook", CELL, _as_runs(cell.text, path))
        if self._files is None or self._path is None:
            return
        family = family_of(self._path)
        imported: tuple[str, ...] = ()
        listed: list[str] = []
        if family:
            listed = self._files.paths(family)
            snapshot = self._snapshot
            imported = imported_paths(snapshot.text, self._path, snapshot.language, listed)
        yield from self._of_open_documents(family, imported)
        yield from self._of_files(listed, imported)

    def _is_sibling(self, uri: str) -> bool:
        own = self._snapshot.uri
        is_cell = uri.startswith("vscode-notebook-cell:") and "#" in uri
        if not is_cell or uri.partition("#")[0] != own.partition("#")[0]:
            return False
        return not is_secret_path(name_in(uri))

    def _of_open_documents(self, family: str, imported: Sequence[str]) -> Iterator[Source]:
        assert self._files is not None
        for each in self._opened:
            full = to_path(each.uri)
            path = None if full is None else self._files.relative(full)
            if path is None or path == self._path or each.language in LANGUAGES:
                continue
            if family_of(path) != family or not self._files.may_show(path):
                continue
            self._texts[path] = each.text
            parts = parts_of_text(each.text, path, each.language)
            recent = [part for part in parts if any(_is_near(part, at) for at in each.edited)]
            others = [part for part in parts if part not in recent]
            weight = max(OPEN, IMPORTED if path in imported else 0.0)
            if recent:
                yield Source("edited a short while ago", EDITED, recent)
            yield Source("imported, and open" if path in imported else "open", weight, others)

    def _of_files(self, listed: Sequence[str], imported: Sequence[str]) -> Iterator[Source]:
        assert self._files is not None and self._path is not None
        folder = self._path.rpartition("/")[0]
        own = self._path.split("/")
        known = {*self._texts, self._path}

        def distance(path: str) -> tuple[bool, int]:
            parts = path.split("/")
            shared = 0
            while shared < min(len(parts), len(own)) and parts[shared] == own[shared]:
                shared += 1
            return path not in imported, len(parts) + len(own) - 2 * shared

        wanted = sorted((path for path in listed if path not in known), key=distance)
        for path, parts in self._files.read(wanted):
            if path in imported:
                yield Source("imported", IMPORTED, parts)
            elif path.rpartition("/")[0] == folder:
                yield Source("in the same folder", NEIGHBOUR, parts)
            else:
                yield Source("in this project", OTHER, parts)


class _Touched:
    """Whether a document was touched since this was made."""

    def __init__(self, place: _Place) -> None:
        self._place = place
        self._began = place.touched

    def __call__(self) -> bool:
        return self._place.touched > self._began


async def _quiet(place: _Place, seconds: float) -> None:
    """Waits until nobody has typed for so long."""
    while (left := place.touched + seconds - time.monotonic()) > 0:
        await asyncio.sleep(left)


def _file_uri(uri: str) -> str:
    """Of a notebook's cell the notebook."""
    if uri.startswith("vscode-notebook-cell:"):
        return "file:" + uri.partition("#")[0].removeprefix("vscode-notebook-cell:")
    return uri


def _as_runs(text: str, path: str) -> tuple[Part, ...]:
    return parts_of_text(text, path, "")


def _is_near(part: Part, at: int) -> bool:
    return part.start - NEAR <= at <= part.end + NEAR
