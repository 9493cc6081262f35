"""Typing traces: how somebody writes parts of a real file, key by key. The same seed gives the same
trace.

A session begins with a file from which some passages were taken out and ends when each was typed
again at its place: with pauses, wrong keys that are taken back, words that are deleted and typed
once more, and jumps from one passage to the next. Suggestions that were accepted skip keys; that is
the player's doing (`Passage.after`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lsp_server.commands.source_files import HELD_OUT, Packages, language_of, read_packages

KEY_S, JITTER = 0.12, 0.35  # seconds from key to key, and their spread as a share
LINE_END_S, WORD_S = 0.9, 0.06  # what is added at a line's end, and before a word
JUMP_S = 0.6  # from the cursor's arrival to the first key
SLIP, RETYPE = (
    0.03,
    0.015,
)  # chances of a wrong key, and of a word that is deleted and typed again, at a key
RETYPED = 8  # characters of such a word, at most
LINES = (1, 5)  # of a passage, least and most
LEAST, MOST = 30, 150  # characters of a passage
APART = 10  # lines between two passages, at least
NEIGHBOURS = dict(zip("qwertyuiopasdfghjklzxcvbnm", "wertyuioplsdfghjklkxcvbnmn", strict=True))
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Stroke:
    """One key: `wait` seconds after the last, `delete` characters left of the cursor go, and
    `insert` comes.

    at: how many right characters of the passage stand before this stroke.
    """

    wait: float
    at: int
    insert: str = ""
    delete: int = 0


@dataclass(frozen=True, slots=True)
class Passage:
    """start: where it stands in the whole file."""

    start: int
    text: str
    strokes: tuple[Stroke, ...]

    def after(self, number: int, at: int) -> int:
        """The first stroke from `number` on that goes on behind `at` right characters; len(strokes)
        where none does."""
        return next(
            (n for n in range(number, len(self.strokes)) if self.strokes[n].at == at),
            len(self.strokes),
        )


@dataclass(frozen=True, slots=True)
class Session:
    """One file. passages: in the order in which they are typed, which is not that of the file."""

    path: str
    language: str
    text: str
    passages: tuple[Passage, ...]

    @property
    def beginning(self) -> str:
        """The file without its passages."""
        text = self.text
        for passage in sorted(self.passages, key=lambda p: p.start, reverse=True):
            text = text[: passage.start] + text[passage.start + len(passage.text) :]
        return text

    def place(self, number: int) -> int:
        """Where the passage of this number begins in the document, when those before it are typed
        and the rest not."""
        start = self.passages[number].start
        return start - sum(len(p.text) for p in self.passages[number + 1 :] if p.start < start)

    @property
    def keys(self) -> int:
        return sum(len(passage.strokes) for passage in self.passages)


def sources(where: Path | None) -> tuple[Packages, str]:
    """Files to type, and a word on which they are: the held-out packages, or this repository's
    where those are not."""
    if where is not None:
        return read_packages(where), str(where)
    if (HELD_OUT / "test.jsonl").exists():
        return read_packages(None), "the held-out packages (training/data/test.jsonl)"
    found = {room: read_packages(ROOT / room) for room in ("lsp_server", "fim", "model")}
    return {
        room: [file for files in each.values() for file in files] for room, each in found.items()
    }, ("this repository's own files, for want of training/data/test.jsonl")


def sessions(
    packages: Packages, seed: int, passages: int = 6, least: int = 0, longest: int = MOST
) -> Iterator[Session]:
    """Sessions without end, each of a random file of a random package.

    least: characters of a file; longest: of a passage. Raises ValueError where there is nothing to
    type.
    """
    rng = random.Random(seed)
    usable = {name: [f for f in files if len(f[1]) >= least] for name, files in packages.items()}
    names = sorted(name for name, files in usable.items() if files)
    barren = 0
    while names and barren < 1000:
        path, text = rng.choice(usable[rng.choice(names)])
        found = session(path, text, rng, passages, longest)
        barren = 0 if found.passages else barren + 1
        if found.passages:
            yield found
    raise ValueError(f"there is nothing to type in these files (least length {least} characters)")


def session(
    path: str, text: str, rng: random.Random, passages: int, longest: int = MOST
) -> Session:
    starts = [0, *(m.end() for m in re.finditer("\n", text))]  # of lines
    chosen: list[tuple[int, int]] = []  # first line, and the line behind the last
    for _ in range(20 * passages):
        if len(chosen) == passages:
            break
        first = rng.randrange(len(starts))
        end = min(first + rng.randint(*LINES), len(starts) - 1)
        body = text[starts[first] : starts[end]].strip()
        free = all(end + APART <= other or first >= beyond + APART for other, beyond in chosen)
        if free and min(LEAST, longest // 2) <= len(body) <= longest:
            chosen.append((first, end))
    made = []
    for first, end in chosen:
        line = text[starts[first] : starts[end]]
        start = starts[first] + len(line) - len(line.lstrip())  # the editor has indented already
        written = text[start : starts[end]].rstrip()
        made.append(Passage(start, written, tuple(strokes(written, rng))))
    return Session(path, language_of(Path(path)), text, tuple(made))


def strokes(text: str, rng: random.Random) -> Iterator[Stroke]:
    """The keys that make the text. A line's end brings the next line's indentation along, as
    editors do it."""
    at, wait = 0, JUMP_S

    def pause(extra: float = 0.0) -> float:
        return max(0.03, rng.gauss(KEY_S, KEY_S * JITTER)) + extra

    retyped = 0  # up to where: nothing is typed three times
    while at < len(text):
        piece = re.compile(r"\r?\n[ \t]*|.", re.DOTALL).match(text, at)
        assert piece is not None
        key = piece[0]
        chance = rng.random()
        if len(key) == 1 and chance < SLIP:
            wrong = NEIGHBOURS.get(key, "x" if key != "x" else "z")
            yield Stroke(wait, at, wrong)
            yield Stroke(pause(0.15), at, delete=1)
            wait = pause()
        elif chance > 1 - RETYPE and at > retyped:
            back = len(re.search(r"\w*\Z", text[:at])[0][-RETYPED:])  # type: ignore[index]
            for n in range(back):
                yield Stroke(pause(0.2) if n == 0 else KEY_S / 3, at - n, delete=1)
            for n in range(at - back, at):
                yield Stroke(pause(), n, text[n])
            retyped, wait = at, pause()
        yield Stroke(wait, at, key)
        at += len(key)
        wait = pause(
            LINE_END_S * rng.uniform(0.5, 1.5) if "\n" in key else WORD_S if key == " " else 0.0
        )


def enough(made: Iterator[Session], keys: int) -> Sequence[Session]:
    """Sessions that have so many keys together, at least; of the last no more passages than it
    takes."""
    taken: list[Session] = []
    missing = keys
    while missing > 0:
        one = next(made)
        count = 0
        while count < len(one.passages) and missing > 0:
            missing -= len(one.passages[count].strokes)
            count += 1
        taken.append(replace(one, passages=one.passages[:count]))
    return taken
